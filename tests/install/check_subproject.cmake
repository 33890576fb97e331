# As a subproject, zipcache adds its one target and changes nothing else. To be included before zipcache is
# added, and asked after that.
set(build_type_before "${CMAKE_BUILD_TYPE}")
set(flags_before "${CMAKE_CXX_FLAGS}")
set(standard_before "${CMAKE_CXX_STANDARD}")

function(check_subproject directory)
  get_property(targets DIRECTORY "${directory}" PROPERTY BUILDSYSTEM_TARGETS)
  get_property(tests DIRECTORY "${directory}" PROPERTY TESTS)
  get_property(subdirectories DIRECTORY "${directory}" PROPERTY SUBDIRECTORIES)
  if(NOT targets STREQUAL "zipcache" OR tests OR subdirectories)
    message(FATAL_ERROR "zipcache adds more than one target to its parent: "
      "targets '${targets}', tests '${tests}', directories '${subdirectories}'.")
  endif()
  if(NOT "${build_type_before}|${flags_before}|${standard_before}" STREQUAL
      "${CMAKE_BUILD_TYPE}|${CMAKE_CXX_FLAGS}|${CMAKE_CXX_STANDARD}")
    message(FATAL_ERROR "zipcache changed the build type, the standard or the flags of its parent.")
  endif()
endfunction()

# As a subproject, zipcache adds its targets and nothing else.
function(check_subproject directory)
  get_property(targets DIRECTORY "${directory}" PROPERTY BUILDSYSTEM_TARGETS)
  get_property(tests DIRECTORY "${directory}" PROPERTY TESTS)
  get_property(subdirectories DIRECTORY "${directory}" PROPERTY SUBDIRECTORIES)
  if(NOT targets STREQUAL "zipcache" OR tests OR subdirectories)
    message(FATAL_ERROR "zipcache adds more than one target to its parent: "
      "targets '${targets}', tests '${tests}', directories '${subdirectories}'.")
  endif()
  if(CMAKE_BUILD_TYPE OR DEFINED CMAKE_CXX_STANDARD OR NOT CMAKE_CXX_FLAGS STREQUAL "")
    message(FATAL_ERROR "zipcache changed the build type, the standard or the flags of its parent.")
  endif()
endfunction()

# Each public header must compile alone. One source file for each header, included twice to test its guard;
# a .hpp is compiled as C++, a .cuh as CUDA. Without RTTI, which the library must not need.
add_library(zipcache_header_tests OBJECT)
target_link_libraries(zipcache_header_tests PRIVATE
  zipcache::zipcache $<TARGET_NAME_IF_EXISTS:zipcache::cuda>)
target_compile_options(zipcache_header_tests PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-fno-rtti>)

foreach(path IN LISTS zipcache_headers)
  if(path MATCHES "\\.cuh$")
    if(NOT zipcache_with_cuda)
      continue()
    endif()
    set(extension cu)
  else()
    set(extension cpp)
  endif()
  file(RELATIVE_PATH header "${PROJECT_SOURCE_DIR}/include" "${path}")
  set(source "${CMAKE_CURRENT_BINARY_DIR}/headers/${header}.${extension}")
  # file(CONFIGURE) leaves an unchanged file alone, so that configuring again compiles nothing again.
  file(CONFIGURE OUTPUT "${source}" CONTENT "#include <@header@>\n#include <@header@>\n" @ONLY)
  target_sources(zipcache_header_tests PRIVATE "${source}")
endforeach()

# What the tests, benchmarks and examples need; the library itself needs nothing. An installed package is
# taken first, a pinned release is fetched only where there is none.
include(FetchContent)
find_package(PkgConfig QUIET)

# zipcache_system_library(MISSING NAME MODULE HEADER LIBRARY PACKAGE [SUFFIXES...]): the imported target
# zipcache_dependency::NAME, by pkg-config if it knows MODULE, else by looking for HEADER and LIBRARY. Where
# there is neither, a sentence that says so is appended to the variable MISSING.
function(zipcache_system_library missing name module header library package)
  set(target zipcache_dependency::${name})
  if(TARGET ${target})
    return()
  endif()
  if(PkgConfig_FOUND)
    pkg_check_modules(zipcache_${name} QUIET IMPORTED_TARGET ${module})
  endif()
  if(TARGET PkgConfig::zipcache_${name})
    add_library(${target} INTERFACE IMPORTED GLOBAL)
    target_link_libraries(${target} INTERFACE PkgConfig::zipcache_${name})
    return()
  endif()
  find_path(ZIPCACHE_${name}_INCLUDE_DIR ${header} PATH_SUFFIXES ${ARGN})
  find_library(ZIPCACHE_${name}_LIBRARY ${library})
  mark_as_advanced(ZIPCACHE_${name}_INCLUDE_DIR ZIPCACHE_${name}_LIBRARY)
  if(ZIPCACHE_${name}_INCLUDE_DIR AND ZIPCACHE_${name}_LIBRARY)
    add_library(${target} INTERFACE IMPORTED GLOBAL)
    target_include_directories(${target} INTERFACE "${ZIPCACHE_${name}_INCLUDE_DIR}")
    target_link_libraries(${target} INTERFACE "${ZIPCACHE_${name}_LIBRARY}")
    return()
  endif()
  list(APPEND ${missing} "${name} was not found (on Debian: apt-get install ${package}).")
  set(${missing} "${${missing}}" PARENT_SCOPE)
endfunction()

if(ZIPCACHE_BUILD_TESTS)
  # Both majors will do, see tests/support/catch.hpp; so no version is asked for.
  FetchContent_Declare(Catch2
    GIT_REPOSITORY https://github.com/catchorg/Catch2.git
    GIT_TAG v3.5.2
    GIT_SHALLOW ON
    SYSTEM
    FIND_PACKAGE_ARGS)
  FetchContent_MakeAvailable(Catch2)
  if(DEFINED catch2_SOURCE_DIR)
    list(APPEND CMAKE_MODULE_PATH "${catch2_SOURCE_DIR}/extras")
  else()
    list(APPEND CMAKE_MODULE_PATH "${Catch2_DIR}")
  endif()
endif()

if(ZIPCACHE_BUILD_BENCH)
  set(BENCHMARK_ENABLE_TESTING OFF)
  set(BENCHMARK_ENABLE_INSTALL OFF)
  set(BENCHMARK_ENABLE_WERROR OFF)
  FetchContent_Declare(benchmark
    GIT_REPOSITORY https://github.com/google/benchmark.git
    GIT_TAG v1.8.3
    GIT_SHALLOW ON
    SYSTEM
    FIND_PACKAGE_ARGS)
  FetchContent_MakeAvailable(benchmark)

  # Other libraries that do attention: timed beside ours where they are installed. Each variable says in one
  # sentence what is missing.
  set(zipcache_openblas_missing "")
  zipcache_system_library(zipcache_openblas_missing
    OpenBLAS openblas cblas.h openblas libopenblas-dev openblas)
  set(zipcache_ggml_missing "")
  find_package(ggml CONFIG QUIET)
  if(NOT ggml_FOUND)
    set(zipcache_ggml_missing "ggml was not found (ggml_ROOT may say where it is installed).")
  endif()
  # BitDecoding installs no headers, so this is a checkout, with CUTLASS as its submodule or elsewhere.
  set(zipcache_bitdecoding_missing "")
  find_path(ZIPCACHE_BitDecoding_INCLUDE_DIR flash_fwd_launch_template.h
    HINTS "${BitDecoding_ROOT}/csrc/bit_decode/src" NO_DEFAULT_PATH)
  find_path(ZIPCACHE_CUTLASS_INCLUDE_DIR cute/tensor.hpp
    HINTS "${CUTLASS_ROOT}/include" "${BitDecoding_ROOT}/libs/cutlass/include")
  mark_as_advanced(ZIPCACHE_BitDecoding_INCLUDE_DIR ZIPCACHE_CUTLASS_INCLUDE_DIR)
  if(NOT ZIPCACHE_BitDecoding_INCLUDE_DIR)
    set(zipcache_bitdecoding_missing "BitDecoding was not found (BitDecoding_ROOT may say where its checkout is).")
  elseif(NOT ZIPCACHE_CUTLASS_INCLUDE_DIR)
    set(zipcache_bitdecoding_missing "CUTLASS was not found (CUTLASS_ROOT may say where its checkout is).")
  endif()
endif()

# The language-model example. Its two C libraries are taken from the system; where one is missing the
# example is left out, and zipcache_llama_missing says why in one sentence.
set(zipcache_llama_missing "")
if(ZIPCACHE_BUILD_EXAMPLES AND EXISTS "${PROJECT_SOURCE_DIR}/examples/llama/CMakeLists.txt")
  zipcache_system_library(zipcache_llama_missing OpenBLAS openblas cblas.h openblas libopenblas-dev openblas)
  zipcache_system_library(zipcache_llama_missing PCRE2 libpcre2-8 pcre2.h pcre2-8 libpcre2-dev)

  if(NOT zipcache_llama_missing)
    FetchContent_Declare(CLI11
      GIT_REPOSITORY https://github.com/CLIUtils/CLI11.git
      GIT_TAG v2.4.1
      GIT_SHALLOW ON
      SYSTEM
      FIND_PACKAGE_ARGS)
    FetchContent_Declare(nlohmann_json
      GIT_REPOSITORY https://github.com/nlohmann/json.git
      GIT_TAG v3.11.3
      GIT_SHALLOW ON
      SYSTEM
      FIND_PACKAGE_ARGS)
    FetchContent_MakeAvailable(CLI11 nlohmann_json)
  endif()
endif()

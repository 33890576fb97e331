# Fills the INTERFACE target that adds CUDA to zipcache::zipcache. The project and the installed package
# share this file, because what it asks is known on the consumer's machine only: whether that CMake knows
# C++20 for that CUDA compiler.
function(zipcache_cuda_target target)
  target_link_libraries(${target} INTERFACE zipcache::zipcache CUDA::cudart)
  if("cuda_std_20" IN_LIST CMAKE_CUDA_COMPILE_FEATURES)
    target_compile_features(${target} INTERFACE cuda_std_20)
  else()
    # CMake before 3.26 does not know that nvcc 12 and later speak C++20, and then ignores CUDA_STANDARD 20
    # without a word.
    target_compile_options(${target} INTERFACE "$<$<COMPILE_LANGUAGE:CUDA>:-std=c++20>")
  endif()
endfunction()

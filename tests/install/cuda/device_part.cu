#if __has_include(<zipcache/zipcache.cuh>)
#include <zipcache/zipcache.cuh>
#else
#include <zipcache/zipcache.hpp>
#endif

// zipcache::cuda must have asked nvcc for C++20, which CMake alone may not know how to do.
static_assert(__cplusplus >= 202002L, "CUDA code is not compiled as C++20.");

__global__ void write_version(int* out) { *out = ZIPCACHE_VERSION_MINOR; }

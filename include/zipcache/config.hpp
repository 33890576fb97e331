// The library's only macros. Everything else is C++.
#pragma once

#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error "zipcache: compile without -ffast-math; reordered arithmetic would change the packed bytes"
#endif

#if defined(__CUDACC__)
#define ZIPCACHE_HOST_DEVICE __host__ __device__
#else
#define ZIPCACHE_HOST_DEVICE
#endif

#if defined(__CUDA_ARCH__)
#define ZIPCACHE_UNROLL _Pragma("unroll")
#else
#define ZIPCACHE_UNROLL
#endif

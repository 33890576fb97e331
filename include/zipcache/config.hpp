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

// Unrolls a short loop whole. g++ must be told before it decides what stays in registers: else it
// keeps arrays of vectors in memory. (nvcc's own front end knows no such pragma in host code.)
#if defined(__CUDA_ARCH__)
#define ZIPCACHE_UNROLL _Pragma("unroll")
#elif defined(__GNUC__) && !defined(__clang__) && !defined(__CUDACC__)
#define ZIPCACHE_UNROLL _Pragma("GCC unroll 16")
#else
#define ZIPCACHE_UNROLL
#endif

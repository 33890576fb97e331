// Small arithmetic shared by host and device. Whatever decides a byte is written so that no
// compiler may fuse a product into a sum: the two backends then round alike.
#pragma once

#include <cmath>
#include <cstdint>

#include <zipcache/config.hpp>
#include <zipcache/core/types.hpp>

namespace zipcache {

template <class T>
ZIPCACHE_HOST_DEVICE constexpr T least(T a, T b) {
  return b < a ? b : a;
}

template <class T>
ZIPCACHE_HOST_DEVICE constexpr T most(T a, T b) {
  return a < b ? b : a;
}

template <class T>
ZIPCACHE_HOST_DEVICE constexpr T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

template <class T>
ZIPCACHE_HOST_DEVICE constexpr T round_up(T a, T multiple) {
  return ceil_div(a, multiple) * multiple;
}

/// Correctly rounded quotient, also under nvcc's --use_fast_math.
ZIPCACHE_HOST_DEVICE inline float divide(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fdiv_rn(a, b);
#else
  return a / b;
#endif
}

/// Correctly rounded square root, also under nvcc's --use_fast_math.
ZIPCACHE_HOST_DEVICE inline float square_root(float x) {
#if defined(__CUDA_ARCH__)
  return __fsqrt_rn(x);
#else
  return std::sqrt(x);
#endif
}

ZIPCACHE_HOST_DEVICE inline bool is_finite(float x) {
  return (bits_of(x) & 0x7f800000u) != 0x7f800000u;
}

inline constexpr float log2_e = 1.44269504088896341f;
inline constexpr float ln_2 = 0.69314718055994531f;

/// 2^x for the softmax, relative error below 2e-7 for x in [-126, 127]; smaller x give 0 and NaN
/// gives 0. Branch-free so that a host compiler can vectorize a loop over it.
ZIPCACHE_HOST_DEVICE inline float exp2_poly(float x) {
  const float clamped = x > -126.0f ? (x < 127.0f ? x : 127.0f) : -126.0f;
  // Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits.
  const float shifted = clamped + 12582912.0f;
  const float fraction = clamped - (shifted - 12582912.0f);
  float p = 1.5353362e-4f;
  p = p * fraction + 1.3398874e-3f;
  p = p * fraction + 9.6184373e-3f;
  p = p * fraction + 5.5503324e-2f;
  p = p * fraction + 2.4022648e-1f;
  p = p * fraction + 6.9314720e-1f;
  p = p * fraction + 1.0f;
  const uint32_t exponent = (bits_of(shifted) << 23) + 0x3f800000u;
  const float result = p * float_of(exponent);
  return x > -126.0f ? result : 0.0f;
}

/// A small counter-based generator (SplitMix64): the same numbers on both backends, from a seed and
/// a counter.
ZIPCACHE_HOST_DEVICE inline uint64_t mix64(uint64_t x) {
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

}  // namespace zipcache

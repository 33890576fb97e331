// The 16-bit element types and their conversions, the same bits on host and device.
// `half` is IEEE binary16 and `bfloat16` its brother with float's exponent; both have the layout of
// CUDA's own types, so that a `__half*` may be passed as `half*` through `reinterpret_cast`.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include <zipcache/config.hpp>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace zipcache {

struct half {
  uint16_t bits = 0;
};

struct bfloat16 {
  uint16_t bits = 0;
};

ZIPCACHE_HOST_DEVICE inline uint32_t bits_of(float x) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(x);
#else
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
#endif
}

ZIPCACHE_HOST_DEVICE inline float float_of(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
#endif
}

ZIPCACHE_HOST_DEVICE inline float to_float(float x) { return x; }

ZIPCACHE_HOST_DEVICE inline float to_float(bfloat16 x) {
  return float_of(static_cast<uint32_t>(x.bits) << 16);
}

ZIPCACHE_HOST_DEVICE inline float to_float(half x) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(x.bits));
#else
  // The magnitude is moved into float's fields and multiplied by 2^112, which also makes subnormals
  // normal.
  const uint32_t magnitude = static_cast<uint32_t>(x.bits & 0x7fffu) << 13;
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const float scaled = float_of(magnitude) * float_of(0x77800000u);
  const uint32_t infinite = (x.bits & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u;
  return float_of(bits_of(scaled) | infinite | sign);
#endif
}

namespace detail {

// Round half to even, as the hardware does. A NaN becomes the canonical NaN with its sign lost, as
// on the device.
ZIPCACHE_HOST_DEVICE inline half round_to_half(float x) {
#if defined(__CUDA_ARCH__)
  return half{__half_as_ushort(__float2half_rn(x))};
#else
  const uint32_t bits = bits_of(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return half{0x7fffu};
  if (magnitude >= 0x477ff000u)
    return half{static_cast<uint16_t>(sign | 0x7c00u)};  // rounds to infinity
  if (magnitude < 0x38800000u) {
    // Subnormal: adding 0.5 leaves the rounded multiple of 2^-24 in the low mantissa bits.
    const uint32_t shifted = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;
    return half{static_cast<uint16_t>(sign | shifted)};
  }
  const uint32_t odd = (magnitude >> 13) & 1u;
  const uint32_t rounded = (magnitude - 0x38000000u + 0xfffu + odd) >> 13;
  return half{static_cast<uint16_t>(sign | rounded)};
#endif
}

ZIPCACHE_HOST_DEVICE inline bfloat16 round_to_bfloat16(float x) {
  const uint32_t bits = bits_of(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return bfloat16{0x7fffu};
  const uint32_t odd = (bits >> 16) & 1u;
  return bfloat16{static_cast<uint16_t>((bits + 0x7fffu + odd) >> 16)};
}

}  // namespace detail

/// Rounds to `Element` (float, half or bfloat16), half to even.
template <class Element>
ZIPCACHE_HOST_DEVICE inline Element from_float(float x) {
  if constexpr (std::is_same_v<Element, half>) {
    return detail::round_to_half(x);
  } else if constexpr (std::is_same_v<Element, bfloat16>) {
    return detail::round_to_bfloat16(x);
  } else {
    static_assert(std::is_same_v<Element, float>,
                  "zipcache: an element is float, half or bfloat16");
    return x;
  }
}

/// The 16-bit type in which a cache of `Element` keeps its window, its 16-bit class and its
/// parameters. float is kept as half: the cache's own precision is 16 bits, and input beyond
/// +-65504 is refused.
template <class Element>
using storage_element = std::conditional_t<std::is_same_v<Element, bfloat16>, bfloat16, half>;

template <class Element>
inline constexpr float largest_finite = std::is_same_v<Element, half> ? 65504.0f : 3.38953139e38f;

template <class Element>
concept cache_element = std::is_same_v<Element, float> || std::is_same_v<Element, half> ||
    std::is_same_v<Element, bfloat16>;

}  // namespace zipcache

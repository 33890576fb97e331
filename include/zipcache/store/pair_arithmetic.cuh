// Arithmetic of 16-bit values that the encoder of tiles and the statistics of segments share:
// ranges of two values at a time, and exact quotients by a channel's magnitude.
// @equality same_bytes
#pragma once

#include <cstdint>
#include <type_traits>

#include <zipcache/core/cuda.cuh>
#include <zipcache/core/numerics.hpp>
#include <zipcache/core/types.hpp>
#include <zipcache/store/encode.cuh>

namespace zipcache::detail {

// --- pairs of 16-bit values
// -----------------------------------------------------------------------

inline constexpr uint32_t nan_pair = 0x7fff7fffu;  ///< two NaNs, as half and as bfloat16

/// The values themselves, NaN for those that are not finite: x * 0 + x.
template <class Storage>
__device__ __forceinline__ uint32_t finite_pair(uint32_t x) {
  uint32_t result;
  if constexpr (std::is_same_v<Storage, half>) {
    asm("fma.rn.f16x2 %0, %1, %2, %1;" : "=r"(result) : "r"(x), "r"(0u));
  } else {
    asm("fma.rn.bf16x2 %0, %1, %2, %1;" : "=r"(result) : "r"(x), "r"(0u));
  }
  return result;
}

/// x * 0 + sum: a zero sum stays zero as long as x is finite, and becomes NaN for good when not.
template <class Storage>
__device__ __forceinline__ uint32_t add_zero_times(uint32_t x, uint32_t sum) {
  uint32_t result;
  if constexpr (std::is_same_v<Storage, half>) {
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(x), "r"(0u), "r"(sum));
  } else {
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(x), "r"(0u), "r"(sum));
  }
  return result;
}

/// The smaller ones of two pairs; NaN where both are NaN.
template <class Storage>
__device__ __forceinline__ uint32_t lower_pair(uint32_t a, uint32_t b) {
  uint32_t result;
  if constexpr (std::is_same_v<Storage, half>) {
    asm("min.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  } else {
    asm("min.bf16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  }
  return result;
}

template <class Storage>
__device__ __forceinline__ uint32_t higher_pair(uint32_t a, uint32_t b) {
  uint32_t result;
  if constexpr (std::is_same_v<Storage, half>) {
    asm("max.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  } else {
    asm("max.bf16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  }
  return result;
}

/// The same, NaN where one is.
template <class Storage>
__device__ __forceinline__ uint32_t lower_pair_or_nan(uint32_t a, uint32_t b) {
  uint32_t result;
  if constexpr (std::is_same_v<Storage, half>) {
    asm("min.NaN.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  } else {
    asm("min.NaN.bf16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  }
  return result;
}

template <class Storage>
__device__ __forceinline__ uint32_t higher_pair_or_nan(uint32_t a, uint32_t b) {
  uint32_t result;
  if constexpr (std::is_same_v<Storage, half>) {
    asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  } else {
    asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  }
  return result;
}

/// As higher_pair_or_nan(a, magnitude_pair(x)), for which the machine has one instruction.
template <class Storage>
__device__ __forceinline__ uint32_t higher_magnitude_or_nan(uint32_t a, uint32_t x) {
  uint32_t result;
  if constexpr (std::is_same_v<Storage, half>) {
    asm("{ .reg .b32 m; abs.f16x2 m, %2; max.NaN.f16x2 %0, %1, m; }"
        : "=r"(result)
        : "r"(a), "r"(x));
  } else {
    asm("{ .reg .b32 m; abs.bf16x2 m, %2; max.NaN.bf16x2 %0, %1, m; }"
        : "=r"(result)
        : "r"(a), "r"(x));
  }
  return result;
}

__device__ __forceinline__ uint32_t magnitude_pair(uint32_t x) { return x & 0x7fff7fffu; }

template <class Storage>
__device__ __forceinline__ float first_of(uint32_t pair) {
  return to_float(Storage{static_cast<uint16_t>(pair & 0xffffu)});
}
template <class Storage>
__device__ __forceinline__ float second_of(uint32_t pair) {
  return to_float(Storage{static_cast<uint16_t>(pair >> 16)});
}

/// Ranges of 16-bit values, two at a time; NaN: none yet.
struct pair_range {
  uint32_t lowest = nan_pair;
  uint32_t highest = nan_pair;
};

template <class Storage>
__device__ __forceinline__ void include_pair(pair_range& range, uint32_t x) {
  const uint32_t finite = finite_pair<Storage>(x);
  range.lowest = lower_pair<Storage>(range.lowest, finite);
  range.highest = higher_pair<Storage>(range.highest, finite);
}

/// The same ranges where everything is known to be finite but for a test at the end: values that
/// are not finite stay in the range.
template <class Storage>
struct unchecked_pair_range {
  static constexpr uint32_t largest = std::is_same_v<Storage, half> ? 0x7bff7bffu : 0x7f7f7f7fu;
  uint32_t lowest = largest;
  uint32_t highest = largest | 0x80008000u;

  __device__ __forceinline__ void include(uint32_t x) {
    lowest = lower_pair_or_nan<Storage>(lowest, x);
    highest = higher_pair_or_nan<Storage>(highest, x);
  }
  __device__ __forceinline__ bool is_finite() const {
    return magnitude_pair(add_zero_times<Storage>(lowest, add_zero_times<Storage>(highest, 0u))) ==
           0u;
  }
};

/// The range of one or several extremes in float, NaN being none; as `include`, zeros are +0.
__device__ __forceinline__ value_range range_of(float lowest, float highest) {
  const value_range none;
  return {fminf(none.lowest, lowest) + 0.0f, fmaxf(none.highest, highest) + 0.0f};
}

// --- quotients
// ------------------------------------------------------------------------------------

/// 1 / c as the sum of two floats. Exact division by them, for 16-bit x and c: x / c is never
/// closer to the middle of two floats than 2^-12 of their distance, because x and c have 11 bits at
/// most; x * high + RN(x * low), before its one rounding, is off by 2^-22 of that distance at most.
/// So fma(x, high, x * low) is the correctly rounded quotient wherever nothing underflows: for half
/// always, for bfloat16 from |x| = 2^-28 on (c is 2^64 at most); and zeros stay zeros.
struct channel_divisor {
  float high;
  float low;
};

__device__ __forceinline__ channel_divisor divisor_of(float c) {
  const float high = __frcp_rn(c);
  return {high, __fmul_rn(__fmaf_rn(-high, c, 1.0f), high)};
}

/// Whether `quotient` may be used for x; what is not finite is found otherwise.
template <class Storage>
__device__ __forceinline__ bool divides_exactly(float x) {
  return std::is_same_v<Storage, half> || std::fabs(x) >= 3.7252903e-9f || x == 0.0f;
}

}  // namespace zipcache::detail

// The codes of regular tiles (regular_tile.cuh): affine<Bits>::quantize without the care that few
// values need, and why the codes are the same.
//
// A position is (x - min) / step before it is rounded. A word's codes are summed up in a float:
// adding a position to a multiple of 2^Bits rounds it half to even, as affine<Bits>::quantize does,
// and leaves the sum ready for the next field: two instructions of the float units a code, where
// shifts and adds would wait for the integer units.
// @equality same_bytes
#pragma once

#include <cstdint>
#include <type_traits>

#include <zipcache/core/numerics.hpp>
#include <zipcache/quantize/compact_pairs.hpp>
#include <zipcache/store/pair_arithmetic.cuh>

namespace zipcache::detail {

// --- sums of codes
// ---------------------------------------------------------------------------------

/// 1.5 * 2^23: sums with it that stay between 2^23 and 2^24 are integers, which their low bits
/// hold.
inline constexpr float sum_base = 12582912.0f;

/// base + codes -> base + codes * 2^Bits. Exact.
template <int Bits>
__device__ __forceinline__ float next_field(float sum) {
  constexpr float factor = static_cast<float>(1 << Bits);
  return __fmaf_rn(sum, factor, -(factor - 1.0f) * sum_base);
}

/// The word whose halves are the low bits of two sums.
__device__ __forceinline__ uint32_t word_of_sums(float low, float high) {
  return __byte_perm(bits_of(low), bits_of(high), 0x5410);
}

/// x * y + z, clamped to [0, 1]; NaN becomes 0.
__device__ __forceinline__ float fma_clamped(float x, float y, float z) {
  float result;
  asm("fma.rn.sat.f32 %0, %1, %2, %3;" : "=f"(result) : "f"(x), "f"(y), "f"(z));
  return result;
}
__device__ __forceinline__ float multiply_clamped(float x, float y) {
  float result;
  asm("mul.rn.sat.f32 %0, %1, %2;" : "=f"(result) : "f"(x), "f"(y));
  return result;
}
__device__ __forceinline__ float lower_or_nan(float a, float b) {
  float result;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
}
__device__ __forceinline__ float higher_or_nan(float a, float b) {
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
}

// --- positions
// -------------------------------------------------------------------------------------

/// Whether the values of a range have codes without being clamped: -1/2 and less than max_code +
/// 1/2 are rounded to the end codes. Positions rise with the values.
template <int Bits>
__device__ __forceinline__ bool needs_no_clamp(float lowest, float highest, quantize_scale scale) {
  constexpr float limit = static_cast<float>(affine<Bits>::max_code) + 0.5f;
  return __fmul_rn(__fsub_rn(lowest, scale.min), scale.inverse_step) >= -0.5f &&
         __fmul_rn(__fsub_rn(highest, scale.min), scale.inverse_step) < limit;
}

/// Codes of the values themselves by pairs that need no clamp, with the roundings of
/// affine<Bits>::quantize.
template <int Bits>
struct plain_codes {
  float min;
  float inverse;

  __device__ __forceinline__ explicit plain_codes(quantize_scale kept)
      : min(kept.min), inverse(kept.inverse_step) {}
  /// What is kept of a pair's scale for the constructor.
  __device__ __forceinline__ static quantize_scale keep(quantize_scale scale) { return scale; }
  /// `sum` and the code of x.
  __device__ __forceinline__ float add(float x, channel_divisor, float sum) const {
    return __fadd_rn(__fmul_rn(__fsub_rn(x, min), inverse), sum);
  }
};

/// Codes of quotients x / c by compact pairs, whose step has 4 bits and whose minimum is a multiple
/// of step / 2^(4 - Bits). A value and its c have 11 bits, so that x / c is either half way between
/// two codes or at least 2^-17 step away from there.
template <int Bits>
struct quotient_codes;

/// 4 bits. x * RN(1 / c) + (2^g - min), 2^g being 32 to 64 steps, is rounded once, to a multiple of
/// 2^-18 or 2^-17 step; the product is off by 2^-20 step at most. So what is half way between two
/// codes comes out exactly, and anything else stays on its side of there. (Half way at x = 0, with
/// nearer values beside it, there is none: zero is a code.) Subtracting 2^g again costs no
/// rounding, since its product with 1 / step is exact, and the position is rounded as in
/// affine<4>::quantize.
template <>
struct quotient_codes<4> {
  float origin;   ///< 2^g - min
  float inverse;  ///< 1 / (16 step)
  float offset;   ///< -2^g / (16 step)

  /// 2^g / step is 32 times the fraction of 1 / step.
  __device__ __forceinline__ explicit quotient_codes(quantize_scale kept)
      : origin(kept.min),
        inverse(kept.inverse_step),
        offset(float_of((bits_of(kept.inverse_step) & 0x007fffffu) | 0xc0000000u)) {}
  __device__ __forceinline__ static quantize_scale keep(quantize_scale scale) {
    // 2^(5 - e) where 1 / step has exponent e. Nothing where 1 / step is 0: every code is 0 then.
    const float power = float_of(0x81800000u - (bits_of(scale.inverse_step) & 0x7f800000u));
    return {power - scale.min, scale.inverse_step * 0.0625f};
  }
  __device__ __forceinline__ float add(float x, channel_divisor c, float sum) const {
    const float position = fma_clamped(__fmaf_rn(x, c.high, origin), inverse, offset);
    return __fmaf_rn(fminf(position, 0.9375f), 16.0f, sum);
  }
};

/// 2 bits: zero may lie half way between two codes, so the quotient is that of pair_arithmetic.cuh.
/// Quotients of bfloat16 for which it underflows are below 2^-100, too small to move a position.
template <>
struct quotient_codes<2> {
  float min;
  float inverse;  ///< 1 / (4 step)

  __device__ __forceinline__ explicit quotient_codes(quantize_scale kept)
      : min(kept.min), inverse(kept.inverse_step) {}
  __device__ __forceinline__ static quantize_scale keep(quantize_scale scale) {
    return {scale.min, scale.inverse_step * 0.25f};
  }
  __device__ __forceinline__ float add(float x, channel_divisor c, float sum) const {
    const float quotient = __fmaf_rn(x, c.high, __fmul_rn(x, c.low));
    return __fmaf_rn(multiply_clamped(__fsub_rn(quotient, min), inverse), 4.0f, sum);
  }
};

/// How the codes of a side's regular tiles are made.
template <class Granularity, int Bits>
struct regular_codes {
  static constexpr bool divides = Granularity::has_channel_magnitudes;
  using type = std::conditional_t<divides, quotient_codes<Bits>, plain_codes<Bits>>;
};

}  // namespace zipcache::detail

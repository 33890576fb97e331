// Uniform asymmetric quantization: the arithmetic of one group, one value, one code.
//   step = (max - min) / (2^bits - 1),  code = clamp(round((x - min) / step), 0, 2^bits - 1),  x^ =
//   code * step + min
// (ZipCache, section 3.1.) `min` and `step` are rounded to 16 bits first and codes are computed
// with the rounded values, so that quantize(dequantize(code)) = code. No loops and no memory here;
// both backends call these functions, and no product feeds a sum on the way to a code, so neither
// compiler can fuse them differently.
#pragma once

#include <cmath>
#include <cstdint>

#include <zipcache/core/numerics.hpp>

namespace zipcache {

/// Smallest and largest finite value of a group. Empty when `lowest > highest`.
struct value_range {
  float lowest = 3.402823466e38f;
  float highest = -3.402823466e38f;

  ZIPCACHE_HOST_DEVICE bool empty() const { return lowest > highest; }
};

/// The range with `x` in it. The result does not depend on the order of the calls; non-finite
/// values are left out, so that they spoil no other value of their group. Adding +0 turns -0 into
/// +0, the only pair whose order would show.
ZIPCACHE_HOST_DEVICE inline value_range include(value_range r, float x) {
  if (!is_finite(x)) return r;
  const float value = x + 0.0f;
  r.lowest = value < r.lowest ? value : r.lowest;
  r.highest = value > r.highest ? value : r.highest;
  return r;
}

/// The range that two parts of a group have together.
ZIPCACHE_HOST_DEVICE inline value_range merge(value_range a, value_range b) {
  return {a.lowest < b.lowest ? a.lowest : b.lowest, a.highest > b.highest ? a.highest : b.highest};
}

/// The larger of `largest` and |x|; non-finite values are left out.
ZIPCACHE_HOST_DEVICE inline float include_magnitude(float largest, float x) {
  const float magnitude = std::fabs(x);
  return is_finite(magnitude) && magnitude > largest ? magnitude : largest;
}

/// What a group stores, in 16 bits each.
template <class Storage>
struct affine_params {
  Storage step;
  Storage min;
};
static_assert(sizeof(affine_params<half>) == 4, "zipcache: a group's parameters are four bytes");

/// The parameters widened to float, with the reciprocal that quantizing needs.
struct affine_scale {
  float step = 0.0f;
  float min = 0.0f;
  float inverse_step = 0.0f;  ///< 0 where step is 0, so that every code is 0
};

template <int Bits>
struct affine {
  static_assert(Bits >= 1 && Bits <= 8, "zipcache: uniform codes have 1 to 8 bits");
  static constexpr int max_code = (1 << Bits) - 1;

  /// Parameters of a group; an empty range gives zeros. A step that could not be told apart from
  /// zero at the group's magnitude (below 2^-21 of it, or not a normal float) is zero: every value
  /// then decodes to `min`, which is within the group's range. A step beyond the 16-bit type
  /// saturates there.
  template <class Storage>
  ZIPCACHE_HOST_DEVICE static affine_params<Storage> fit(value_range r) {
    if (r.empty()) return {from_float<Storage>(0.0f), from_float<Storage>(0.0f)};
    const float limit = largest_finite<Storage>;
    const float span = r.highest - r.lowest;
    // Two finite floats can be further apart than the largest one; then half of each is subtracted.
    const float step = is_finite(span) ? divide(span, static_cast<float>(max_code))
                                       : divide(r.highest * 0.5f - r.lowest * 0.5f,
                                                0.5f * static_cast<float>(max_code));
    const float magnitude = most(std::fabs(r.lowest), std::fabs(r.highest));
    Storage stored_step = from_float<Storage>(step < limit ? step : limit);
    const float widened = to_float(stored_step);
    if (!(widened >= 1.17549435e-38f) || widened < magnitude * 4.76837158e-7f)
      stored_step = from_float<Storage>(0.0f);
    const float min = r.lowest > -limit ? (r.lowest < limit ? r.lowest : limit) : -limit;
    return {stored_step, from_float<Storage>(min)};
  }

  template <class Storage>
  ZIPCACHE_HOST_DEVICE static affine_scale widen(affine_params<Storage> p) {
    const float step = to_float(p.step);
    return {step, to_float(p.min), step > 0.0f ? divide(1.0f, step) : 0.0f};
  }

  /// Rounds half to even and clamps. NaN becomes code 0 (the comparison is false), the infinities
  /// the end codes.
  ZIPCACHE_HOST_DEVICE static uint32_t quantize(float x, affine_scale s) {
    const float distance = x - s.min;
    // As in fit: halves where the distance is beyond the largest float.
    const float position = is_finite(distance)
                               ? distance * s.inverse_step
                               : (x * 0.5f - s.min * 0.5f) * (2.0f * s.inverse_step);
    const float clamped =
        position > 0.0f
            ? (position < static_cast<float>(max_code) ? position : static_cast<float>(max_code))
            : 0.0f;
    // Adding 2^23 rounds half to even and leaves the integer in the low bits.
    return bits_of(clamped + 8388608.0f) & static_cast<uint32_t>(max_code);
  }

  ZIPCACHE_HOST_DEVICE static float dequantize(uint32_t code, affine_scale s) {
    return std::fma(static_cast<float>(code), s.step, s.min);
  }
};

/// The magnitude that channel-separable quantization divides channel j by, c_j = sqrt(max_i |x_ij|)
/// (ZipCache, section 3.2), rounded to the 16 bits in which it is stored. A channel of zeros has
/// magnitude 1.
template <class Storage>
ZIPCACHE_HOST_DEVICE inline Storage channel_magnitude(float largest_absolute) {
  const float root = square_root(largest_absolute);
  const Storage stored = from_float<Storage>(root);
  return to_float(stored) > 0.0f ? stored : from_float<Storage>(1.0f);
}

}  // namespace zipcache

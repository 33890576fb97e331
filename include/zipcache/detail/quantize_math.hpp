// The inner loops of quantizing on the CPU, over a row of channels. The overloads for scalar_isa
// are loops over the functions of affine.hpp, which define the result; quantize_math_avx2.hpp
// overloads them with vectors of the same operations, so every instruction set gives the same
// bytes. `count` is a multiple of 16.
#pragma once

#include <cstdint>

#include <zipcache/core/numerics.hpp>
#include <zipcache/core/types.hpp>
#include <zipcache/detail/cpu_features.hpp>
#include <zipcache/quantize/affine.hpp>

namespace zipcache::detail {

/// Ranges of channels, apart, so that neighbouring channels fill a vector. lowest, highest [count]
template <class Element>
void include_row(scalar_isa, const Element* row, int32_t count, float* lowest, float* highest) {
  for (int32_t channel = 0; channel < count; ++channel) {
    const value_range range = include({lowest[channel], highest[channel]}, to_float(row[channel]));
    lowest[channel] = range.lowest;
    highest[channel] = range.highest;
  }
}

/// The larger of largest[channel] and |row[channel]|.
template <class Element>
void include_magnitudes(scalar_isa, const Element* row, int32_t count, float* largest) {
  for (int32_t channel = 0; channel < count; ++channel)
    largest[channel] = include_magnitude(largest[channel], to_float(row[channel]));
}

/// out[channel] = row[channel] / magnitudes[channel].
template <class Element>
void divide_row(scalar_isa, const Element* row, const float* magnitudes, int32_t count,
                float* out) {
  for (int32_t channel = 0; channel < count; ++channel)
    out[channel] = divide(to_float(row[channel]), magnitudes[channel]);
}

/// The range of one group of values.
inline value_range range_of(scalar_isa, const float* x, int32_t count) {
  value_range range;
  for (int32_t i = 0; i < count; ++i) range = include(range, x[i]);
  return range;
}

/// Codes of values that share a pair.
template <int Bits>
void quantize_group(scalar_isa, const float* x, int32_t count, affine_scale scale, uint8_t* codes) {
  for (int32_t i = 0; i < count; ++i)
    codes[i] = static_cast<uint8_t>(affine<Bits>::quantize(x[i], scale));
}

/// Codes of values that have a pair each, of which `mins` and `inverse_steps` are given.
template <int Bits>
void quantize_each(scalar_isa, const float* x, int32_t count, const float* mins,
                   const float* inverse_steps, uint8_t* codes) {
  for (int32_t i = 0; i < count; ++i)
    codes[i] =
        static_cast<uint8_t>(affine<Bits>::quantize(x[i], {0.0f, mins[i], inverse_steps[i]}));
}

/// What quantize_each needs of `count` pairs.
template <class Storage>
void widen_pairs(scalar_isa, const affine_params<Storage>* pairs, int32_t count, float* mins,
                 float* inverse_steps) {
  for (int32_t i = 0; i < count; ++i) {
    const affine_scale scale = affine<1>::widen(pairs[i]);  // the same for any number of bits
    mins[i] = scale.min;
    inverse_steps[i] = scale.inverse_step;
  }
}

}  // namespace zipcache::detail

#if ZIPCACHE_X86_VECTORS
#include <zipcache/detail/quantize_math_avx2.hpp>
#endif

namespace zipcache::detail {

// The same names without a tag use the set that active_cpu() names.

template <class Element>
void include_row(const Element* row, int32_t count, float* lowest, float* highest) {
  with_isa([&](auto isa) { include_row(isa, row, count, lowest, highest); });
}
template <class Element>
void include_magnitudes(const Element* row, int32_t count, float* largest) {
  with_isa([&](auto isa) { include_magnitudes(isa, row, count, largest); });
}
template <class Element>
void divide_row(const Element* row, const float* magnitudes, int32_t count, float* out) {
  with_isa([&](auto isa) { divide_row(isa, row, magnitudes, count, out); });
}
inline value_range range_of(const float* x, int32_t count) {
  return with_isa([&](auto isa) { return range_of(isa, x, count); });
}
template <int Bits>
void quantize_group(const float* x, int32_t count, affine_scale scale, uint8_t* codes) {
  with_isa([&](auto isa) { quantize_group<Bits>(isa, x, count, scale, codes); });
}
template <int Bits>
void quantize_each(const float* x, int32_t count, const float* mins, const float* inverse_steps,
                   uint8_t* codes) {
  with_isa([&](auto isa) { quantize_each<Bits>(isa, x, count, mins, inverse_steps, codes); });
}
template <class Storage>
void widen_pairs(const affine_params<Storage>* pairs, int32_t count, float* mins,
                 float* inverse_steps) {
  with_isa([&](auto isa) { widen_pairs(isa, pairs, count, mins, inverse_steps); });
}

}  // namespace zipcache::detail

// The inner loops of quantize_math.hpp in AVX2 with F16C. Included by quantize_math.hpp. Operation
// by operation what affine.hpp does: min and max have the operand second that is to be taken for
// NaN, and no compiler can fuse a product into a sum, since a comparison lies between them or the
// product is by a power of two.
#pragma once

#include <cstdint>

#include <immintrin.h>

#include <zipcache/core/types.hpp>
#include <zipcache/detail/block_math_avx2.hpp>
#include <zipcache/detail/cpu_features.hpp>
#include <zipcache/quantize/affine.hpp>

namespace zipcache::detail {

ZIPCACHE_AVX2 inline __m256 magnitude8(__m256 x) {
  return _mm256_and_ps(x, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff)));
}
/// All ones where is_finite holds.
ZIPCACHE_AVX2 inline __m256 are_finite8(__m256 x) {
  return _mm256_cmp_ps(magnitude8(x), _mm256_set1_ps(3.402823466e38f), _CMP_LE_OQ);
}

/// Eight ranges, and `include` of them.
struct range8 {
  __m256 lowest, highest;
};
ZIPCACHE_AVX2 inline range8 empty_range8() {
  return {_mm256_set1_ps(value_range{}.lowest), _mm256_set1_ps(value_range{}.highest)};
}
ZIPCACHE_AVX2 inline range8 include8(range8 r, __m256 x) {
  const __m256 finite = are_finite8(x);
  const __m256 value = _mm256_add_ps(x, _mm256_setzero_ps());
  const range8 empty = empty_range8();
  return {_mm256_min_ps(_mm256_blendv_ps(empty.lowest, value, finite), r.lowest),
          _mm256_max_ps(_mm256_blendv_ps(empty.highest, value, finite), r.highest)};
}

template <class Element>
ZIPCACHE_AVX2 inline void include_row(avx2_isa, const Element* row, int32_t count, float* lowest,
                                      float* highest) {
  for (int32_t i = 0; i < count; i += 8) {
    const range8 range = include8({load8(lowest + i), load8(highest + i)}, load8(row + i));
    _mm256_storeu_ps(lowest + i, range.lowest);
    _mm256_storeu_ps(highest + i, range.highest);
  }
}

template <class Element>
ZIPCACHE_AVX2 inline void include_magnitudes(avx2_isa, const Element* row, int32_t count,
                                             float* largest) {
  for (int32_t i = 0; i < count; i += 8) {
    const __m256 magnitude = magnitude8(load8(row + i));
    const __m256 counted = _mm256_and_ps(magnitude, are_finite8(magnitude));
    _mm256_storeu_ps(largest + i, _mm256_max_ps(counted, load8(largest + i)));
  }
}

template <class Element>
ZIPCACHE_AVX2 inline void divide_row(avx2_isa, const Element* row, const float* magnitudes,
                                     int32_t count, float* out) {
  for (int32_t i = 0; i < count; i += 8)
    _mm256_storeu_ps(out + i, _mm256_div_ps(load8(row + i), load8(magnitudes + i)));
}

/// The result does not depend on the order, so the eight ranges may be merged in any.
ZIPCACHE_AVX2 inline value_range range_of(avx2_isa, const float* x, int32_t count) {
  range8 ranges = empty_range8();
  for (int32_t i = 0; i < count; i += 8) ranges = include8(ranges, load8(x + i));
  alignas(32) float lowest[8], highest[8];
  _mm256_store_ps(lowest, ranges.lowest);
  _mm256_store_ps(highest, ranges.highest);
  value_range range;
  for (int i = 0; i < 8; ++i) range = merge(range, {lowest[i], highest[i]});
  return range;
}

/// affine<Bits>::quantize of eight values.
template <int Bits>
ZIPCACHE_AVX2 inline __m256i quantize8(__m256 x, __m256 min, __m256 inverse_step) {
  const __m256 distance = _mm256_sub_ps(x, min);
  __m256 position = _mm256_mul_ps(distance, inverse_step);
  const __m256 finite = are_finite8(distance);
  if (_mm256_movemask_ps(finite) != 0xff) {
    const __m256 half_one = _mm256_set1_ps(0.5f);
    const __m256 halves = _mm256_sub_ps(_mm256_mul_ps(x, half_one), _mm256_mul_ps(min, half_one));
    const __m256 twice = _mm256_mul_ps(_mm256_set1_ps(2.0f), inverse_step);
    position = _mm256_blendv_ps(_mm256_mul_ps(halves, twice), position, finite);
  }
  const __m256 largest = _mm256_set1_ps(static_cast<float>(affine<Bits>::max_code));
  const __m256 clamped = _mm256_min_ps(_mm256_max_ps(position, _mm256_setzero_ps()), largest);
  const __m256 rounded = _mm256_add_ps(clamped, _mm256_set1_ps(8388608.0f));
  return _mm256_and_si256(_mm256_castps_si256(rounded), _mm256_set1_epi32(affine<Bits>::max_code));
}

/// Sixteen codes as bytes.
ZIPCACHE_AVX2 inline void store_codes16(__m256i first, __m256i second, uint8_t* codes) {
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(first, second), 0xd8);
  _mm_storeu_si128(
      reinterpret_cast<__m128i*>(codes),
      _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}

template <int Bits>
ZIPCACHE_AVX2 inline void quantize_group(avx2_isa, const float* x, int32_t count,
                                         affine_scale scale, uint8_t* codes) {
  const __m256 min = _mm256_set1_ps(scale.min);
  const __m256 inverse_step = _mm256_set1_ps(scale.inverse_step);
  for (int32_t i = 0; i < count; i += 16)
    store_codes16(quantize8<Bits>(load8(x + i), min, inverse_step),
                  quantize8<Bits>(load8(x + i + 8), min, inverse_step), codes + i);
}

template <int Bits>
ZIPCACHE_AVX2 inline void quantize_each(avx2_isa, const float* x, int32_t count, const float* mins,
                                        const float* inverse_steps, uint8_t* codes) {
  for (int32_t i = 0; i < count; i += 16)
    store_codes16(
        quantize8<Bits>(load8(x + i), load8(mins + i), load8(inverse_steps + i)),
        quantize8<Bits>(load8(x + i + 8), load8(mins + i + 8), load8(inverse_steps + i + 8)),
        codes + i);
}

/// Eight (step, min), of which the step lies in the low 16 bits.
ZIPCACHE_AVX2 inline __m256 widen_low8(__m256i pairs, half) {
  const __m256i low = _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff));
  return _mm256_cvtph_ps(
      _mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1)));
}
ZIPCACHE_AVX2 inline __m256 widen_low8(__m256i pairs, bfloat16) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
}

template <class Storage>
ZIPCACHE_AVX2 inline void widen_pairs(avx2_isa, const affine_params<Storage>* pairs, int32_t count,
                                      float* mins, float* inverse_steps) {
  for (int32_t i = 0; i < count; i += 8) {
    const __m256i eight = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(pairs + i));
    const __m256 steps = widen_low8(eight, Storage{});
    const __m256 positive = _mm256_cmp_ps(steps, _mm256_setzero_ps(), _CMP_GT_OQ);
    _mm256_storeu_ps(mins + i, widen_low8(_mm256_srli_epi32(eight, 16), Storage{}));
    _mm256_storeu_ps(inverse_steps + i,
                     _mm256_and_ps(_mm256_div_ps(_mm256_set1_ps(1.0f), steps), positive));
  }
}

}  // namespace zipcache::detail

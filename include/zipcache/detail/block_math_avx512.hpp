// The inner loops of block_math.hpp in AVX-512. Included by block_math.hpp, after the AVX2 ones,
// which stay in use where wider vectors gain nothing.
#pragma once

#include <cstdint>

#include <immintrin.h>

#include <zipcache/detail/block_math_avx2.hpp>
#include <zipcache/detail/cpu_features.hpp>

// g++ 12 takes the operand that its own intrinsics leave undefined for an uninitialized variable.
#if !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace zipcache::detail {

/// exp2_poly of sixteen numbers.
ZIPCACHE_AVX512 inline __m512 exp2_poly16(__m512 x) {
  const __m512 lowest = _mm512_set1_ps(-126.0f);
  const __mmask16 above = _mm512_cmp_ps_mask(x, lowest, _CMP_GT_OQ);
  const __m512 clamped =
      _mm512_min_ps(_mm512_mask_mov_ps(lowest, above, x), _mm512_set1_ps(127.0f));
  const __m512 magic = _mm512_set1_ps(12582912.0f);
  const __m512 shifted = _mm512_add_ps(clamped, magic);
  const __m512 fraction = _mm512_sub_ps(clamped, _mm512_sub_ps(shifted, magic));
  __m512 p = _mm512_set1_ps(1.5353362e-4f);
  p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(1.3398874e-3f));
  p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(9.6184373e-3f));
  p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(5.5503324e-2f));
  p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(2.4022648e-1f));
  p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(6.9314720e-1f));
  p = _mm512_fmadd_ps(p, fraction, _mm512_set1_ps(1.0f));
  const __m512i exponent = _mm512_add_epi32(_mm512_slli_epi32(_mm512_castps_si512(shifted), 23),
                                            _mm512_set1_epi32(0x3f800000));
  return _mm512_maskz_mul_ps(above, p, _mm512_castsi512_ps(exponent));
}

/// Up to eight rows at once: 16 accumulators, so that a key is loaded once for all of them.
template <int Rows>
ZIPCACHE_AVX512 inline void add_scores_avx512(const float* q, const float* keys, int32_t head_dim,
                                              int32_t first, int32_t last, float* scores) {
  __m512 sums[Rows][2];
  for (int row = 0; row < Rows; ++row) sums[row][0] = sums[row][1] = _mm512_setzero_ps();
  for (int32_t channel = first; channel < last; ++channel) {
    const __m512 low = _mm512_loadu_ps(keys + channel * 32);
    const __m512 high = _mm512_loadu_ps(keys + channel * 32 + 16);
    for (int row = 0; row < Rows; ++row) {
      const __m512 factor = _mm512_set1_ps(q[row * head_dim + channel]);
      sums[row][0] = _mm512_fmadd_ps(factor, low, sums[row][0]);
      sums[row][1] = _mm512_fmadd_ps(factor, high, sums[row][1]);
    }
  }
  for (int row = 0; row < Rows; ++row) {
    for (int part = 0; part < 2; ++part) {
      float* target = scores + row * 32 + 16 * part;
      _mm512_storeu_ps(target, _mm512_add_ps(_mm512_loadu_ps(target), sums[row][part]));
    }
  }
}

ZIPCACHE_AVX512 inline void add_scores(avx512_isa, const float* q, const float* keys, int32_t rows,
                                       int32_t head_dim, int32_t first, int32_t last,
                                       float* scores) {
  int32_t row = 0;
  for (; row + 8 <= rows; row += 8)
    add_scores_avx512<8>(q + row * head_dim, keys, head_dim, first, last, scores + row * 32);
  for (; row + 4 <= rows; row += 4)
    add_scores_avx512<4>(q + row * head_dim, keys, head_dim, first, last, scores + row * 32);
  for (; row < rows; ++row)
    add_scores_avx512<1>(q + row * head_dim, keys, head_dim, first, last, scores + row * 32);
}

/// Rows x 16 * Parts channels in registers over all 32 tokens.
template <int Rows, int Parts>
ZIPCACHE_AVX512 inline void add_weighted_avx512(const float* weights, const float* values,
                                                int32_t head_dim, float* out) {
  __m512 sums[Rows][Parts];
  for (int row = 0; row < Rows; ++row)
    for (int part = 0; part < Parts; ++part)
      sums[row][part] = _mm512_loadu_ps(out + row * head_dim + 16 * part);
  for (int32_t token = 0; token < 32; ++token) {
    __m512 value[Parts];
    for (int part = 0; part < Parts; ++part)
      value[part] = _mm512_loadu_ps(values + token * head_dim + 16 * part);
    for (int row = 0; row < Rows; ++row) {
      const __m512 weight = _mm512_set1_ps(weights[row * 32 + token]);
      for (int part = 0; part < Parts; ++part)
        sums[row][part] = _mm512_fmadd_ps(weight, value[part], sums[row][part]);
    }
  }
  for (int row = 0; row < Rows; ++row)
    for (int part = 0; part < Parts; ++part)
      _mm512_storeu_ps(out + row * head_dim + 16 * part, sums[row][part]);
}

template <int Rows>
ZIPCACHE_AVX512 inline void add_weighted_rows(const float* weights, const float* values,
                                              int32_t head_dim, int32_t first, int32_t last,
                                              float* out) {
  int32_t channel = first;
  for (; channel + 64 <= last; channel += 64)
    add_weighted_avx512<Rows, 4>(weights, values + channel, head_dim, out + channel);
  for (; channel < last; channel += 16)
    add_weighted_avx512<Rows, 1>(weights, values + channel, head_dim, out + channel);
}

ZIPCACHE_AVX512 inline void add_weighted_values(avx512_isa, const float* weights,
                                                const float* values, int32_t rows, int32_t head_dim,
                                                int32_t first, int32_t last, float* out) {
  int32_t row = 0;
  for (; row + 4 <= rows; row += 4)
    add_weighted_rows<4>(weights + row * 32, values, head_dim, first, last, out + row * head_dim);
  for (; row < rows; ++row)
    add_weighted_rows<1>(weights + row * 32, values, head_dim, first, last, out + row * head_dim);
}

ZIPCACHE_AVX512 inline float exponentiate(avx512_isa, float* scores, float maximum) {
  const __m512 shift = _mm512_set1_ps(maximum);
  const __m512 low = exp2_poly16(_mm512_sub_ps(_mm512_loadu_ps(scores), shift));
  const __m512 high = exp2_poly16(_mm512_sub_ps(_mm512_loadu_ps(scores + 16), shift));
  _mm512_storeu_ps(scores, low);
  _mm512_storeu_ps(scores + 16, high);
  return _mm512_reduce_add_ps(_mm512_add_ps(low, high));
}

}  // namespace zipcache::detail

#if !defined(__clang__)
#pragma GCC diagnostic pop
#endif

// The inner loops of block_math.hpp in AVX2 with FMA and F16C. Included by block_math.hpp.
// Sums over channels and tokens run in ascending order, one accumulator for each result, as in the
// scalar reference; only the products are not rounded.
#pragma once

#include <cstdint>

#include <immintrin.h>

#include <zipcache/core/types.hpp>
#include <zipcache/detail/cpu_features.hpp>

namespace zipcache::detail {

ZIPCACHE_AVX2 inline __m256 load8(const float* row) { return _mm256_loadu_ps(row); }
ZIPCACHE_AVX2 inline __m256 load8(const half* row) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(row)));
}
ZIPCACHE_AVX2 inline __m256 load8(const bfloat16* row) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

/// exp2_poly of eight numbers. The clamp keeps its operand second, so that NaN gives 0 as there.
ZIPCACHE_AVX2 inline __m256 exp2_poly8(__m256 x) {
  const __m256 lowest = _mm256_set1_ps(-126.0f);
  const __m256 clamped = _mm256_min_ps(_mm256_max_ps(x, lowest), _mm256_set1_ps(127.0f));
  const __m256 magic = _mm256_set1_ps(12582912.0f);
  const __m256 shifted = _mm256_add_ps(clamped, magic);
  const __m256 fraction = _mm256_sub_ps(clamped, _mm256_sub_ps(shifted, magic));
  __m256 p = _mm256_set1_ps(1.5353362e-4f);
  p = _mm256_fmadd_ps(p, fraction, _mm256_set1_ps(1.3398874e-3f));
  p = _mm256_fmadd_ps(p, fraction, _mm256_set1_ps(9.6184373e-3f));
  p = _mm256_fmadd_ps(p, fraction, _mm256_set1_ps(5.5503324e-2f));
  p = _mm256_fmadd_ps(p, fraction, _mm256_set1_ps(2.4022648e-1f));
  p = _mm256_fmadd_ps(p, fraction, _mm256_set1_ps(6.9314720e-1f));
  p = _mm256_fmadd_ps(p, fraction, _mm256_set1_ps(1.0f));
  const __m256i exponent = _mm256_add_epi32(_mm256_slli_epi32(_mm256_castps_si256(shifted), 23),
                                            _mm256_set1_epi32(0x3f800000));
  const __m256 result = _mm256_mul_ps(p, _mm256_castsi256_ps(exponent));
  return _mm256_and_ps(result, _mm256_cmp_ps(x, lowest, _CMP_GT_OQ));
}

ZIPCACHE_AVX2 inline float sum_of(__m256 x) {
  __m128 half_sum = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  half_sum = _mm_add_ps(half_sum, _mm_movehl_ps(half_sum, half_sum));
  return _mm_cvtss_f32(_mm_add_ss(half_sum, _mm_movehdup_ps(half_sum)));
}

/// One or two rows at once: 4 or 8 accumulators, so that a key is loaded once for both.
template <int Rows>
ZIPCACHE_AVX2 inline void add_scores_avx2(const float* q, const float* keys, int32_t head_dim,
                                          int32_t first, int32_t last, float* scores) {
  __m256 sums[Rows][4];
  for (int row = 0; row < Rows; ++row)
    for (int part = 0; part < 4; ++part) sums[row][part] = _mm256_setzero_ps();
  for (int32_t channel = first; channel < last; ++channel) {
    const float* key = keys + channel * 32;
    for (int row = 0; row < Rows; ++row) {
      const __m256 factor = _mm256_broadcast_ss(q + row * head_dim + channel);
      for (int part = 0; part < 4; ++part)
        sums[row][part] = _mm256_fmadd_ps(factor, load8(key + 8 * part), sums[row][part]);
    }
  }
  for (int row = 0; row < Rows; ++row) {
    for (int part = 0; part < 4; ++part) {
      float* target = scores + row * 32 + 8 * part;
      _mm256_storeu_ps(target, _mm256_add_ps(load8(target), sums[row][part]));
    }
  }
}

ZIPCACHE_AVX2 inline void add_scores(avx2_isa, const float* q, const float* keys, int32_t rows,
                                     int32_t head_dim, int32_t first, int32_t last, float* scores) {
  int32_t row = 0;
  for (; row + 2 <= rows; row += 2)
    add_scores_avx2<2>(q + row * head_dim, keys, head_dim, first, last, scores + row * 32);
  if (row < rows)
    add_scores_avx2<1>(q + row * head_dim, keys, head_dim, first, last, scores + row * 32);
}

/// Rows x 16 channels in registers over all 32 tokens.
template <int Rows>
ZIPCACHE_AVX2 inline void add_weighted_avx2(const float* weights, const float* values,
                                            int32_t head_dim, float* out) {
  __m256 sums[Rows][2];
  for (int row = 0; row < Rows; ++row)
    for (int part = 0; part < 2; ++part) sums[row][part] = load8(out + row * head_dim + 8 * part);
  for (int32_t token = 0; token < 32; ++token) {
    const __m256 low = load8(values + token * head_dim);
    const __m256 high = load8(values + token * head_dim + 8);
    for (int row = 0; row < Rows; ++row) {
      const __m256 weight = _mm256_broadcast_ss(weights + row * 32 + token);
      sums[row][0] = _mm256_fmadd_ps(weight, low, sums[row][0]);
      sums[row][1] = _mm256_fmadd_ps(weight, high, sums[row][1]);
    }
  }
  for (int row = 0; row < Rows; ++row)
    for (int part = 0; part < 2; ++part)
      _mm256_storeu_ps(out + row * head_dim + 8 * part, sums[row][part]);
}

ZIPCACHE_AVX2 inline void add_weighted_values(avx2_isa, const float* weights, const float* values,
                                              int32_t rows, int32_t head_dim, int32_t first,
                                              int32_t last, float* out) {
  int32_t row = 0;
  for (; row + 4 <= rows; row += 4) {
    for (int32_t channel = first; channel < last; channel += 16)
      add_weighted_avx2<4>(weights + row * 32, values + channel, head_dim,
                           out + row * head_dim + channel);
  }
  for (; row < rows; ++row) {
    for (int32_t channel = first; channel < last; channel += 16)
      add_weighted_avx2<1>(weights + row * 32, values + channel, head_dim,
                           out + row * head_dim + channel);
  }
}

ZIPCACHE_AVX2 inline float largest_score(avx2_isa, const float* scores) {
  const __m256 eight = _mm256_max_ps(_mm256_max_ps(load8(scores), load8(scores + 8)),
                                     _mm256_max_ps(load8(scores + 16), load8(scores + 24)));
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}

ZIPCACHE_AVX2 inline float exponentiate(avx2_isa, float* scores, float maximum) {
  const __m256 shift = _mm256_set1_ps(maximum);
  __m256 sum = _mm256_setzero_ps();
  for (int part = 0; part < 4; ++part) {
    const __m256 p = exp2_poly8(_mm256_sub_ps(load8(scores + 8 * part), shift));
    _mm256_storeu_ps(scores + 8 * part, p);
    sum = _mm256_add_ps(sum, p);
  }
  return sum_of(sum);
}

ZIPCACHE_AVX2 inline void add_scaled_scores(avx2_isa, const float* dots, const float* steps,
                                            const float* mins, const float* sums, int32_t rows,
                                            int32_t stride, float* scores) {
  for (int32_t row = 0; row < rows; ++row) {
    const __m256 sum = _mm256_broadcast_ss(sums + row * stride);
    for (int part = 0; part < 4; ++part) {
      float* target = scores + row * 32 + 8 * part;
      const __m256 added = _mm256_fmadd_ps(load8(mins + 8 * part), sum, load8(target));
      _mm256_storeu_ps(target, _mm256_fmadd_ps(load8(steps + 8 * part),
                                               load8(dots + row * 32 + 8 * part), added));
    }
  }
}

ZIPCACHE_AVX2 inline void weigh_tokens(avx2_isa, const float* probabilities, const float* steps,
                                       const float* mins, int32_t rows, int32_t stride,
                                       float* weights, float* zeros) {
  for (int32_t row = 0; row < rows; ++row) {
    __m256 sum = _mm256_setzero_ps();
    for (int part = 0; part < 4; ++part) {
      const __m256 probability = load8(probabilities + row * 32 + 8 * part);
      _mm256_storeu_ps(weights + row * 32 + 8 * part,
                       _mm256_mul_ps(load8(steps + 8 * part), probability));
      sum = _mm256_fmadd_ps(load8(mins + 8 * part), probability, sum);
    }
    zeros[row * stride] += sum_of(sum);
  }
}

template <class Element>
ZIPCACHE_AVX2 inline void widen(avx2_isa, const Element* row, int32_t head_dim, float* wide) {
  int32_t channel = 0;
  for (; channel + 8 <= head_dim; channel += 8)
    _mm256_storeu_ps(wide + channel, load8(row + channel));
  for (; channel < head_dim; ++channel) wide[channel] = to_float(row[channel]);
}

/// Transposes 8 x 8 floats in registers: pairs, then quarters, then halves.
ZIPCACHE_AVX2 inline void transpose8(__m256 (&x)[8]) {
  __m256 pairs[8];
  for (int i = 0; i < 4; ++i) {
    pairs[2 * i] = _mm256_unpacklo_ps(x[2 * i], x[2 * i + 1]);
    pairs[2 * i + 1] = _mm256_unpackhi_ps(x[2 * i], x[2 * i + 1]);
  }
  __m256 quads[8];
  for (int i = 0; i < 2; ++i) {
    for (int j = 0; j < 2; ++j) {
      quads[4 * i + 2 * j] = _mm256_shuffle_ps(pairs[4 * i + j], pairs[4 * i + 2 + j], 0x44);
      quads[4 * i + 2 * j + 1] = _mm256_shuffle_ps(pairs[4 * i + j], pairs[4 * i + 2 + j], 0xee);
    }
  }
  for (int i = 0; i < 4; ++i) {
    x[i] = _mm256_permute2f128_ps(quads[i], quads[4 + i], 0x20);
    x[4 + i] = _mm256_permute2f128_ps(quads[i], quads[4 + i], 0x31);
  }
}

template <class Element>
ZIPCACHE_AVX2 inline void transpose_rows(avx2_isa, const Element* const* rows, int32_t count,
                                         int32_t head_dim, float* block) {
  for (int32_t octet = 0; octet < 4; ++octet) {
    for (int32_t channel = 0; channel < head_dim; channel += 8) {
      __m256 x[8];
      for (int32_t i = 0; i < 8; ++i) {
        const int32_t token = 8 * octet + i;
        x[i] = token < count ? load8(rows[token] + channel) : _mm256_setzero_ps();
      }
      transpose8(x);
      for (int32_t i = 0; i < 8; ++i)
        _mm256_storeu_ps(block + (channel + i) * 32 + 8 * octet, x[i]);
    }
  }
}

template <class Element>
ZIPCACHE_AVX2 inline bool is_within(avx2_isa, const Element* row, int32_t head_dim, float limit) {
  const __m256 bound = _mm256_set1_ps(limit);
  const __m256 no_sign = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  __m256 within = _mm256_castsi256_ps(_mm256_set1_epi32(-1));
  for (int32_t channel = 0; channel < head_dim; channel += 8) {
    const __m256 magnitude = _mm256_and_ps(load8(row + channel), no_sign);
    within = _mm256_and_ps(within, _mm256_cmp_ps(magnitude, bound, _CMP_LE_OQ));
  }
  return _mm256_movemask_ps(within) == 0xff;
}

}  // namespace zipcache::detail

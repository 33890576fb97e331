// Decoding on packed codes with AVX-512 and VNNI: a tile's words are loaded once for up to four
// query rows and never become a block of floats. The loop around it is in attend_packed.hpp.
// Keys: packed_scores_avx512.hpp. Values: a masked word becomes a float as it lies; its power of
// two goes into the probabilities (for the token) and out of the result (for the channel octet).
// Accumulators keep the order of the words (four of the lanes 4 * g + t, t = 0..3, of one g: 64
// bytes) and are summed over t and token halves when the class is done. Floating point because
// fixed-point probabilities lose the small ones beside a sink.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>

#include <immintrin.h>

#include <zipcache/attend/packed_scores_avx512.hpp>
#include <zipcache/attend/packed_scratch.hpp>
#include <zipcache/core/types.hpp>
#include <zipcache/detail/block_math.hpp>
#include <zipcache/detail/cpu_features.hpp>
#include <zipcache/quantize/affine.hpp>
#include <zipcache/quantize/compact_pairs.hpp>
#include <zipcache/store/layout.hpp>

// g++ 12 takes the operand that its own intrinsics leave undefined for an uninitialized variable.
#if !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace zipcache::detail {

/// Steps and minima of a tile's 32 tokens in the order of the tokens; those from `count` on are 0.
template <class Storage>
ZIPCACHE_AVX512 inline void load_token_pairs(const affine_params<Storage>* pairs, int32_t count,
                                             float* steps, float* mins) {
  const __m512i low = _mm512_loadu_si512(pairs);
  const __m512i high = _mm512_loadu_si512(pairs + 16);
  // Token n lies in slot n % 8 * 4 + n / 8.
  const __m512i slots = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29);
  const uint32_t used = count >= tile_tokens ? 0xffffffffu : (1u << count) - 1u;
  for (int half_tile = 0; half_tile < 2; ++half_tile) {
    const __m512i order = _mm512_add_epi32(slots, _mm512_set1_epi32(2 * half_tile));
    const __m512i words = _mm512_maskz_mov_epi32(static_cast<__mmask16>(used >> 16 * half_tile),
                                                 _mm512_permutex2var_epi32(low, order, high));
    const __m512i upper = _mm512_srli_epi32(words, 16);
    if constexpr (std::is_same_v<Storage, bfloat16>) {
      _mm512_storeu_si512(steps + 16 * half_tile, _mm512_slli_epi32(words, 16));
      _mm512_storeu_si512(mins + 16 * half_tile, _mm512_slli_epi32(upper, 16));
    } else {
      _mm512_storeu_ps(steps + 16 * half_tile, _mm512_cvtph_ps(_mm512_cvtepi32_epi16(words)));
      _mm512_storeu_ps(mins + 16 * half_tile, _mm512_cvtph_ps(_mm512_cvtepi32_epi16(upper)));
    }
  }
}

/// The same from compact pairs.
template <int Bits>
ZIPCACHE_AVX512 inline void load_compact_pairs(const uint8_t* pairs, int32_t count, float* steps,
                                               float* mins) {
  const __m512i halves = _mm512_slli_epi16(
      _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(pairs))), 7);
  const __m512 low = _mm512_cvtph_ps(_mm512_castsi512_si256(halves));
  const __m512 high = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(halves, 1));
  const __m512i bytes =
      _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(pairs + tile_tokens)));
  const __m512i even = _mm512_and_si512(bytes, _mm512_set1_epi32(15));
  const __m512i odd = _mm512_srli_epi32(bytes, 4);
  // Token n has its step in slot n % 8 * 4 + n / 8, its zero in half n % 2 of byte n % 8 / 2 * 4 +
  // n / 8.
  const __m512i slots = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29);
  const __m512i zeros = _mm512_setr_epi32(0, 16, 4, 20, 8, 24, 12, 28, 1, 17, 5, 21, 9, 25, 13, 29);
  const uint32_t used = count >= tile_tokens ? 0xffffffffu : (1u << count) - 1u;
  for (int half_tile = 0; half_tile < 2; ++half_tile) {
    const __m512i further = _mm512_set1_epi32(2 * half_tile);
    const auto mask = static_cast<__mmask16>(used >> 16 * half_tile);
    const __m512 step = _mm512_maskz_mov_ps(
        mask, _mm512_permutex2var_ps(low, _mm512_add_epi32(slots, further), high));
    const __m512 zero =
        _mm512_cvtepi32_ps(_mm512_permutex2var_epi32(even, _mm512_add_epi32(zeros, further), odd));
    _mm512_storeu_ps(steps + 16 * half_tile, step);
    _mm512_storeu_ps(
        mins + 16 * half_tile,
        _mm512_mul_ps(step, _mm512_mul_ps(zero, _mm512_set1_ps(-compact_affine<Bits>::unit))));
  }
}

/// Steps and minima of the tokens of one side of a tile.
struct tile_pairs_by_token {
  alignas(64) float steps[tile_tokens];
  alignas(64) float mins[tile_tokens];
};

/// x *= factor. x [size], aligned; size a multiple of 16
ZIPCACHE_AVX512 inline void scale_all(float* x, int32_t size, float factor) {
  for (int32_t i = 0; i < size; i += 16)
    _mm512_store_ps(x + i, _mm512_mul_ps(_mm512_load_ps(x + i), _mm512_set1_ps(factor)));
}

/// 16 probabilities of each half of a tile in the order of the value words: vector 2 * k + e holds
/// tokens 16 * h + 8 * k + 2 * t + e at element 4 * t + 2 * b + h, times 2^-(8 * k + 16 * e), where
/// the codes of these tokens lie.
ZIPCACHE_AVX512 inline void order_weights(__m512 low, __m512 high, float* weights) {
  const __m512i order = _mm512_setr_epi32(0, 16, 0, 16, 2, 18, 2, 18, 4, 20, 4, 20, 6, 22, 6, 22);
  for (int k = 0; k < 2; ++k) {
    for (int e = 0; e < 2; ++e) {
      const __m512i tokens = _mm512_add_epi32(order, _mm512_set1_epi32(8 * k + e));
      const float place = (k == 0 ? 1.0f : 0x1p-8f) * (e == 0 ? 1.0f : 0x1p-16f);
      _mm512_store_ps(
          weights + 16 * (2 * k + e),
          _mm512_mul_ps(_mm512_permutex2var_ps(low, tokens, high), _mm512_set1_ps(place)));
    }
  }
}

/// Raises a row's maximum to its largest score and rescales all that it has accumulated.
ZIPCACHE_AVX512 inline void raise_packed_row(packed_scratch& packed, int32_t row, int32_t head_dim,
                                             __m512 low, __m512 high) {
  const float largest = _mm512_reduce_max_ps(_mm512_max_ps(low, high));
  const float factor = exp2_poly(packed.maxima[row] - largest);  // 0 for the first tile
  packed.maxima[row] = largest;
  scale_all(packed.sums.data() + row * 8 * head_dim, 8 * head_dim, factor);
  scale_all(packed.totals.data() + row * 32, 32, factor);
}

/// From the scores of rows first .. first + Rows - 1 to their weights. keys, values: the pairs of
/// the tile's tokens, null where pairs vary by channel. offset: what a row's scores lack by channel
/// (bias), or its query's sum, which counts once for every token's minimum. The maximum rises only
/// when a score exceeds it by a margin, which floats have room for: rescaling touches every
/// accumulator.
template <int Rows>
ZIPCACHE_AVX512 inline void weigh_packed_rows(packed_scratch& packed, int32_t first,
                                              int32_t head_dim, int32_t count, const float* scores,
                                              const tile_pairs_by_token* keys, const float* offset,
                                              const tile_pairs_by_token* values) {
  constexpr float margin = 8.0f;
  const uint32_t used = count >= tile_tokens ? 0xffffffffu : (1u << count) - 1u;
  const __m512 nothing = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  __m512 x[Rows][2];
  for (int row = 0; row < Rows; ++row) {
    __mmask16 beyond = 0;
    for (int i = 0; i < 2; ++i) {
      __m512 score = _mm512_load_ps(scores + row * tile_tokens + 16 * i);
      const __m512 by_row = _mm512_set1_ps(offset[row]);
      if (keys != nullptr) {
        score = _mm512_fmadd_ps(score, _mm512_load_ps(keys->steps + 16 * i),
                                _mm512_mul_ps(_mm512_load_ps(keys->mins + 16 * i), by_row));
      } else {
        score = _mm512_add_ps(score, by_row);
      }
      x[row][i] = _mm512_mask_mov_ps(nothing, static_cast<__mmask16>(used >> 16 * i), score);
      const __m512 limit = _mm512_set1_ps(packed.maxima[first + row] + margin);
      beyond = static_cast<__mmask16>(beyond | _mm512_cmp_ps_mask(x[row][i], limit, _CMP_GT_OQ));
    }
    if (beyond != 0) raise_packed_row(packed, first + row, head_dim, x[row][0], x[row][1]);
  }
  for (int row = 0; row < Rows; ++row) {
    const __m512 maximum = _mm512_set1_ps(packed.maxima[first + row]);
    __m512 low = exp2_poly16(_mm512_sub_ps(x[row][0], maximum));
    __m512 high = exp2_poly16(_mm512_sub_ps(x[row][1], maximum));
    float* totals = packed.totals.data() + (first + row) * 32;
    _mm512_store_ps(totals, _mm512_add_ps(_mm512_load_ps(totals), _mm512_add_ps(low, high)));
    if (values != nullptr) {
      __m512 zeros = _mm512_load_ps(totals + 16);
      zeros = _mm512_fmadd_ps(low, _mm512_load_ps(values->mins), zeros);
      zeros = _mm512_fmadd_ps(high, _mm512_load_ps(values->mins + 16), zeros);
      _mm512_store_ps(totals + 16, zeros);
      low = _mm512_mul_ps(low, _mm512_load_ps(values->steps));
      high = _mm512_mul_ps(high, _mm512_load_ps(values->steps + 16));
    }
    order_weights(low, high, packed.weights.data() + (first + row) * 64);
  }
}

/// sums[row] += weights[row] * codes for `Rows` rows. weights [Rows, 4] vectors; sums: of row r
/// from r * 8 * head_dim on, in the order of the words, and of the fields of each
template <int Bits, int Rows>
ZIPCACHE_AVX512 inline void add_packed_values(const uint32_t* tile, int32_t head_dim,
                                              const float* weights, float* sums) {
  constexpr int fields = 8 / Bits;
  __m512 weight[Rows][4];
  for (int row = 0; row < Rows; ++row)
    for (int i = 0; i < 4; ++i) weight[row][i] = _mm512_load_ps(weights + 64 * row + 16 * i);
  const int32_t vectors = head_dim * Bits / 16;
  const int32_t row_size = 8 * head_dim;
  for (int32_t vector = 0; vector < vectors; ++vector) {
    __m512i words = _mm512_loadu_si512(tile + 16 * vector);
    for (int field = 0; field < fields; ++field) {
      float* target = sums + (vector * fields + field) * 16;
      __m512 sum[Rows];
      for (int row = 0; row < Rows; ++row) sum[row] = _mm512_load_ps(target + row * row_size);
      for (int i = 0; i < 4; ++i) {
        const int place = i / 2 * 8 + i % 2 * 16;
        const __m512i codes =
            _mm512_and_si512(words, _mm512_set1_epi32(((1 << Bits) - 1) << place));
        const __m512 values = _mm512_cvtepi32_ps(codes);
        for (int row = 0; row < Rows; ++row)
          sum[row] = _mm512_fmadd_ps(values, weight[row][i], sum[row]);
      }
      for (int row = 0; row < Rows; ++row) _mm512_store_ps(target + row * row_size, sum[row]);
      words = _mm512_srli_epi32(words, Bits);
    }
  }
}

/// One row's accumulators, summed over t and token halves, in the order of the channels.
/// out [head_dim]
template <int Bits>
ZIPCACHE_AVX512 inline void unpack_sums(const float* sums, int32_t head_dim, float* out) {
  constexpr int fields = 8 / Bits;
  // From (g, b) at element 4 * g + 2 * b to 8 * b + g; vectors of g = 0..3 and g = 4..7.
  const __m512i order =
      _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 2, 6, 10, 14, 18, 22, 26, 30);
  for (int32_t first = 0; first < head_dim; first += 16 * fields) {
    const float* word_sums = sums + first / (16 * fields) * 8 * fields * 16;
    for (int field = 0; field < fields; ++field) {
      __m512 quads[2];
      for (int i = 0; i < 2; ++i) {
        const float* x = word_sums + (4 * i * fields + field) * 16;
        const __m512 sum =
            sum_lanes(_mm512_load_ps(x), _mm512_load_ps(x + 16 * fields),
                      _mm512_load_ps(x + 32 * fields), _mm512_load_ps(x + 48 * fields));
        quads[i] = _mm512_add_ps(sum, _mm512_permute_ps(sum, 0xb1));
      }
      const __m512 channels = _mm512_permutex2var_ps(quads[0], order, quads[1]);
      _mm256_storeu_ps(out + first + 8 * field, _mm512_castps512_ps256(channels));
      _mm256_storeu_ps(out + first + 8 * fields + 8 * field, _mm512_extractf32x8_ps(channels, 1));
    }
  }
}

/// Sum of 16 floats.
ZIPCACHE_AVX512 inline float sum_of_16(const float* x) {
  return _mm512_reduce_add_ps(_mm512_load_ps(x));
}

/// Asks for a tile that is read soon: it lies behind this one, but prefetchers stop at 4 KiB.
inline void prefetch_tile(const std::byte* tile, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64)
    _mm_prefetch(reinterpret_cast<const char*>(tile + i), _MM_HINT_T0);
}

}  // namespace zipcache::detail

#if !defined(__clang__)
#pragma GCC diagnostic pop
#endif

// Scores of a tile's tokens with AVX-512 and VNNI, straight from packed keys. A byte of a word is a
// channel, so masked words are operands of vpdpbusd as they are: 64 bytes are four words of the
// lanes 4 * g + t, t = 0..3, of one g (layout.hpp; this needs head_dim % 64 == 0, which makes V = 4
// everywhere here). Four such vectors (g..g+3) are transposed within 128 bits: 128-bit lane t then
// holds channels 16 * cb + 4 * t .. + 3 of four tokens, and only t is left to be summed, once for
// 128 channels. Queries with their steps are integers of two or three signed bytes: what rounding
// costs is an absolute error of the score, so the step is chosen by that, and only channels that
// need it (outliers) get a third byte. Where they are few, their codes are gathered in one vector,
// which stands for one block more instead of all that an outlier lies in.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include <immintrin.h>

#include <zipcache/attend/packed_scratch.hpp>
#include <zipcache/core/numerics.hpp>
#include <zipcache/detail/cpu_features.hpp>
#include <zipcache/store/layout.hpp>

// g++ 12 takes the operand that its own intrinsics leave undefined for an uninitialized variable.
#if !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace zipcache::detail {

/// What scoring needs to know of a chunk's third digits.
struct third_digit_view {
  third_digits place;
  const uint16_t* channels;  ///< [blocks]
  const float* gathers;      ///< [blocks] vectors
  const float* digits;       ///< [rows of the chunk] vectors

  third_digit_view(const packed_scratch& scratch, int32_t chunk)
      : place(scratch.third[chunk]),
        channels(scratch.third_channels[chunk]),
        gathers(scratch.gathers.data() + chunk * packed_scratch::most_blocks * 16),
        digits(scratch.gathered_digits.data() + chunk * packed_scratch::row_chunk * 16) {}
};

/// Sums over the four 128-bit lanes of four vectors; lane i of the result is that of x[i].
ZIPCACHE_AVX512 inline __m512 sum_lanes(__m512 x0, __m512 x1, __m512 x2, __m512 x3) {
  const __m512 a =
      _mm512_add_ps(_mm512_shuffle_f32x4(x0, x1, 0x44), _mm512_shuffle_f32x4(x0, x1, 0xee));
  const __m512 b =
      _mm512_add_ps(_mm512_shuffle_f32x4(x2, x3, 0x44), _mm512_shuffle_f32x4(x2, x3, 0xee));
  return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}

/// One block of 16 queries (as integers) as one vector for each digit: 128-bit lane t holds
/// channels 4 * t .. 4 * t + 3 four times.
ZIPCACHE_AVX512 inline void store_digits(__m512i integers, float* vectors) {
  const __m512i lanes = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
  for (int32_t digit = 0; digit < packed_scratch::digits; ++digit) {
    const __m128i bytes = _mm512_cvtepi32_epi8(integers);
    const __m512i low = _mm512_cvtepi8_epi32(bytes);
    _mm512_store_si512(vectors + 16 * digit,
                       _mm512_permutexvar_epi32(lanes, _mm512_castsi128_si512(bytes)));
    integers = _mm512_srai_epi32(_mm512_sub_epi32(integers, low), 8);
  }
}

/// Decides where the third digits of a chunk, rows [first, last), are met. Codes are gathered
/// within 128 bits, where 4 * k + j is channel 4 * t + j of token k, so there is room for four
/// channels of each t.
inline void place_third_digits(packed_scratch& scratch, int32_t first, int32_t last,
                               int32_t blocks) {
  const int32_t chunk = first / packed_scratch::row_chunk;
  const uint16_t* channels = scratch.third_channels[chunk];
  auto* gathers =
      reinterpret_cast<uint8_t*>(scratch.gathers.data() + chunk * packed_scratch::most_blocks * 16);
  auto* gathered = reinterpret_cast<uint8_t*>(scratch.gathered_digits.data() + first * 16);
  const auto* digits = reinterpret_cast<const uint8_t*>(scratch.key_digits.data());
  constexpr uint8_t zero = 0x80;  // of a byte shuffle
  std::fill_n(gathers, blocks * 64, zero);
  std::fill_n(gathered, (last - first) * 64, uint8_t{0});
  third_digits& place = scratch.third[chunk];
  place = third_digits::none;
  int32_t used[4] = {};
  for (int32_t channel = 0; channel < 16 * blocks; ++channel) {
    const int32_t block = channel / 16;
    if ((channels[block] >> channel % 16 & 1) == 0) continue;
    const int32_t t = channel % 16 / 4;
    const int32_t j = channel % 4;
    if (used[t] == 4) {
      place = third_digits::in_place;
      return;
    }
    place = third_digits::gathered;
    const int32_t slot = used[t]++;
    for (int32_t k = 0; k < 4; ++k) {
      gathers[block * 64 + 16 * t + 4 * k + slot] = static_cast<uint8_t>(4 * k + j);
      for (int32_t row = first; row < last; ++row) {
        gathered[(row - first) * 64 + 16 * t + 4 * k + slot] =
            digits[((row * blocks + block) * packed_scratch::digits + 2) * 64 + 16 * t + j];
      }
    }
  }
}

/// Turns folded queries into integers of up to three digits. The rounding of a query adds to a
/// score at most scale * 0.29 * sqrt(head_dim) * (spread of the codes: 0.29 * 2^bits), here 1.6e-4,
/// and what all codes have in common leaves with the softmax; or less where two digits allow it.
/// Measured relative L2 error of the output: at most 5e-5, with outlier channels (2e-4 is allowed).
template <int Bits>
ZIPCACHE_AVX512 inline void split_queries(const float* q, int32_t rows, int32_t head_dim,
                                          packed_scratch& scratch) {
  constexpr float two_digits = 32639.0f, three_digits = 8.0e6f;
  const int32_t blocks = head_dim / 16;
  scratch.key_digits.resize(static_cast<size_t>(rows * blocks * packed_scratch::digits) * 16);
  scratch.gathers.resize(packed_scratch::most_chunks * packed_scratch::most_blocks * 16);
  scratch.gathered_digits.resize(packed_scratch::most_rows * 16);
  const float wanted = 1.6e-4f / (0.084f * std::sqrt(static_cast<float>(head_dim)) * (1 << Bits));
  for (int32_t row = 0; row < rows; ++row) {
    uint16_t* third_channels = scratch.third_channels[row / packed_scratch::row_chunk];
    if (row % packed_scratch::row_chunk == 0) std::fill_n(third_channels, blocks, uint16_t{0});
    const float* source = q + row * head_dim;
    __m512 largest = _mm512_setzero_ps();
    for (int32_t block = 0; block < blocks; ++block)
      largest = _mm512_max_ps(largest, _mm512_abs_ps(_mm512_loadu_ps(source + 16 * block)));
    const float peak = _mm512_reduce_max_ps(largest);
    const float scale = most(least(wanted, peak / two_digits), peak / three_digits);
    const float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
    scratch.scales[row] = scale;
    for (int32_t block = 0; block < blocks; ++block) {
      const __m512i integers = _mm512_cvtps_epi32(
          _mm512_mul_ps(_mm512_loadu_ps(source + 16 * block), _mm512_set1_ps(inverse)));
      const __mmask16 beyond =
          _mm512_cmpgt_epi32_mask(_mm512_abs_epi32(integers), _mm512_set1_epi32(32639));
      third_channels[block] = static_cast<uint16_t>(third_channels[block] | beyond);
      store_digits(integers, scratch.key_digits.data() +
                                 (row * blocks + block) * packed_scratch::digits * 16);
    }
  }
  for (int32_t first = 0; first < rows; first += packed_scratch::row_chunk)
    place_third_digits(scratch, first, least(rows, first + packed_scratch::row_chunk), blocks);
}

/// Transposes the 32-bit elements of each 128-bit lane of four vectors.
ZIPCACHE_AVX512 inline void transpose_in_lanes(__m512i (&x)[4]) {
  const __m512i low01 = _mm512_unpacklo_epi32(x[0], x[1]);
  const __m512i high01 = _mm512_unpackhi_epi32(x[0], x[1]);
  const __m512i low23 = _mm512_unpacklo_epi32(x[2], x[3]);
  const __m512i high23 = _mm512_unpackhi_epi32(x[2], x[3]);
  x[0] = _mm512_unpacklo_epi64(low01, low23);
  x[1] = _mm512_unpackhi_epi64(low01, low23);
  x[2] = _mm512_unpacklo_epi64(high01, high23);
  x[3] = _mm512_unpackhi_epi64(high01, high23);
}

/// A vector that several instructions use: g++ would load it for each, and a load is as long as a
/// vpdpbusd.
ZIPCACHE_AVX512 inline __m512i loaded_once(const float* vector) {
  __m512i x = _mm512_load_si512(vector);
#if !defined(__clang__)
  __asm__("" : "+v"(x));
#endif
  return x;
}

/// Dot products of `Rows` queries with tokens g .. g + 3 of two octets, as floats that still have
/// to be summed over the 128-bit lanes. words: those of g in the first block of channels; `Place`
/// is the bit where the first octet's field begins, and dots are 2^Place times too large, those of
/// the second octet 2^(Place + Bits) times. dots [Rows, 2]
template <int Bits, int Place, third_digits Third, int Rows>
ZIPCACHE_AVX512 inline void dot_four_tokens(const uint32_t* words, const float* key_digits,
                                            const third_digit_view& third, int32_t blocks,
                                            __m512 (&dots)[Rows][2]) {
  constexpr int digits = packed_scratch::digits;
  constexpr bool in_place = Third == third_digits::in_place;
  constexpr int used_digits = in_place ? 3 : 2;
  constexpr int field = (1 << Bits) - 1;
  const __m512i masks[2] = {_mm512_set1_epi32(0x01010101 * (field << Place)),
                            _mm512_set1_epi32(static_cast<int>(
                                0x01010101u * static_cast<uint32_t>(field << (Place + Bits))))};
  __m512i sums[Rows][2][used_digits];
  ZIPCACHE_UNROLL
  for (int row = 0; row < Rows; ++row) {
    ZIPCACHE_UNROLL
    for (int octet = 0; octet < 2; ++octet) {
      ZIPCACHE_UNROLL
      for (int digit = 0; digit < used_digits; ++digit)
        sums[row][octet][digit] = _mm512_setzero_si512();
    }
  }
  [[maybe_unused]] __m512i gathered = _mm512_setzero_si512();
  for (int32_t four_blocks = 0; four_blocks < blocks; four_blocks += 4) {
    __m512i x[4];
    ZIPCACHE_UNROLL
    for (int g = 0; g < 4; ++g) x[g] = _mm512_loadu_si512(words + four_blocks * 32 + 16 * g);
    transpose_in_lanes(x);
    ZIPCACHE_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int32_t block = four_blocks + i;
      // Codes stay where they lie in their byte: the power of two leaves with the sums.
      const __m512i codes[2] = {_mm512_and_si512(x[i], masks[0]), _mm512_and_si512(x[i], masks[1])};
      ZIPCACHE_UNROLL
      for (int row = 0; row < Rows; ++row) {
        const float* q = key_digits + (row * blocks + block) * digits * 16;
        ZIPCACHE_UNROLL
        for (int digit = 0; digit < 2; ++digit) {
          const __m512i factor = loaded_once(q + 16 * digit);
          ZIPCACHE_UNROLL
          for (int octet = 0; octet < 2; ++octet)
            sums[row][octet][digit] =
                _mm512_dpbusd_epi32(sums[row][octet][digit], codes[octet], factor);
        }
      }
      if constexpr (Third == third_digits::gathered) {
        gathered = _mm512_or_si512(
            gathered, _mm512_shuffle_epi8(x[i], _mm512_load_si512(third.gathers + 16 * block)));
      }
      if constexpr (in_place) {
        if (third.channels[block] == 0) continue;
        ZIPCACHE_UNROLL
        for (int row = 0; row < Rows; ++row) {
          const float* q = key_digits + (row * blocks + block) * digits * 16;
          const __m512i factor = loaded_once(q + 32);
          ZIPCACHE_UNROLL
          for (int octet = 0; octet < 2; ++octet)
            sums[row][octet][2] = _mm512_dpbusd_epi32(sums[row][octet][2], codes[octet], factor);
        }
      }
    }
  }
  ZIPCACHE_UNROLL
  for (int row = 0; row < Rows; ++row) {
    ZIPCACHE_UNROLL
    for (int octet = 0; octet < 2; ++octet) {
      const __m512i low =
          _mm512_add_epi32(_mm512_slli_epi32(sums[row][octet][1], 8), sums[row][octet][0]);
      dots[row][octet] = _mm512_cvtepi32_ps(low);
      if constexpr (Third != third_digits::none) {
        __m512i high;
        if constexpr (in_place) {
          high = sums[row][octet][2];
        } else {
          high =
              _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_and_si512(gathered, masks[octet]),
                                  _mm512_load_si512(third.digits + 16 * row));
        }
        dots[row][octet] =
            _mm512_fmadd_ps(_mm512_cvtepi32_ps(high), _mm512_set1_ps(65536.0f), dots[row][octet]);
      }
    }
  }
}

/// Scores of the 16 tokens of one half of a tile.
template <int Bits, int HalfTile, third_digits Third, int Rows>
ZIPCACHE_AVX512 inline void score_half_tile(const uint32_t* tile, int32_t blocks,
                                            const float* key_digits, const third_digit_view& third,
                                            const float* scales, float* scores) {
  // At 4 bits the second half has words of its own, at 2 bits the upper half of the same bytes.
  const uint32_t* words = tile + (Bits == 4 ? HalfTile * blocks * 32 : 0);
  constexpr int place = Bits == 4 ? 0 : HalfTile * 2 * Bits;
  __m512 low[Rows][2], high[Rows][2];
  dot_four_tokens<Bits, place, Third, Rows>(words, key_digits, third, blocks, low);
  // Nothing happens here, but g++ would else keep the queries' digits of both calls in 30 spilled
  // registers.
  __asm__ volatile("" ::: "memory");
  dot_four_tokens<Bits, place, Third, Rows>(words + 64, key_digits, third, blocks, high);
  constexpr float unit = 1.0f / static_cast<float>(1 << place);
  const __m512 places = _mm512_mask_mov_ps(_mm512_set1_ps(unit), 0xff00,
                                           _mm512_set1_ps(unit / static_cast<float>(1 << Bits)));
  ZIPCACHE_UNROLL
  for (int row = 0; row < Rows; ++row) {
    const __m512 dots = sum_lanes(low[row][0], high[row][0], low[row][1], high[row][1]);
    _mm512_store_ps(scores + row * tile_tokens + 16 * HalfTile,
                    _mm512_mul_ps(dots, _mm512_mul_ps(places, _mm512_set1_ps(scales[row]))));
  }
}

/// scores[row][token] = codes of the token . folded query, for `Rows` rows. scores [Rows, 32]
template <int Bits, int Rows>
ZIPCACHE_AVX512 inline void score_packed_keys(const uint32_t* tile, int32_t head_dim,
                                              const float* key_digits,
                                              const third_digit_view& third, const float* scales,
                                              float* scores) {
  using enum third_digits;
  const int32_t blocks = head_dim / 16;
  if (third.place == none) {
    score_half_tile<Bits, 0, none, Rows>(tile, blocks, key_digits, third, scales, scores);
    score_half_tile<Bits, 1, none, Rows>(tile, blocks, key_digits, third, scales, scores);
    return;
  }
  if (third.place == gathered) {
    score_half_tile<Bits, 0, gathered, Rows>(tile, blocks, key_digits, third, scales, scores);
    score_half_tile<Bits, 1, gathered, Rows>(tile, blocks, key_digits, third, scales, scores);
    return;
  }
  // Three digits of four rows are more accumulators than there are registers.
  constexpr int first = Rows > 2 ? 2 : Rows;
  score_half_tile<Bits, 0, in_place, first>(tile, blocks, key_digits, third, scales, scores);
  score_half_tile<Bits, 1, in_place, first>(tile, blocks, key_digits, third, scales, scores);
  if constexpr (Rows > first) {
    key_digits += first * head_dim * packed_scratch::digits;
    score_packed_keys<Bits, Rows - first>(tile, head_dim, key_digits, third, scales + first,
                                          scores + first * tile_tokens);
  }
}

}  // namespace zipcache::detail

#if !defined(__clang__)
#pragma GCC diagnostic pop
#endif

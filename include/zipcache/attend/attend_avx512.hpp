// Decoding on packed codes with AVX-512 and VNNI: a tile's words are loaded once for up to four
// query rows and never become a block of floats. The loop around it is in attend_packed.hpp.
//
// 64 bytes of a tile are four words of the lanes 4 * g + t, t = 0..3, of one g (layout.hpp; this
// needs head_dim % 64 == 0, which makes V = 4 everywhere here).
//   keys    A byte of a word is a channel, so masked words are operands of vpdpbusd as they are.
//           Four such vectors (g..g+3) are transposed within 128 bits: 128-bit lane t then holds
//           channels 16 * cb + 4 * t .. + 3 of four tokens, and only t is left to be summed, once
//           for 128 channels. Queries with their steps are integers of two or three signed bytes:
//           what rounding costs is an absolute error of the score, so the step is chosen by that,
//           and only channels that need it (outliers) get a third byte. Where they are few, their
//           codes are gathered in one vector, which stands for one block more instead of all that
//           an outlier lies in.
//   values  A masked word becomes a float as it lies; its power of two goes into the probabilities
//           (for the token) and out of the result (for the channel octet). Accumulators keep the
//           order of the words and are summed over t and token halves when the class is done.
//           Floating point because fixed-point probabilities lose the small ones beside a sink.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include <immintrin.h>

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

/// Floats that begin at a cache line, so that no vector lies across two.
class aligned_floats {
 public:
  void resize(size_t size) {
    if (memory_.size() < size + 16) memory_.resize(size + 16);
    const size_t misplaced = reinterpret_cast<uintptr_t>(memory_.data()) / sizeof(float) % 16;
    first_ = memory_.data() + (16 - misplaced) % 16;
  }
  float* data() { return first_; }
  const float* data() const { return first_; }

 private:
  std::vector<float> memory_;
  float* first_ = nullptr;
};

/// Where the third digits of a chunk of queries are met by codes.
enum class third_digits {
  none,      ///< there are none
  gathered,  ///< codes of their channels are gathered in one vector
  in_place,  ///< in the blocks of channels that have some: too many to be gathered
};

/// What one class of a segment needs beside attend_rows; reused from call to call.
struct packed_scratch {
  static constexpr int32_t most_rows = 16;
  static constexpr int32_t digits = 3;
  static constexpr int32_t row_chunk = 4;

  static constexpr int32_t most_chunks = most_rows / row_chunk;
  static constexpr int32_t most_blocks = 16;

  aligned_floats key_digits;       ///< [rows, head_dim / 16, digits] vectors of 64 bytes
  aligned_floats gathers;          ///< [most_chunks, most_blocks] vectors: which bytes of a block
  aligned_floats gathered_digits;  ///< [most_rows] vectors: third digits of the gathered channels
  aligned_floats sums;             ///< [rows, head_dim / 2] vectors: weighted values, in word order
  aligned_floats weights;          ///< [rows, 4] vectors: probabilities in word order
  aligned_floats totals;    ///< [rows, 2] vectors: sums of probabilities, and of them x minima
  aligned_floats scores;    ///< [rows, 32]
  float maxima[most_rows];  ///< what the probabilities are relative to
  float scales[most_rows];  ///< of the integers that stand for the queries

  void reset(int32_t rows, int32_t head_dim) {
    const size_t count = static_cast<size_t>(rows);
    sums.resize(count * static_cast<size_t>(8 * head_dim));
    weights.resize(count * 64);
    totals.resize(count * 32);
    scores.resize(count * tile_tokens);
    std::fill_n(sums.data(), rows * 8 * head_dim, 0.0f);
    std::fill_n(totals.data(), rows * 32, 0.0f);
    std::fill_n(maxima, rows, -std::numeric_limits<float>::infinity());
  }
  third_digits third[most_chunks];
  /// The channels of a block in which some row of a chunk has a third digit, one bit each.
  uint16_t third_channels[most_chunks][most_blocks];
};

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

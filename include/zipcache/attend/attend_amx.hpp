// Decoding on packed codes by the matrix unit (AMX, bytes): 16 rows of codes meet four query rows
// of four digits each in one instruction, so digits cost nothing. The loop around it is in
// attend_matrix.hpp.
//
// Of C [16, 16] += A [16, 64] . B [64, 16] the codes are A, a masked vector of a tile a row; B's
// columns are 4 * digit + query row, and byte j of its row r is met by byte 4 * r + j of A's rows.
//   keys    64 bytes of a tile are 64 channels of token g (layout.hpp), and its fields the tokens
//           of other octets: A's rows are 16 tokens, B the query's signed digits in that order.
//   values  64 bytes are 32 tokens of two blocks of channels; those of two tiles interleaved are 64
//           tokens of one block. A's rows are 16 channels, B the unsigned bytes of probabilities as
//           32-bit integers, relative to the largest step of a batch: finer than floats are.
// Scores of four tokens x four query rows are one vector, tokens in the order of a value word's
// bytes, so that one byte permutation makes a row of B of their probabilities.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>

#include <immintrin.h>

#include <zipcache/attend/attend_avx512.hpp>
#include <zipcache/core/types.hpp>
#include <zipcache/detail/block_math.hpp>
#include <zipcache/detail/cpu_features.hpp>
#include <zipcache/store/layout.hpp>

// g++ 12 takes the operand that its own intrinsics leave undefined for an uninitialized variable.
#if !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace zipcache::detail {

/// The registers of the matrix unit are named by number. Assembly and not the intrinsics, because
/// those of g++ 12 do not tell the compiler that they read and write memory.
struct matrix_unit {
  static constexpr int64_t row_bytes = 64, register_bytes = 1024;

  /// All eight registers as 16 rows of 64 bytes, until the end of the scope.
  ZIPCACHE_AMX matrix_unit() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } configuration;
    __asm__ volatile("ldtilecfg %0" ::"m"(configuration) : "memory");
  }
  ZIPCACHE_AMX ~matrix_unit() { __asm__ volatile("tilerelease" ::: "memory"); }
  matrix_unit(const matrix_unit&) = delete;
  matrix_unit& operator=(const matrix_unit&) = delete;

  template <int C>
  ZIPCACHE_AMX static void clear() {
    __asm__ volatile("tilezero %%tmm%c0" ::"i"(C) : "memory");
  }
  template <int Register>
  ZIPCACHE_AMX static void load(const void* rows) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(rows), "r"(row_bytes), "i"(Register)
                     : "memory");
  }
  template <int Register>
  ZIPCACHE_AMX static void store(void* rows) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(rows), "r"(row_bytes), "i"(Register)
                     : "memory");
  }
  /// C += A . B, A unsigned and B signed.
  template <int C, int A, int B>
  ZIPCACHE_AMX static void add_signed_product() {
    __asm__ volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B) : "memory");
  }
  /// C += A . B, both unsigned.
  template <int C, int A, int B>
  ZIPCACHE_AMX static void add_unsigned_product() {
    __asm__ volatile("tdpbuud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B) : "memory");
  }
};

/// Four query rows, and what they have accumulated of a class. Vectors of 16 are [4, row] where
/// nothing else is said.
struct matrix_rows {
  alignas(64) float scales[2][16];  ///< of products with a half tile: lanes are the tokens' octets
  alignas(64) float bias[16];
  alignas(64) float maxima[16];
  alignas(64) float totals[16];  ///< sums of probabilities
  alignas(64) float zeros[16];   ///< of probabilities times minima
};

/// What the matrix unit needs beside attend_rows; reused from call to call.
struct matrix_scratch {
  static constexpr int32_t most_rows = 16, row_chunk = 4;
  /// Tiles whose scores are made before any is weighed. 16 4-bit tiles are 65 KB: at home in L2.
  static constexpr int32_t batch = 16;

  matrix_rows rows[most_rows / row_chunk];
  aligned_floats digits;   ///< [chunks, head_dim / 64] operands B
  aligned_floats sums;     ///< [chunks, head_dim] vectors [digit, row]
  aligned_floats codes;    ///< [2] operands A of one tile's keys, or of 64 channels of two tiles
  aligned_floats results;  ///< four registers
  aligned_floats scores;   ///< [batch, 8] vectors [4 tokens, 4 rows]
  aligned_floats weights;  ///< [batch / 2] operands B

  void reset(int32_t num_rows, int32_t head_dim) {
    constexpr size_t operand = matrix_unit::register_bytes / sizeof(float);
    const size_t chunks = static_cast<size_t>(ceil_div(num_rows, row_chunk));
    const size_t channels = static_cast<size_t>(head_dim);
    digits.resize(chunks * channels / 64 * operand);
    sums.resize(chunks * channels * 16);
    codes.resize(2 * most<size_t>(4, channels / 32) * operand);
    results.resize(4 * operand);
    scores.resize(batch * 8 * 16);
    weights.resize(batch / 2 * operand);
    std::fill_n(digits.data(), chunks * channels / 64 * operand, 0.0f);
    std::fill_n(sums.data(), chunks * channels * 16, 0.0f);
    for (matrix_rows& chunk : rows) {
      chunk = {};
      std::fill_n(chunk.maxima, 16, -std::numeric_limits<float>::infinity());
    }
  }
};

/// Three signed digits of one query row's block of 16 channels, where B has them. operand: of the
/// block's 64 channels, from the row's column on
ZIPCACHE_AMX inline void store_matrix_digits(__m512i integers, int32_t block, int8_t* operand) {
  for (int32_t digit = 0; digit < 3; ++digit) {
    const __m128i bytes = _mm512_cvtepi32_epi8(integers);
    alignas(16) int32_t words[4];
    _mm_store_si128(reinterpret_cast<__m128i*>(words), bytes);
    // Channels 4 * t + j of block cb are word 4 * t + cb % 4 of the 64 bytes, byte j.
    for (int32_t t = 0; t < 4; ++t)
      std::memcpy(operand + (4 * t + block % 4) * matrix_unit::row_bytes + 16 * digit, words + t,
                  sizeof(words[t]));
    integers = _mm512_srai_epi32(_mm512_sub_epi32(integers, _mm512_cvtepi8_epi32(bytes)), 8);
  }
}

/// Queries as integers of three signed digits, as operands B. The step is the smallest with which
/// a whole product (codes up to 240 where they lie) stays below 2^31, as digits are added up in
/// integers. A score is then off by scale * 0.29 * sqrt(head_dim) * (spread of the codes: 0.29 *
/// 2^bits), at most 2e-6 of the sum of |q * step|. Measured relative L2 error of the output:
/// vector_test.cpp.
template <int Bits>
ZIPCACHE_AMX inline void split_matrix_queries(const float* q, int32_t num_rows, int32_t head_dim,
                                              matrix_scratch& scratch) {
  constexpr float largest_sum = 8.3e6f;  // three digits reach 8355711
  auto* digits = reinterpret_cast<int8_t*>(scratch.digits.data());
  for (int32_t row = 0; row < num_rows; ++row) {
    const float* source = q + row * head_dim;
    __m512 sums = _mm512_setzero_ps();
    for (int32_t channel = 0; channel < head_dim; channel += 16)
      sums = _mm512_add_ps(sums, _mm512_abs_ps(_mm512_loadu_ps(source + channel)));
    const float scale = _mm512_reduce_add_ps(sums) / largest_sum;
    const float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
    const int32_t chunk = row / matrix_scratch::row_chunk;
    for (int32_t block = 0; block < head_dim / 16; ++block)
      store_matrix_digits(_mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(source + 16 * block),
                                                           _mm512_set1_ps(inverse))),
                          block,
                          digits +
                              (chunk * (head_dim / 64) + block / 4) * matrix_unit::register_bytes +
                              row % 4 * 4);
    for (int32_t half_tile = 0; half_tile < 2; ++half_tile) {
      for (int32_t lane = 0; lane < 4; ++lane) {
        const int32_t octet = 2 * half_tile + lane % 2;
        const int32_t place = Bits == 4 ? octet % 2 * 4 : octet * 2;
        scratch.rows[chunk].scales[half_tile][4 * lane + row % 4] =
            scale / static_cast<float>(1 << place);
      }
    }
  }
}

/// The keys of a tile as operands A: [head_dim / 64, half tile], rows are tokens.
template <int Bits>
ZIPCACHE_AMX inline void unpack_matrix_keys(const uint32_t* tile, int32_t head_dim,
                                            float* operands) {
  constexpr int fields = 8 / Bits;
  constexpr int field_mask = 0x01010101 * ((1 << Bits) - 1);
  for (int32_t part = 0; part < head_dim / 64; ++part) {
    float* target = operands + part * 512;
    for (int32_t words = 0; words < 4 / fields; ++words, target += 256) {
      const uint32_t* source = tile + (words * (head_dim / 64) + part) * 128;
      for (int g = 0; g < 8; ++g) {
        const __m512i x = _mm512_loadu_si512(source + 16 * g);
        for (int field = 0; field < fields; ++field) {
          const auto mask = static_cast<uint32_t>(field_mask) << (Bits * field);
          _mm512_store_si512(target + 128 * field + 16 * g,
                             _mm512_and_si512(x, _mm512_set1_epi32(static_cast<int>(mask))));
        }
      }
    }
  }
}

/// Sums of the digits (lanes) of four products; lane i of the result is that of x[i].
ZIPCACHE_AMX inline __m512i join_digits(__m512i x0, __m512i x1, __m512i x2, __m512i x3) {
  const __m512i a = _mm512_add_epi32(_mm512_shuffle_i32x4(x0, x1, 0x44),
                                     _mm512_slli_epi32(_mm512_shuffle_i32x4(x0, x1, 0xee), 16));
  const __m512i b = _mm512_add_epi32(_mm512_shuffle_i32x4(x2, x3, 0x44),
                                     _mm512_slli_epi32(_mm512_shuffle_i32x4(x2, x3, 0xee), 16));
  return _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x88),
                          _mm512_slli_epi32(_mm512_shuffle_i32x4(a, b, 0xdd), 8));
}

/// What 16 tokens of a half tile have, for vector t: that of tokens 2 * t + {0, 8, 1, 9}, each for
/// four rows.
ZIPCACHE_AMX inline __m512 spread_tokens(__m512 by_token, int t) {
  const __m512i order = _mm512_setr_epi32(0, 0, 0, 0, 8, 8, 8, 8, 1, 1, 1, 1, 9, 9, 9, 9);
  return _mm512_permutexvar_ps(_mm512_add_epi32(order, _mm512_set1_epi32(2 * t)), by_token);
}

/// Products of a tile's keys with a chunk's digits: results holds C of both half tiles.
ZIPCACHE_AMX inline void multiply_matrix_keys(const float* codes, const float* digits,
                                              int32_t head_dim, float* results) {
  matrix_unit::clear<0>();
  matrix_unit::clear<1>();
  for (int32_t part = 0; part < head_dim / 64; ++part) {
    matrix_unit::load<6>(digits + part * 256);
    matrix_unit::load<4>(codes + part * 512);
    matrix_unit::add_signed_product<0, 4, 6>();
    matrix_unit::load<5>(codes + part * 512 + 256);
    matrix_unit::add_signed_product<1, 5, 6>();
  }
  matrix_unit::store<0>(results);
  matrix_unit::store<1>(results + 256);
}

/// From products to scores [8] vectors; returns the larger of them and `largest`. pairs: of the
/// tile's keys, null where they vary by channel; bias is then added, else it times a minimum.
ZIPCACHE_AMX inline __m512 score_matrix_tile(const float* results, const matrix_rows& rows,
                                             const tile_pairs_by_token* pairs, int32_t count,
                                             __m512 largest, float* scores) {
  const __m512 bias = _mm512_load_ps(rows.bias);
  for (int half_tile = 0; half_tile < 2; ++half_tile) {
    const __m512 scale = _mm512_load_ps(rows.scales[half_tile]);
    const uint32_t used = count >= tile_tokens ? 0xffffffffu : (1u << count) - 1u;
    const __m512 unseen =
        _mm512_mask_mov_ps(_mm512_set1_ps(-std::numeric_limits<float>::infinity()),
                           static_cast<__mmask16>(used >> 16 * half_tile), _mm512_setzero_ps());
    for (int t = 0; t < 4; ++t) {
      const float* row = results + half_tile * 256 + 32 * t;
      const __m512 dots = _mm512_cvtepi32_ps(
          join_digits(_mm512_load_si512(row), _mm512_load_si512(row + 128),
                      _mm512_load_si512(row + 16), _mm512_load_si512(row + 144)));
      __m512 score;
      if (pairs == nullptr) {
        score = _mm512_fmadd_ps(dots, scale, bias);
      } else {
        const __m512 step = spread_tokens(_mm512_load_ps(pairs->steps + 16 * half_tile), t);
        const __m512 min = spread_tokens(_mm512_load_ps(pairs->mins + 16 * half_tile), t);
        score = _mm512_fmadd_ps(_mm512_mul_ps(dots, scale), step, _mm512_mul_ps(min, bias));
      }
      if (count < tile_tokens) score = _mm512_add_ps(score, spread_tokens(unseen, t));
      largest = _mm512_max_ps(largest, score);
      _mm512_store_ps(scores + (4 * half_tile + t) * 16, score);
    }
  }
  return largest;
}

/// Raises the maxima by a batch's largest scores; returns the factor for all accumulated so far.
ZIPCACHE_AMX inline __m512 raise_matrix_rows(matrix_rows& rows, __m512 largest) {
  largest = _mm512_max_ps(largest, _mm512_shuffle_f32x4(largest, largest, 0x4e));
  largest = _mm512_max_ps(largest, _mm512_shuffle_f32x4(largest, largest, 0xb1));
  const __m512 before = _mm512_load_ps(rows.maxima);
  const __m512 maxima = _mm512_max_ps(before, largest);
  const __m512 factor = exp2_poly16(_mm512_sub_ps(before, maxima));  // 0 for the first batch
  _mm512_store_ps(rows.maxima, maxima);
  _mm512_store_ps(rows.totals, _mm512_mul_ps(_mm512_load_ps(rows.totals), factor));
  _mm512_store_ps(rows.zeros, _mm512_mul_ps(_mm512_load_ps(rows.zeros), factor));
  return factor;
}

/// From a tile's scores to rows 4 * t + 2 * (tile % 2) + half_tile of an operand B. unit: what a
/// probability times its token's step is made an integer by. pairs: of the values, or null.
ZIPCACHE_AMX inline void weigh_matrix_tile(const float* scores, matrix_rows& rows,
                                           const tile_pairs_by_token* pairs, float unit,
                                           float* operand) {
  // Byte `digit` of element 4 * token + row becomes byte `token` of element 4 * digit + row.
  const __m512i lane =
      _mm512_setr_epi32(0x30201000, 0x34241404, 0x38281808, 0x3c2c1c0c, 0x31211101, 0x35251505,
                        0x39291909, 0x3d2d1d0d, 0x32221202, 0x36261606, 0x3a2a1a0a, 0x3e2e1e0e,
                        0x33231303, 0x37271707, 0x3b2b1b0b, 0x3f2f1f0f);
  const __m512 maxima = _mm512_load_ps(rows.maxima);
  __m512 totals = _mm512_load_ps(rows.totals);
  __m512 zeros = _mm512_load_ps(rows.zeros);
  for (int half_tile = 0; half_tile < 2; ++half_tile) {
    for (int t = 0; t < 4; ++t) {
      const __m512 score = _mm512_load_ps(scores + (4 * half_tile + t) * 16);
      __m512 p = exp2_poly16(_mm512_sub_ps(score, maxima));
      totals = _mm512_add_ps(totals, p);
      if (pairs != nullptr) {
        const __m512 min = spread_tokens(_mm512_load_ps(pairs->mins + 16 * half_tile), t);
        zeros = _mm512_fmadd_ps(p, min, zeros);
        p = _mm512_mul_ps(p, spread_tokens(_mm512_load_ps(pairs->steps + 16 * half_tile), t));
      }
      const __m512i integers = _mm512_cvtps_epu32(_mm512_mul_ps(p, _mm512_set1_ps(unit)));
      _mm512_store_si512(operand + (4 * t + half_tile) * 16,
                         _mm512_permutexvar_epi8(lane, integers));
    }
  }
  _mm512_store_ps(rows.totals, totals);
  _mm512_store_ps(rows.zeros, zeros);
}

/// 64 channels of the values of two tiles as four operands A: rows are channels.
template <int Bits>
ZIPCACHE_AMX inline void unpack_matrix_values(const uint32_t* first, const uint32_t* second,
                                              float* operands) {
  constexpr int fields = 8 / Bits;
  constexpr int field_mask = 0x01010101 * ((1 << Bits) - 1);
  for (int32_t words = 0; words < Bits / 2; ++words) {
    for (int g = 0; g < 8; ++g) {
      const __m512i x = _mm512_loadu_si512(first + (8 * words + g) * 16);
      const __m512i y = _mm512_loadu_si512(second + (8 * words + g) * 16);
      const __m512i blocks[2] = {_mm512_unpacklo_epi64(x, y), _mm512_unpackhi_epi64(x, y)};
      for (int block = 0; block < 2; ++block) {
        for (int field = 0; field < fields; ++field) {
          const auto mask = static_cast<uint32_t>(field_mask) << (Bits * field);
          _mm512_store_si512(
              operands + ((2 * words + block) * fields + field) * 128 + g * 16,
              _mm512_and_si512(blocks[block], _mm512_set1_epi32(static_cast<int>(mask))));
        }
      }
    }
  }
}

/// Adds the products of four operands A and one operand B to registers 0 to 3.
ZIPCACHE_AMX inline void multiply_matrix_values(const float* codes, const float* weights) {
  matrix_unit::load<6>(weights);
  matrix_unit::load<4>(codes);
  matrix_unit::add_unsigned_product<0, 4, 6>();
  matrix_unit::load<5>(codes + 256);
  matrix_unit::add_unsigned_product<1, 5, 6>();
  matrix_unit::load<4>(codes + 512);
  matrix_unit::add_unsigned_product<2, 4, 6>();
  matrix_unit::load<5>(codes + 768);
  matrix_unit::add_unsigned_product<3, 5, 6>();
}

/// sums = sums * factor + products of 64 channels, times what their digits and `unit` stand for.
ZIPCACHE_AMX inline void add_matrix_products(float* results, __m512 factor, float unit,
                                             float* sums) {
  matrix_unit::store<0>(results);
  matrix_unit::store<1>(results + 256);
  matrix_unit::store<2>(results + 512);
  matrix_unit::store<3>(results + 768);
  const __m512 digits =
      _mm512_mul_ps(_mm512_set1_ps(unit),
                    _mm512_setr_ps(1.0f, 1.0f, 1.0f, 1.0f, 0x1p8f, 0x1p8f, 0x1p8f, 0x1p8f, 0x1p16f,
                                   0x1p16f, 0x1p16f, 0x1p16f, 0x1p24f, 0x1p24f, 0x1p24f, 0x1p24f));
  for (int channel = 0; channel < 64; ++channel) {
    const __m512 product = _mm512_cvtepi32_ps(_mm512_load_si512(results + 16 * channel));
    const __m512 before = _mm512_mul_ps(_mm512_load_ps(sums + 16 * channel), factor);
    _mm512_store_ps(sums + 16 * channel, _mm512_fmadd_ps(product, digits, before));
  }
}

/// Up to four rows' sums over their digits, in the order of the channels. out [rows, head_dim]
template <int Bits>
ZIPCACHE_AMX inline void join_matrix_sums(const float* sums, int32_t rows, int32_t head_dim,
                                          float* out) {
  for (int32_t channel = 0; channel < head_dim; channel += 4) {
    const float* x = sums + channel * 16;
    const int32_t place = channel / 8 % (8 / Bits) * Bits;
    const __m512 joined = sum_lanes(_mm512_load_ps(x), _mm512_load_ps(x + 16),
                                    _mm512_load_ps(x + 32), _mm512_load_ps(x + 48));
    alignas(64) float by_channel[4][4];
    _mm512_store_ps(by_channel,
                    _mm512_mul_ps(joined, _mm512_set1_ps(1.0f / static_cast<float>(1 << place))));
    for (int32_t row = 0; row < rows; ++row)
      for (int32_t i = 0; i < 4; ++i) out[row * head_dim + channel + i] = by_channel[i][row];
  }
}

}  // namespace zipcache::detail

#if !defined(__clang__)
#pragma GCC diagnostic pop
#endif

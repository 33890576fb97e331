// Queries with the keys' parameters folded in, as operands of the tensor cores: what is the same
// for all tokens of one class of one segment leaves the inner loop here.
//   keys by channel  score = sum_c (q_c * step_c) * code_c + sum_c q_c * min_c
//   keys by token    score = step * sum_c q_c * code_c + min * sum_c q_c
// The folded query is a 24-bit fixed-point number in three signed bytes (tensor_core_tile.cuh).
#pragma once

#include <cstdint>

#include <zipcache/attend/tensor_core_tile.cuh>
#include <zipcache/quantize/affine.hpp>
#include <zipcache/store/tile.hpp>

namespace zipcache::detail {

/// Query heads of a set: with two digits each they fill the eight columns of the instruction. A
/// pass serves one set or two.
inline constexpr int32_t set_heads = 4;

/// The query heads of a pass folded with the key parameters of one class of one segment. Words of a
/// lane are grouped by four, so that it reads its operands in 16-byte loads.
template <int32_t HeadDim, int32_t Sets>
struct folded_query {
  static_assert(Sets == 1 || Sets == 2);
  static constexpr int32_t quads = (query_words<HeadDim> + 3) / 4;
  uint4 digits[Sets][quads][32];
  /// Of one set, a lane's words serve both columns of a head; two sets have a column each.
  uint4 low_digits[quads][16 * Sets];
  float2 scale_and_bias[Sets * set_heads];

  __device__ uint32_t& digit_word(int32_t set, int32_t word, int32_t lane) {
    return reinterpret_cast<uint32_t*>(&digits[set][word / 4][lane])[word % 4];
  }
  /// Where the low digits for a lane, 4 * column + t, stand.
  __device__ static int32_t low_lane(int32_t lane) {
    return Sets == 2 ? lane : lane / 8 * 4 + lane % 4;
  }
  __device__ uint32_t& low_digit_word(int32_t word, int32_t lane) {
    return reinterpret_cast<uint32_t*>(&low_digits[word / 4][low_lane(lane)])[word % 4];
  }
};

/// The queries of a pass in shared memory.
template <class Storage, int32_t HeadDim, int32_t Heads>
struct pass_queries {
  alignas(16) Storage rows[Heads][HeadDim];

  /// Four channels in base-2 units.
  __device__ __forceinline__ void load(int32_t head, int32_t channel, float scale,
                                       float (&q)[4]) const {
    const uint2 words = *reinterpret_cast<const uint2*>(&rows[head][channel]);
    q[0] = to_float(Storage{static_cast<uint16_t>(words.x & 0xffffu)}) * scale;
    q[1] = to_float(Storage{static_cast<uint16_t>(words.x >> 16)}) * scale;
    q[2] = to_float(Storage{static_cast<uint16_t>(words.y & 0xffffu)}) * scale;
    q[3] = to_float(Storage{static_cast<uint16_t>(words.y >> 16)}) * scale;
  }
};

/// Byte `Index` of four words as one word.
template <int Index>
__device__ __forceinline__ uint32_t gather_bytes(const uint32_t (&words)[4]) {
  constexpr uint32_t pair = Index | (Index + 4) << 4;
  return __byte_perm(__byte_perm(words[0], words[1], pair), __byte_perm(words[2], words[3], pair),
                     0x5410);
}

/// Folds one class's key parameters into query heads of a set, from `first_head` on. One warp:
/// `Lanes` lanes a head, 8 or 16, each with every so manieth quad of channels.
template <class Policies, int32_t Lanes, class Storage, int32_t HeadDim, int32_t Sets>
__device__ void fold_query(folded_query<HeadDim, Sets>& target,
                           const pass_queries<Storage, HeadDim, Sets * set_heads>& queries,
                           float query_scale, const std::byte* record, token_class which,
                           int32_t set, int32_t first_head, int32_t lane) {
  using granularity = typename Policies::key_quantizer_policy::granularity;
  using records = segment_record<Policies>;
  constexpr int32_t quads = HeadDim / 4;
  constexpr int32_t rounds = ceil_div(quads, Lanes);
  const int32_t part = lane % Lanes;
  const int32_t head_of_set = first_head + lane / Lanes;
  const int32_t head = set * set_heads + head_of_set;
  const auto* pairs = reinterpret_cast<const uint4*>(
      record + (which == token_class::salient
                    ? records::template key_pairs_offset<token_class::salient>(HeadDim)
                    : records::template key_pairs_offset<token_class::regular>(HeadDim)));
  const auto* magnitudes =
      reinterpret_cast<const uint2*>(record + records::key_magnitudes_offset(HeadDim));
  float folded[rounds][4];
  float largest = 0.0f;
  float bias = 0.0f;
#pragma unroll
  for (int32_t round = 0; round < rounds; ++round) {
    const int32_t quad = round * Lanes + part;
#pragma unroll
    for (int32_t j = 0; j < 4; ++j) folded[round][j] = 0.0f;
    if (quads % Lanes != 0 && quad >= quads) continue;
    queries.load(head, quad * 4, query_scale, folded[round]);
    if constexpr (granularity::axis == parameter_axis::channel) {
      const uint4 four = pairs[quad];
      const uint32_t words[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int32_t j = 0; j < 4; ++j) {
        const Storage step{static_cast<uint16_t>(words[j] & 0xffffu)};
        const Storage min{static_cast<uint16_t>(words[j] >> 16)};
        bias = fmaf(folded[round][j], to_float(min), bias);
        folded[round][j] *= to_float(step);
      }
    } else {
      if constexpr (granularity::has_channel_magnitudes) {
        const uint2 four = magnitudes[quad];
        folded[round][0] *= to_float(Storage{static_cast<uint16_t>(four.x & 0xffffu)});
        folded[round][1] *= to_float(Storage{static_cast<uint16_t>(four.x >> 16)});
        folded[round][2] *= to_float(Storage{static_cast<uint16_t>(four.y & 0xffffu)});
        folded[round][3] *= to_float(Storage{static_cast<uint16_t>(four.y >> 16)});
      }
#pragma unroll
      for (int32_t j = 0; j < 4; ++j) bias += folded[round][j];
    }
#pragma unroll
    for (int32_t j = 0; j < 4; ++j) largest = fmaxf(largest, fabsf(folded[round][j]));
  }
#pragma unroll
  for (int32_t lanes = 1; lanes < Lanes; lanes *= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(whole_warp, largest, lanes));
    bias += __shfl_xor_sync(whole_warp, bias, lanes);
  }
  constexpr float digits_range = 8323072.0f;  // 127 * 2^16: all digits stay signed bytes
  const float inverse = largest > 0.0f ? digits_range / largest : 0.0f;
#pragma unroll
  for (int32_t round = 0; round < rounds; ++round) {
    const int32_t quad = round * Lanes + part;
    if (quads % Lanes != 0 && quad >= quads) continue;
    // fixed = high * 2^16 + middle * 2^8 + low with signed digits: a digit is a byte of the number
    // once half a unit of every digit below it was added.
    uint32_t low[4];
    uint32_t middle[4];
    uint32_t high[4];
#pragma unroll
    for (int32_t j = 0; j < 4; ++j) {
      low[j] = static_cast<uint32_t>(__float2int_rn(folded[round][j] * inverse));
      middle[j] = low[j] + 0x80u;
      high[j] = low[j] + 0x8080u;
    }
    // Operand B: word `block` of lane 4 * g + t holds channels 16 * block + 4 * t .. + 3 of column
    // g.
    const int32_t column = 8 * head_of_set + quad % 4;
    target.digit_word(set, quad / 4, column) = gather_bytes<2>(high);
    target.digit_word(set, quad / 4, column + 4) = gather_bytes<1>(middle);
    target.low_digit_word(quad / 4, column + 4 * set) = gather_bytes<0>(low);
  }
  // The partner of a last block without one: the head's two columns.
  if (HeadDim / 16 % 2 == 1 && part < 8) {
    target.digit_word(set, HeadDim / 16, 8 * head_of_set + part) = 0;
    target.low_digit_word(HeadDim / 16, 8 * head_of_set + part) = 0;
  }
  if (part == 0) target.scale_and_bias[head] = {largest / digits_range * 256.0f, bias};
}

}  // namespace zipcache::detail

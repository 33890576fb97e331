// Attention over one tile on tensor cores, straight from packed codes. Codes lie in operand order
// (store/layout.hpp), so a masked word is an operand:
//   scores  m16n8k32 on bytes: rows are tokens, columns are 4 query heads x 2 digits. The query,
//   with
//           the keys' steps folded in, is a 24-bit fixed-point number in three signed bytes (error
//           2^-24 of its largest channel; two bytes would let one outlier channel spoil the
//           others); the third digit takes a second instruction on the same operands.
//   output  m16n8k16 on halves: rows are channels, columns are 4 heads x (high, low) halves of the
//   probability. A code
//           masked into the low bits of a half is a subnormal number, exactly code * 2^-24.
// A field's place in the word leaves a factor that is constant for a row: 1, 16 (4 bits) or 1, 4,
// 16, 64 (2 bits). For scores it goes into the scale of the token, for the output it is divided out
// of the channel at the end. A lane is 4 * g + t; it works on query head t of each set of four,
// tokens g, g + 8, g + 16, g + 24, channels g and g + 8 of every block of 16. Two sets share what
// is done to the codes, and their low digits the columns of one instruction.
#pragma once

#include <cstddef>
#include <cstdint>

#include <zipcache/attend/attend_schedule.cuh>
#include <zipcache/core/numerics.hpp>
#include <zipcache/core/types.hpp>
#include <zipcache/quantize/compact_pairs.hpp>
#include <zipcache/store/layout.hpp>

namespace zipcache::detail {

__device__ __forceinline__ void mma_bytes(int32_t (&sum)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                          uint32_t a3, uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 "
      "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+r"(sum[0]), "+r"(sum[1]), "+r"(sum[2]), "+r"(sum[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/// Pairs of the four tokens of a row of the tile (g, g + 8, g + 16, g + 24) in registers, for sides
/// whose parameters vary by token.
template <class Granularity, int Bits, class Storage>
class row_pairs {
 public:
  __device__ __forceinline__ row_pairs(const std::byte* pairs, int32_t row)
      : words_(reinterpret_cast<const uint4*>(pairs)[row]) {}

  /// (step, min) of the token of octet 0 to 3, a constant.
  __device__ __forceinline__ float2 of(int32_t octet) const {
    const uint32_t pair =
        octet == 0 ? words_.x : (octet == 1 ? words_.y : (octet == 2 ? words_.z : words_.w));
    return {to_float(Storage{static_cast<uint16_t>(pair & 0xffffu)}),
            to_float(Storage{static_cast<uint16_t>(pair >> 16)})};
  }

 private:
  uint4 words_;
};

/// Compact pairs: two tokens at a time as halves, in which steps and minima are exact.
template <class Granularity, int Bits, class Storage>
requires has_compact_pairs<Granularity>
class row_pairs<Granularity, Bits, Storage> {
 public:
  __device__ __forceinline__ row_pairs(const std::byte* pairs, int32_t row) {
    const uint32_t steps = reinterpret_cast<const uint32_t*>(pairs)[row];
    const uint32_t zeros =
        reinterpret_cast<const uint32_t*>(pairs)[8 + row / 2] >> 4 * (row % 2) & 0x0f0f0f0fu;
#pragma unroll
    for (uint32_t i = 0; i < 2; ++i) {
      // Bytes 2 i and 2 i + 1 below the upper bits of 1024, a half whose last bit counts 1.
      const uint32_t shifted = __byte_perm(zeros, 0x64646464u, i == 0 ? 0x4140u : 0x4342u);
      const __half2 units =
          __hfma2(as_half2(shifted), __float2half2_rn(-unit), __float2half2_rn(1024.0f * unit));
      steps_[i] = as_half2(__byte_perm(steps, 0u, i == 0 ? 0x4140u : 0x4342u) << 7);
      mins_[i] = __hmul2(steps_[i], units);
    }
  }

  __device__ __forceinline__ float2 of(int32_t octet) const {
    const __half2 steps = steps_[octet / 2];
    const __half2 mins = mins_[octet / 2];
    return octet % 2 == 0 ? make_float2(__low2float(steps), __low2float(mins))
                          : make_float2(__high2float(steps), __high2float(mins));
  }

 private:
  static constexpr float unit = compact_affine<Bits>::unit;
  __device__ static __half2 as_half2(uint32_t bits) {
    return *reinterpret_cast<const __half2*>(&bits);
  }

  __half2 steps_[2];
  __half2 mins_[2];
};

template <class Storage>
__device__ __forceinline__ void mma_halves(float (&sum)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                           uint32_t a3, uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same_v<Storage, half>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  }
}

/// Transposes an 8 x 8 matrix of 16-bit elements that is spread over the warp.
__device__ __forceinline__ uint32_t transpose_8x8(uint32_t row) {
  uint32_t column;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(column) : "r"(row));
  return column;
}

/// A float as the sum of two 16-bit numbers: high in the low half of the word.
template <class Storage>
__device__ __forceinline__ uint32_t split_in_halves(float x) {
  const Storage high = from_float<Storage>(x);
  const Storage low = from_float<Storage>(x - to_float(high));
  return static_cast<uint32_t>(high.bits) | static_cast<uint32_t>(low.bits) << 16;
}

/// A lane's words of one tile side, with the widest loads that the layout allows.
template <int32_t Words>
__device__ __forceinline__ void load_lane_words(const void* tile, int32_t lane,
                                                uint32_t (&words)[Words]) {
  if constexpr (Words % 4 == 0) {
    const uint4* source = static_cast<const uint4*>(tile) + lane;
#pragma unroll
    for (int32_t i = 0; i < Words / 4; ++i) {
      const uint4 four = source[i * 32];
      words[4 * i] = four.x;
      words[4 * i + 1] = four.y;
      words[4 * i + 2] = four.z;
      words[4 * i + 3] = four.w;
    }
  } else if constexpr (Words % 2 == 0) {
    const uint2* source = static_cast<const uint2*>(tile) + lane;
#pragma unroll
    for (int32_t i = 0; i < Words / 2; ++i) {
      const uint2 two = source[i * 32];
      words[2 * i] = two.x;
      words[2 * i + 1] = two.y;
    }
  } else {
    const uint32_t* source = static_cast<const uint32_t*>(tile) + lane;
#pragma unroll
    for (int32_t i = 0; i < Words; ++i) words[i] = source[i * 32];
  }
}

/// What the place of a field leaves on a score: octet o of a tile of `Bits` carries this factor.
template <int Bits>
__host__ __device__ constexpr float score_factor(int32_t octet) {
  return Bits == 4 ? (octet % 2 == 0 ? 1.0f : 16.0f)
                   : (Bits == 2 ? static_cast<float>(1 << (2 * octet)) : 1.0f);
}

/// What the place of a field leaves on output channels: octet 0 or 1 of block `block` of 16
/// channels. A last block without a partner (2 bits, head_dim not a multiple of 32) is packed like
/// an even one.
template <int Bits>
__host__ __device__ constexpr float output_factor(int32_t block, int32_t octet) {
  if (Bits == 4) return octet == 0 ? 1.0f : 16.0f;
  if (Bits == 2) return (octet == 0 ? 1.0f : 4.0f) * (block % 2 == 0 ? 1.0f : 16.0f);
  return 1.0f;
}

/// The query's digits as operands: [2 * ceil(head_dim / 32)] words for each lane, in shared memory
/// [word][lane].
template <int32_t HeadDim>
inline constexpr int32_t query_words = (HeadDim + 31) / 32 * 2;

/// Integer scores of 32 tokens: sums[set][half][0, 1] are the sums of the high and middle digit of
/// token 16 * half + g, [2, 3] of g + 8; low[half][set] and [2 + set] are those of the low digit.
/// q [sets][query_words], q_low [query_words].
template <int Bits, int32_t HeadDim, int32_t Sets, int32_t Words>
__device__ __forceinline__ void score_codes(const void* tile, int32_t lane,
                                            const uint32_t (&q)[Sets][Words],
                                            const uint32_t (&q_low)[Words],
                                            int32_t (&sums)[Sets][2][4], int32_t (&low)[2][4]) {
  constexpr int32_t blocks = HeadDim / 16;
  constexpr int32_t lane_words = key_layout<Bits>::words_per_lane(HeadDim);
  uint32_t words[lane_words];
  load_lane_words<lane_words>(tile, lane, words);
#pragma unroll
  for (int32_t half_tile = 0; half_tile < 2; ++half_tile) {
#pragma unroll
    for (int32_t i = 0; i < 4; ++i) {
#pragma unroll
      for (int32_t set = 0; set < Sets; ++set) sums[set][half_tile][i] = 0;
      low[half_tile][i] = 0;
    }
#pragma unroll
    for (int32_t step = 0; step < (blocks + 1) / 2; ++step) {
      // The first 16 channels of the step, and the last 16 if there are any.
      const bool pair = 2 * step + 1 < blocks;
      const int32_t second = least(2 * step + 1, blocks - 1);
      uint32_t a[4];
      if constexpr (Bits == 4) {
        const uint32_t x = words[half_tile * blocks + 2 * step];
        const uint32_t y = pair ? words[half_tile * blocks + second] : 0u;
        a[0] = x & 0x0f0f0f0fu;
        a[1] = x & 0xf0f0f0f0u;
        a[2] = y & 0x0f0f0f0fu;
        a[3] = y & 0xf0f0f0f0u;
      } else {
        static_assert(Bits == 2, "zipcache: tensor core scores take 2 or 4 bits");
        const uint32_t x = words[2 * step];
        const uint32_t y = pair ? words[second] : 0u;
        const uint32_t even = half_tile == 0 ? 0x03030303u : 0x30303030u;
        const uint32_t odd = half_tile == 0 ? 0x0c0c0c0cu : 0xc0c0c0c0u;
        a[0] = x & even;
        a[1] = x & odd;
        a[2] = y & even;
        a[3] = y & odd;
      }
#pragma unroll
      for (int32_t set = 0; set < Sets; ++set) {
        mma_bytes(sums[set][half_tile], a[0], a[1], a[2], a[3], q[set][2 * step],
                  q[set][2 * step + 1]);
      }
      mma_bytes(low[half_tile], a[0], a[1], a[2], a[3], q_low[2 * step], q_low[2 * step + 1]);
    }
  }
}

/// Adds codes times probabilities. p[set][octet] is the transposed (high, low) pair of 8 tokens:
/// operand B. sums[set][block][0, 1]: high and low part of channel 16 * block + g, [2, 3] of g + 8.
template <int Bits, int32_t HeadDim, int32_t Sets>
__device__ __forceinline__ void accumulate_codes(const void* tile, int32_t lane,
                                                 const uint32_t (&p)[Sets][4],
                                                 float (&sums)[Sets][HeadDim / 16][4]) {
  constexpr int32_t blocks = HeadDim / 16;
  constexpr int32_t lane_words = value_layout<Bits>::words_per_lane(HeadDim);
  uint32_t words[lane_words];
  load_lane_words<lane_words>(tile, lane, words);
#pragma unroll
  for (int32_t block = 0; block < blocks; ++block) {
#pragma unroll
    for (int32_t half_tile = 0; half_tile < 2; ++half_tile) {
      if constexpr (Bits == 4) {
        const uint32_t lower = words[block * 2 + half_tile];
        const uint32_t upper = lower >> 8;
#pragma unroll
        for (int32_t set = 0; set < Sets; ++set) {
          mma_halves<half>(sums[set][block], lower & 0x000f000fu, lower & 0x00f000f0u,
                           upper & 0x000f000fu, upper & 0x00f000f0u, p[set][2 * half_tile],
                           p[set][2 * half_tile + 1]);
        }
      } else {
        static_assert(Bits == 2, "zipcache: tensor core output takes 2 or 4 bits");
        const bool paired = block < blocks / 2 * 2;
        const uint32_t word = words[block / 2 * 2 + (paired ? half_tile : 0)];
        // An unpaired block has both halves of the tile in one word; the second is moved to the
        // first one's fields.
        const uint32_t lower = !paired && half_tile == 1 ? word >> 4 : word;
        const uint32_t upper = lower >> 8;
        const uint32_t first = block % 2 == 0 ? 0x00030003u : 0x00300030u;
        const uint32_t second = block % 2 == 0 ? 0x000c000cu : 0x00c000c0u;
#pragma unroll
        for (int32_t set = 0; set < Sets; ++set) {
          mma_halves<half>(sums[set][block], lower & first, lower & second, upper & first,
                           upper & second, p[set][2 * half_tile], p[set][2 * half_tile + 1]);
        }
      }
    }
  }
}

/// Scores of 32 tokens in 16 bits. q [sets][head_dim / 16 * 2 * 32]: words for each lane in shared
/// memory, (high, low) halves of query head t of the set. sums[set][half][0] + [1] is the score of
/// token 16 * half + g, [2] + [3] of g + 8.
template <class Storage, int32_t HeadDim, int32_t Sets>
__device__ __forceinline__ void score_rows(const Storage* tile, int32_t lane,
                                           const uint32_t (&q)[Sets][HeadDim / 16 * 2 * 32],
                                           float (&sums)[Sets][2][4]) {
#pragma unroll
  for (int32_t half_tile = 0; half_tile < 2; ++half_tile) {
#pragma unroll
    for (int32_t set = 0; set < Sets; ++set) {
#pragma unroll
      for (int32_t i = 0; i < 4; ++i) sums[set][half_tile][i] = 0.0f;
    }
#pragma unroll
    for (int32_t block = 0; block < HeadDim / 16; ++block) {
      const uint4 a =
          reinterpret_cast<const uint4*>(tile)[(half_tile * (HeadDim / 16) + block) * 32 + lane];
#pragma unroll
      for (int32_t set = 0; set < Sets; ++set) {
        mma_halves<Storage>(sums[set][half_tile], a.x, a.y, a.z, a.w,
                            q[set][(2 * block) * 32 + lane], q[set][(2 * block + 1) * 32 + lane]);
      }
    }
  }
}

template <class Storage, int32_t HeadDim, int32_t Sets>
__device__ __forceinline__ void accumulate_rows(const Storage* tile, int32_t lane,
                                                const uint32_t (&p)[Sets][4],
                                                float (&sums)[Sets][HeadDim / 16][4],
                                                uint32_t valid_pairs) {
#pragma unroll
  for (int32_t block = 0; block < HeadDim / 16; ++block) {
#pragma unroll
    for (int32_t half_tile = 0; half_tile < 2; ++half_tile) {
      uint4 a = reinterpret_cast<const uint4*>(tile)[(block * 2 + half_tile) * 32 + lane];
      // Slots without a token may hold NaN, which a probability of zero would not silence.
      if (valid_pairs != 0xffu) {
        const uint32_t lower = (valid_pairs >> (4 * half_tile) & 1u ? 0xffffu : 0u) |
                               (valid_pairs >> (4 * half_tile + 1) & 1u ? 0xffff0000u : 0u);
        const uint32_t upper = (valid_pairs >> (4 * half_tile + 2) & 1u ? 0xffffu : 0u) |
                               (valid_pairs >> (4 * half_tile + 3) & 1u ? 0xffff0000u : 0u);
        a.x &= lower;
        a.y &= lower;
        a.z &= upper;
        a.w &= upper;
      }
#pragma unroll
      for (int32_t set = 0; set < Sets; ++set) {
        mma_halves<Storage>(sums[set][block], a.x, a.y, a.z, a.w, p[set][2 * half_tile],
                            p[set][2 * half_tile + 1]);
      }
    }
  }
}

}  // namespace zipcache::detail

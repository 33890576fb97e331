// One side of a regular tile on the device: a full tile of finite values whose codes need none of
// the care that tile_encoder.cuh takes of every value. Whether a tile is one is asked once for a
// channel of the segment or a token of the tile; what is not regular, and every head_dim but 64 and
// 128, is left to tile_encoder.cuh. The bytes are the same. Twin: encode.hpp.
// @equality same_bytes
#pragma once

#include <cstdint>
#include <type_traits>

#include <zipcache/core/numerics.hpp>
#include <zipcache/quantize/compact_pairs.hpp>
#include <zipcache/store/pair_arithmetic.cuh>
#include <zipcache/store/regular_codes.cuh>
#include <zipcache/store/tile_encoder.cuh>

namespace zipcache::detail {

// --- words
// -----------------------------------------------------------------------------------------

/// One word of a key plane: byte j has channel j of four, its fields octets of tokens from `first`
/// on. scales: of the channels, or of the octets' tokens
template <class Granularity, int Bits, int Octets, class Storage>
__device__ __forceinline__ uint32_t regular_key_word(const uint2 (&values)[Octets],
                                                     const quantize_scale* scales) {
  float sums[2];
  ZIPCACHE_UNROLL
  for (int32_t half = 0; half < 2; ++half) {
    float sum = sum_base;
    ZIPCACHE_UNROLL
    for (int32_t field = 2 * Octets - 1; field >= 0; --field) {
      const int32_t octet = field % Octets;
      const uint32_t pair = half == 0 ? values[octet].x : values[octet].y;
      const float x = field < Octets ? first_of<Storage>(pair) : second_of<Storage>(pair);
      const bool by_channel = Granularity::axis == parameter_axis::channel;
      const plain_codes<Bits> codes(scales[by_channel ? 2 * half + field / Octets : octet]);
      if (field < 2 * Octets - 1) sum = next_field<Bits>(sum);
      sum = codes.add(x, {}, sum);
    }
    sums[half] = sum;
  }
  return word_of_sums(sums[0], sums[1]);
}

/// All words of a key plane, four neighbouring blocks of channels at a time.
/// @param channel_scales  shared memory, [head_dim], of layouts by channel
template <class Granularity, int Bits, int HeadDim, class Storage, class Rows>
__device__ __forceinline__ void write_regular_keys(const staged_tile<Storage, Rows>& tile,
                                                   const quantize_scale* channel_scales,
                                                   uint32_t* words) {
  using layout = key_layout<Bits>;
  constexpr bool by_channel = Granularity::axis == parameter_axis::channel;
  constexpr int32_t octets = layout::octets_per_word;
  constexpr int32_t planes = tile_tokens / 8 / octets;  // words of a block of channels
  constexpr int32_t blocks = HeadDim / 16;
  constexpr int32_t vector = 4;
  const int32_t row = tile.lane / 4;
#pragma unroll 1
  for (int32_t first = 0; first < blocks; first += vector) {
    uint32_t packed[planes][vector];
    ZIPCACHE_UNROLL
    for (int32_t i = 0; i < vector; ++i) {
      const int32_t channel = 16 * (first + i) + tile.lane % 4 * 4;
      quantize_scale scales[4];
      if constexpr (by_channel) {
        ZIPCACHE_UNROLL
        for (int32_t j = 0; j < 4; j += 2) {
          const float4 two = *reinterpret_cast<const float4*>(channel_scales + channel + j);
          scales[j] = {two.x, two.y};
          scales[j + 1] = {two.z, two.w};
        }
      }
      ZIPCACHE_UNROLL
      for (int32_t plane = 0; plane < planes; ++plane) {
        uint2 values[octets];
        ZIPCACHE_UNROLL
        for (int32_t octet = 0; octet < octets; ++octet) {
          const int32_t token = 8 * (octets * plane + octet) + row;
          values[octet] = *reinterpret_cast<const uint2*>(tile.row(token) + channel);
          if constexpr (!by_channel)
            scales[octet] =
                tile.scales[channel / channels_per_group<Granularity>(HeadDim) * tile_tokens +
                            token];
        }
        packed[plane][i] = regular_key_word<Granularity, Bits, octets, Storage>(values, scales);
      }
    }
    ZIPCACHE_UNROLL
    for (int32_t plane = 0; plane < planes; ++plane) {
      save_words(words + lane_word_index(tile.lane, plane * blocks + first,
                                         layout::words_per_lane(HeadDim)),
                 packed[plane]);
    }
  }
}

/// What is kept of the pairs of a lane's tokens, two of each octet.
template <class Storage, class Rows>
__device__ __forceinline__ void load_token_scales(const staged_tile<Storage, Rows>& tile,
                                                  int32_t group, quantize_scale (&kept)[8]) {
  ZIPCACHE_UNROLL
  for (int32_t octet = 0; octet < 4; ++octet) {
    const float4 two = *reinterpret_cast<const float4*>(tile.scales + group * tile_tokens +
                                                        8 * octet + tile.lane % 4 * 2);
    kept[2 * octet] = {two.x, two.y};
    kept[2 * octet + 1] = {two.z, two.w};
  }
}

/// All words of a value plane, four words of a lane at a time: their halves have two neighbouring
/// tokens, and the fields of both the same channels and octets of tokens.
/// @param divisors  shared memory, [2, head_dim]: all `high`, then `low`
template <class Granularity, int Bits, int HeadDim, class Storage, class Rows>
__device__ __forceinline__ void write_regular_values(const staged_tile<Storage, Rows>& tile,
                                                     const float* divisors, uint32_t* words) {
  using layout = value_layout<Bits>;
  using side = regular_codes<Granularity, Bits>;
  using codes = typename side::type;
  constexpr int32_t fields = 16 / Bits;
  constexpr int32_t words_per_lane = layout::words_per_lane(HeadDim);
  constexpr int32_t vector = 4;
  constexpr int32_t group_size = channels_per_group<Granularity>(HeadDim);
  constexpr bool one_group = group_size == HeadDim;
  quantize_scale kept[8];
  if constexpr (one_group) load_token_scales(tile, 0, kept);
#pragma unroll 1
  for (int32_t first = 0; first < words_per_lane; first += vector) {
    uint32_t packed[vector];
    ZIPCACHE_UNROLL
    for (int32_t i = 0; i < vector; ++i) {
      // A lane's own element is as far from lane 0's in every field.
      const auto element = [&](int32_t field) {
        return layout::element(HeadDim, lane_word{0, first + i}, field);
      };
      if constexpr (!one_group) load_token_scales(tile, element(0).channel / group_size, kept);
      float low = sum_base;
      float high = sum_base;
      ZIPCACHE_UNROLL
      for (int32_t top = fields - 1; top >= 0; top -= 4) {
        const tile_element own = element(top - 3 + tile.lane / 8);
        uint32_t pairs[4];
        load_transposed_matrices(pairs, tile.row(own.token + tile.lane % 8) + own.channel);
        ZIPCACHE_UNROLL
        for (int32_t field = top; field > top - 4; --field) {
          const tile_element here = element(field);
          channel_divisor c{};
          if constexpr (side::divides) {
            const float* divisor = divisors + here.channel + tile.lane / 4;
            c = {divisor[0], Bits == 4 ? 0.0f : divisor[HeadDim]};
          }
          if (field < fields - 1) {
            low = next_field<Bits>(low);
            high = next_field<Bits>(high);
          }
          const uint32_t pair = pairs[field - (top - 3)];
          const int32_t token = here.token / 8 * 2;
          low = codes(kept[token]).add(first_of<Storage>(pair), c, low);
          high = codes(kept[token + 1]).add(second_of<Storage>(pair), c, high);
        }
      }
      packed[i] = word_of_sums(low, high);
    }
    save_words(words + lane_word_index(tile.lane, first, words_per_lane), packed);
  }
}

// --- pairs
// -----------------------------------------------------------------------------------------

/// Range of one lane's token over a group's channels.
template <class Storage, class Rows>
__device__ __forceinline__ bool regular_token_range(const staged_tile<Storage, Rows>& tile,
                                                    int32_t first, int32_t last,
                                                    value_range& range) {
  unchecked_pair_range<Storage> pairs;
  const Storage* row = tile.row(tile.lane);
#pragma unroll 4
  for (int32_t channel = first; channel < last; channel += 8) {
    const uint4 values = *reinterpret_cast<const uint4*>(row + channel);
    pairs.include(values.x);
    pairs.include(values.y);
    pairs.include(values.z);
    pairs.include(values.w);
  }
  range = range_of(fminf(first_of<Storage>(pairs.lowest), second_of<Storage>(pairs.lowest)),
                   fmaxf(first_of<Storage>(pairs.highest), second_of<Storage>(pairs.highest)));
  return pairs.is_finite();
}

/// How far a range of quotients may be off, of itself and besides: where it was computed in float,
/// with RN(1 / c) for 1 / c, and in half.
struct range_error {
  float relative;
  float absolute;
};
inline constexpr range_error float_range_error{4.7683716e-7f, 0.0f};
inline constexpr range_error half_range_error{9.8e-4f, 5.9604645e-8f};

/// Includes some quotients of neighbouring channels of a token in float. Ranges hold zero, and NaN
/// where a value is NaN.
template <int Count, class Storage>
__device__ __forceinline__ void include_quotients(value_range& range, const uint32_t* pairs,
                                                  const float* divisors) {
  ZIPCACHE_UNROLL
  for (int32_t i = 0; i < Count / 2; ++i) {
    const float a = __fmul_rn(first_of<Storage>(pairs[i]), divisors[2 * i]);
    const float b = __fmul_rn(second_of<Storage>(pairs[i]), divisors[2 * i + 1]);
    range.lowest = lower_or_nan(lower_or_nan(range.lowest, a), b);
    range.highest = higher_or_nan(higher_or_nan(range.highest, a), b);
  }
}

/// Range of the quotients of one lane's token, in float. divisors: as above
template <int HeadDim, class Storage, class Rows>
__device__ __forceinline__ value_range lane_quotient_range(const staged_tile<Storage, Rows>& tile,
                                                           const float* divisors) {
  const Storage* row = tile.row(tile.lane);
  value_range range{0.0f, 0.0f};
#pragma unroll 2
  for (int32_t channel = 0; channel < HeadDim; channel += 8) {
    const uint4 values = *reinterpret_cast<const uint4*>(row + channel);
    const float4 first = *reinterpret_cast<const float4*>(divisors + channel);
    const float4 second = *reinterpret_cast<const float4*>(divisors + channel + 4);
    const uint32_t pairs[4] = {values.x, values.y, values.z, values.w};
    const float factors[8] = {first.x,  first.y,  first.z,  first.w,
                              second.x, second.y, second.z, second.w};
    include_quotients<8, Storage>(range, pairs, factors);
  }
  return range;
}

/// The same of one token by the whole warp.
template <int HeadDim, class Storage, class Rows>
__device__ __forceinline__ value_range warp_quotient_range(const staged_tile<Storage, Rows>& tile,
                                                           int32_t token, const float* divisors) {
  constexpr int32_t own = HeadDim / 32;
  const auto* pairs = reinterpret_cast<const uint32_t*>(tile.row(token) + own * tile.lane);
  uint32_t values[own / 2];
  float factors[own];
  ZIPCACHE_UNROLL
  for (int32_t i = 0; i < own / 2; ++i) values[i] = pairs[i];
  ZIPCACHE_UNROLL
  for (int32_t i = 0; i < own; ++i) factors[i] = divisors[own * tile.lane + i];
  value_range range{0.0f, 0.0f};
  include_quotients<own, Storage>(range, values, factors);
  // Numbers of one sign are in the order of their bits.
  const uint32_t below = __reduce_max_sync(whole_warp, bits_of(0.0f - range.lowest));
  const uint32_t above = __reduce_max_sync(whole_warp, bits_of(range.highest));
  return {0.0f - float_of(below), float_of(above)};
}

__device__ __forceinline__ uint32_t multiply_pair(uint32_t a, uint32_t b) {
  uint32_t result;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
  return result;
}

/// Range of the quotients of one lane's token, in half: two at a time. scratch: the warp's,
/// [head_dim]
template <int HeadDim, class Rows>
__device__ __forceinline__ value_range lane_half_quotient_range(const staged_tile<half, Rows>& tile,
                                                                const float* divisors,
                                                                uint32_t* scratch) {
  ZIPCACHE_UNROLL
  for (int32_t i = tile.lane; i < HeadDim / 2; i += 32) {
    scratch[i] = static_cast<uint32_t>(from_float<half>(divisors[2 * i]).bits) |
                 static_cast<uint32_t>(from_float<half>(divisors[2 * i + 1]).bits) << 16;
  }
  __syncwarp();
  const half* row = tile.row(tile.lane);
  unchecked_pair_range<half> range;
#pragma unroll 4
  for (int32_t channel = 0; channel < HeadDim; channel += 8) {
    const uint4 values = *reinterpret_cast<const uint4*>(row + channel);
    const uint4 factors = *reinterpret_cast<const uint4*>(scratch + channel / 2);
    range.include(multiply_pair(values.x, factors.x));
    range.include(multiply_pair(values.y, factors.y));
    range.include(multiply_pair(values.z, factors.z));
    range.include(multiply_pair(values.w, factors.w));
  }
  const float lowest = lower_or_nan(first_of<half>(range.lowest), second_of<half>(range.lowest));
  const float highest =
      higher_or_nan(first_of<half>(range.highest), second_of<half>(range.highest));
  return {lower_or_nan(lowest, 0.0f), higher_or_nan(highest, 0.0f)};
}

/// The pair that compact_affine<Bits>::fit makes of a range that holds zero and is known so well;
/// false where that does not decide it.
template <int Bits>
__device__ __forceinline__ bool near_compact_pair(value_range near, range_error error,
                                                  compact_pair& pair) {
  using affine = compact_affine<Bits>;
  // Rounding here and there: 2^-21 of a step, and 2^-16 of a zero, which is 16 at most.
  const float relative = error.relative + 4.7683716e-7f;
  const float step =
      __fmul_rn(__fsub_rn(near.highest, near.lowest), 1.0f / static_cast<float>(affine::max_code));
  const float step_error = __fmaf_rn(step, relative, error.absolute);
  const uint32_t index = short_scale_of(step - step_error, affine::largest_step);
  const uint32_t above = short_scale_of(step + step_error, affine::largest_step);
  const float inverse = __frcp_rn(widen_short_scale(index) * affine::unit);
  const float zero = __fmul_rn(0.0f - near.lowest, inverse);
  const float zero_error = __fmaf_rn(zero, relative, __fmaf_rn(error.absolute, inverse, 1.5e-5f));
  const auto zero_below = static_cast<int32_t>(fminf(zero + (0.5f - zero_error), 15.0f));
  const auto zero_above = static_cast<int32_t>(fminf(zero + (0.5f + zero_error), 15.0f));
  const bool has_step = index > 0;
  pair = {static_cast<uint8_t>(index), static_cast<uint8_t>(has_step ? zero_above : 0)};
  return index == above && (!has_step || zero_below == zero_above);
}

/// The compact pair of this lane's token, and its highest quotient, nearly; false where they are
/// not found, of some value that is not finite for example.
template <int Bits, int HeadDim, class Storage, class Rows>
__device__ __forceinline__ bool fit_quotients(const staged_tile<Storage, Rows>& tile,
                                              const float* divisors, uint32_t* scratch,
                                              compact_pair& pair, float& highest) {
  value_range range;
  bool decided;
  if constexpr (std::is_same_v<Storage, half>) {
    range = lane_half_quotient_range<HeadDim>(tile, divisors, scratch);
    const bool finite = is_finite(range.lowest) && is_finite(range.highest);
    if (!__all_sync(whole_warp, finite)) return false;
    decided = near_compact_pair<Bits>(range, half_range_error, pair);
    // One token in thirty is too near to where its pair would be another one.
    const uint32_t undecided = __ballot_sync(whole_warp, !decided);
#pragma unroll 1
    for (uint32_t left = undecided; left != 0; left &= left - 1) {
      const int32_t token = __ffs(static_cast<int32_t>(left)) - 1;
      const value_range exact = warp_quotient_range<HeadDim>(tile, token, divisors);
      if (tile.lane == token) range = exact;
    }
    if (undecided != 0) {
      compact_pair near;
      const bool found = near_compact_pair<Bits>(range, float_range_error, near);
      if (!decided) pair = near;
      decided = decided || found;
    }
  } else {
    range = lane_quotient_range<HeadDim>(tile, divisors);
    decided = is_finite(range.lowest) && is_finite(range.highest) &&
              near_compact_pair<Bits>(range, float_range_error, pair);
  }
  highest = range.highest;
  return decided;
}

/// Writes compact pairs of the tile's tokens, a lane each. The lane of the even token has the byte
/// of both zeros.
__device__ __forceinline__ void save_compact_pair(std::byte* pairs, int32_t lane,
                                                  compact_pair pair) {
  auto* steps = reinterpret_cast<uint8_t*>(pairs);
  const uint32_t zero = pair.zero;
  const uint32_t next = __shfl_down_sync(whole_warp, zero, 1);
  steps[token_parameter_slot(lane)] = pair.step;
  if (lane % 2 == 0)
    steps[tile_tokens + compact_zero_place_of(lane).byte] = static_cast<uint8_t>(zero | next << 4);
}

/// Fits and writes the pairs of a tile's tokens, and keeps what their codes need. False in all
/// lanes, and nothing of use is written, where the tile is not regular.
template <class Granularity, int Bits, int HeadDim, class Storage, class Rows>
__device__ __forceinline__ bool fit_regular_tokens(const staged_tile<Storage, Rows>& tile,
                                                   const float* divisors, uint32_t* scratch,
                                                   affine_params<Storage>* pairs) {
  using side = regular_codes<Granularity, Bits>;
  using codes = typename side::type;
  if constexpr (side::divides) {
    compact_pair pair{};
    float highest = 0.0f;
    bool regular = fit_quotients<Bits, HeadDim>(tile, divisors, scratch, pair, highest);
    const float step = widen_short_scale(pair.step);
    const float min = 0.0f - step * (compact_affine<Bits>::unit * static_cast<float>(pair.zero));
    const quantize_scale scale{min, step > 0.0f ? __frcp_rn(step) : 0.0f};
    // Codes of quotients are clamped, but those of 2 bits at 4.
    if constexpr (Bits == 2) regular = regular && (highest - min) * scale.inverse_step < 3.46875f;
    if (!__all_sync(whole_warp, regular)) return false;
    save_compact_pair(reinterpret_cast<std::byte*>(pairs), tile.lane, pair);
    tile.scales[tile.lane] = codes::keep(scale);
    return true;
  } else {
    constexpr int32_t group_size = channels_per_group<Granularity>(HeadDim);
    bool regular = true;
#pragma unroll 1
    for (int32_t group = 0; group < HeadDim / group_size; ++group) {
      value_range range;
      const bool finite =
          regular_token_range(tile, group * group_size, (group + 1) * group_size, range);
      const affine_params<Storage> params = affine<Bits>::template fit<Storage>(range);
      const affine_scale wide = affine<Bits>::widen(params);
      const quantize_scale scale{wide.min, wide.inverse_step};
      regular = regular && finite && needs_no_clamp<Bits>(range.lowest, range.highest, scale);
      pairs[group * tile_tokens + token_parameter_slot(tile.lane)] = params;
      tile.scales[group * tile_tokens + tile.lane] = codes::keep(scale);
    }
    return __all_sync(whole_warp, regular);
  }
}

/// The same for a pair of each channel of the tile, four or two neighbouring channels a lane.
template <int Bits, int HeadDim, class Storage, class Rows>
__device__ __forceinline__ bool fit_regular_channels(const staged_tile<Storage, Rows>& tile,
                                                     affine_params<Storage>* pairs) {
  constexpr int32_t words = HeadDim / 64;
  unchecked_pair_range<Storage> ranges[words];
  const int32_t channel = 2 * words * tile.lane;
#pragma unroll 8
  for (int32_t token = 0; token < tile_tokens; ++token) {
    const auto* values = reinterpret_cast<const uint32_t*>(tile.row(token) + channel);
    if constexpr (words == 2) {
      const uint2 both = *reinterpret_cast<const uint2*>(values);
      ranges[0].include(both.x);
      ranges[1].include(both.y);
    } else {
      ranges[0].include(*values);
    }
  }
  bool regular = true;
  ZIPCACHE_UNROLL
  for (int32_t i = 0; i < words; ++i) {
    regular = regular && ranges[i].is_finite();
#pragma unroll 1
    for (int32_t j = 0; j < 2; ++j) {
      const auto value = [j](uint32_t pair) {
        return first_of<Storage>(j == 0 ? pair : pair >> 16);
      };
      const value_range range = range_of(value(ranges[i].lowest), value(ranges[i].highest));
      const affine_params<Storage> params = affine<Bits>::template fit<Storage>(range);
      const affine_scale wide = affine<Bits>::widen(params);
      const quantize_scale scale{wide.min, wide.inverse_step};
      regular = regular && needs_no_clamp<Bits>(range.lowest, range.highest, scale);
      pairs[channel + 2 * i + j] = params;
      tile.scales[channel + 2 * i + j] = scale;
    }
  }
  return __all_sync(whole_warp, regular);
}

// --- a side
// ---------------------------------------------------------------------------------------

/// What a tile's codes need of their segment, in shared memory.
struct segment_shares {
  const quantize_scale* scales;  ///< [head_dim]: of the tile's class, where pairs are the segment's
  const float* divisors;         ///< [2, head_dim]: all `high`, then `low`
  uint32_t* scratch;             ///< [head_dim / 2] of the warp's own
};

/// Which sides have regular tiles at all: by channel, keys; by token, both, where a word of values
/// lies in one group.
template <bool Keys, class Granularity, int Bits, int HeadDim>
inline constexpr bool has_regular_tiles =
    (Bits == 2 || Bits == 4) && (HeadDim == 64 || HeadDim == 128) &&
    (Granularity::axis == parameter_axis::channel
         ? Keys && !Granularity::has_channel_magnitudes
         : Granularity::has_channel_magnitudes == has_compact_pairs<Granularity> &&
               Granularity::group_size % (Bits == 4 ? 16 : 32) == 0);

/// @brief Writes one side of a full tile if it is regular, and says so. Called by a whole warp
/// whose lanes see the rows; pairs of the segment, if the side has such, need no clamps.
/// @param[out] codes, pairs  as of encode_tile_side
template <bool Keys, class Granularity, int Bits, int HeadDim, class Storage, class Rows>
__device__ __forceinline__ bool write_regular_side(const staged_tile<Storage, Rows>& tile,
                                                   segment_shares shares, uint32_t* codes,
                                                   affine_params<Storage>* pairs) {
  const quantize_scale* scales = shares.scales;
  if constexpr (Granularity::axis == parameter_axis::token) {
    if (!fit_regular_tokens<Granularity, Bits, HeadDim>(tile, shares.divisors, shares.scratch,
                                                        pairs))
      return false;
    __syncwarp();
  } else if constexpr (Granularity::home == parameter_home::tile) {
    if (!fit_regular_channels<Bits, HeadDim>(tile, pairs)) return false;
    __syncwarp();
    scales = tile.scales;
  }
  if constexpr (Keys) {
    write_regular_keys<Granularity, Bits, HeadDim>(tile, scales, codes);
  } else {
    write_regular_values<Granularity, Bits, HeadDim>(tile, shares.divisors, codes);
  }
  return true;
}

}  // namespace zipcache::detail

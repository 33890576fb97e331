// One side (keys or values) of one tile on the device, by one warp from 16-bit rows in shared
// memory: the bytes that encode.cuh writes, in a fraction of its instructions. A lane builds the
// words that are its own in the layout, four neighbouring channels of a token or two neighbouring
// tokens of a channel at a time. Prompts (store.cuh) and intervals (staged_flush.cuh) are encoded
// so. Twin: encode.hpp.
// @equality same_bytes
#pragma once

#include <cstdint>
#include <type_traits>

#include <zipcache/core/cuda.cuh>
#include <zipcache/core/numerics.hpp>
#include <zipcache/core/types.hpp>
#include <zipcache/detail/tensor_core.cuh>
#include <zipcache/detail/warp.cuh>
#include <zipcache/store/encode.cuh>
#include <zipcache/store/pair_arithmetic.cuh>

namespace zipcache::detail {

// --- a tile
// ---------------------------------------------------------------------------------------

/// Where a tile's rows begin, in values: one behind the other, or anywhere.
struct even_rows {
  int32_t stride;
  __device__ __forceinline__ int32_t offset(int32_t token) const { return token * stride; }
};
struct listed_rows {
  const int32_t* offsets;  ///< shared memory, [32]
  __device__ __forceinline__ int32_t offset(int32_t token) const { return offsets[token]; }
};

/// A tile of one side as a warp sees it. Rows without a token hold NaN, or zeros at 16 bits.
template <class Storage, class Rows>
struct staged_tile {
  const Storage* rows;  ///< shared memory, rows aligned to 16 bytes
  Rows places;
  int32_t head_dim;
  int32_t count;
  int32_t lane;
  quantize_scale* scales;  ///< shared memory: [groups, 32] by token, [head_dim] by channel
  const quantize_scale* segment_scales;  ///< [head_dim]: of layouts whose pairs the segment has
  const float* divisors;      ///< [2, head_dim]: of layouts with magnitudes, all `high`, then `low`
  const Storage* magnitudes;  ///< [head_dim]: likewise

  __device__ __forceinline__ const Storage* row(int32_t token) const {
    return rows + places.offset(token);
  }
};

/// Distance of staged rows, in values. Keys are read as four channels of eight rows at a time,
/// values as matrices of eight rows, and both are free of bank conflicts then.
template <class Granularity, bool Keys>
ZIPCACHE_HOST_DEVICE constexpr int32_t staged_stride(int32_t head_dim) {
  return head_dim + (Keys && Granularity::axis == parameter_axis::channel ? 16 : 8);
}

/// Scales in shared memory that a tile needs.
template <class Granularity, int Bits>
ZIPCACHE_HOST_DEVICE constexpr int32_t staged_scales(int32_t head_dim) {
  if (!has_pairs(Bits)) return 0;
  if (Granularity::axis == parameter_axis::token)
    return tile_tokens * groups_per_token<Granularity>(head_dim);
  return Granularity::home == parameter_home::tile ? head_dim : 0;
}

/// A channel's share of a code: its scale, or what it is divided by.
struct channel_share {
  quantize_scale scale;
  channel_divisor divisor;
};

/// How codes are made. `Exceptional`: some value is not finite, or too small to divide quickly.
template <class Granularity, int Bits, class Storage, class Rows, bool Exceptional>
struct value_coder {
  static constexpr bool by_channel = Granularity::axis == parameter_axis::channel;
  static constexpr bool has_magnitudes = Granularity::has_channel_magnitudes;
  /// Codes come as the bits of 2^23 + code.
  static constexpr uint32_t code_base = 0x4b000000u;

  const staged_tile<Storage, Rows>& tile;

  __device__ __forceinline__ channel_share share_of(int32_t channel) const {
    channel_share share{};
    if constexpr (by_channel) {
      share.scale = Granularity::home == parameter_home::segment ? tile.segment_scales[channel]
                                                                 : tile.scales[channel];
    }
    if constexpr (has_magnitudes) {
      if constexpr (Exceptional) {
        share.divisor.high = to_float(tile.magnitudes[channel]);
      } else {
        share.divisor = {tile.divisors[channel], tile.divisors[tile.head_dim + channel]};
      }
    }
    return share;
  }
  /// Of four channels, the first of which is a multiple of four.
  __device__ __forceinline__ void load_shares(int32_t channel, channel_share (&shares)[4]) const {
    if constexpr (by_channel) {
      const auto* scales = reinterpret_cast<const float4*>(
          (Granularity::home == parameter_home::segment ? tile.segment_scales : tile.scales) +
          channel);
      const float4 first = scales[0];
      const float4 second = scales[1];
      shares[0].scale = {first.x, first.y};
      shares[1].scale = {first.z, first.w};
      shares[2].scale = {second.x, second.y};
      shares[3].scale = {second.z, second.w};
    } else {
      ZIPCACHE_UNROLL
      for (int32_t j = 0; j < 4; ++j) shares[j] = share_of(channel + j);
    }
  }
  __device__ __forceinline__ const quantize_scale* token_scales(int32_t channel) const {
    return tile.scales +
           (Granularity::group_size == 0
                ? 0
                : channel / channels_per_group<Granularity>(tile.head_dim) * tile_tokens);
  }

  __device__ __forceinline__ static float normalize(float x, channel_divisor divisor) {
    if constexpr (!has_magnitudes) {
      return x;
    } else if constexpr (Exceptional) {
      return divide(x, divisor.high);
    } else {
      return __fmaf_rn(x, divisor.high, __fmul_rn(x, divisor.low));
    }
  }

  /// 2^23 + code, as affine<Bits>::quantize makes it.
  __device__ __forceinline__ static uint32_t code(float raw, channel_share share,
                                                  quantize_scale token_scale) {
    const quantize_scale scale = by_channel ? share.scale : token_scale;
    const float x = normalize(raw, share.divisor);
    if constexpr (std::is_same_v<Storage, half>) {
      // Differences of halves, and of their quotients, are finite in float where the values are;
      // and an infinite one clamps as it does there. fmaxf turns NaN into 0.
      constexpr float max_code = static_cast<float>(affine<Bits>::max_code);
      const float position = __fmul_rn(__fsub_rn(x, scale.min), scale.inverse_step);
      return bits_of(fminf(fmaxf(position, 0.0f), max_code) + 8388608.0f);
    } else {
      return code_base + affine<Bits>::quantize(x, {0.0f, scale.min, scale.inverse_step});
    }
  }
};

/// Which bits of a code a plane of words keeps; 3-bit codes have two planes.
enum class code_plane { whole, low_two, third };

template <code_plane Plane>
__device__ __forceinline__ uint32_t in_plane(uint32_t code, int32_t shift) {
  constexpr uint32_t base = 0x4b000000u;
  if constexpr (Plane == code_plane::whole) {
    // The base is taken away as a constant of the whole word.
    return (code << shift) - (base << shift);
  } else if constexpr (Plane == code_plane::low_two) {
    return (code & 3u) << shift;
  } else {
    return (code >> 2 & 1u) << shift;
  }
}

/// Word `word` of a lane of a key plane: byte j has channel j of four, its fields are octets of
/// tokens and, at one bit, two blocks of channels.
template <class Layout, int Bits, code_plane Plane, class Coder, class Storage, class Rows>
__device__ __forceinline__ uint32_t key_word(const Coder& coder,
                                             const staged_tile<Storage, Rows>& tile,
                                             int32_t head_dim, int32_t index) {
  constexpr int32_t octets = Layout::octets_per_word;
  uint32_t word = 0;
  ZIPCACHE_UNROLL
  for (int32_t part = 0; part < Layout::blocks_per_word; ++part) {
    const int32_t block = Layout::element(head_dim, lane_word{0, index}, octets * part).channel;
    if (Layout::blocks_per_word > 1 && block >= head_dim) continue;
    const int32_t channel = block + tile.lane % 4 * 4;
    channel_share shares[4];
    coder.load_shares(channel, shares);
    ZIPCACHE_UNROLL
    for (int32_t octet = 0; octet < octets; ++octet) {
      const int32_t field = octets * part + octet;
      const int32_t token =
          Layout::element(head_dim, lane_word{0, index}, field).token + tile.lane / 4;
      const uint2 values = *reinterpret_cast<const uint2*>(tile.row(token) + channel);
      quantize_scale scale{};
      if constexpr (!Coder::by_channel) scale = coder.token_scales(channel)[token];
      const float x[4] = {first_of<Storage>(values.x), second_of<Storage>(values.x),
                          first_of<Storage>(values.y), second_of<Storage>(values.y)};
      ZIPCACHE_UNROLL
      for (int32_t j = 0; j < 4; ++j)
        word += in_plane<Plane>(Coder::code(x[j], shares[j], scale), 8 * j + Bits * field);
    }
  }
  return word;
}

/// Word `index` of a lane of a value plane: its halves have two neighbouring tokens, and the fields
/// of both the same channels and rows of eight tokens.
template <class Layout, int Bits, code_plane Plane, class Coder, class Storage, class Rows>
__device__ __forceinline__ uint32_t value_word(const Coder& coder,
                                               const staged_tile<Storage, Rows>& tile,
                                               int32_t head_dim, int32_t index) {
  constexpr int32_t fields = 16 / Bits;  // of a half
  constexpr int32_t at_once = least(fields, 4);
  uint32_t word = 0;
  ZIPCACHE_UNROLL
  for (int32_t first = 0; first < fields; first += at_once) {
    const tile_element own =
        Layout::element(head_dim, lane_word{0, index}, first + tile.lane / 8 % at_once);
    uint32_t pairs[4];
    load_transposed_matrices(
        pairs, tile.row(own.token + tile.lane % 8) + (own.channel < head_dim ? own.channel : 0));
    ZIPCACHE_UNROLL
    for (int32_t i = 0; i < at_once; ++i) {
      const tile_element element = Layout::element(head_dim, lane_word{0, index}, first + i);
      if (Bits == 1 && element.channel >= head_dim) continue;
      const int32_t channel = element.channel + tile.lane / 4;
      const channel_share share = coder.share_of(channel);
      float4 scales{};
      if constexpr (!Coder::by_channel) {
        scales = *reinterpret_cast<const float4*>(coder.token_scales(element.channel) +
                                                  element.token + tile.lane % 4 * 2);
      }
      const int32_t shift = Bits * (first + i);
      word += in_plane<Plane>(Coder::code(first_of<Storage>(pairs[i]), share, {scales.x, scales.y}),
                              shift);
      word += in_plane<Plane>(
          Coder::code(second_of<Storage>(pairs[i]), share, {scales.z, scales.w}), 16 + shift);
    }
  }
  return word;
}

/// All words of one plane. HeadDim is the tile's head_dim, or 0 where it is known at run time only.
template <bool Keys, int Bits, code_plane Plane, int HeadDim, class Coder, class Storage,
          class Rows>
__device__ __forceinline__ void write_plane(const Coder& coder,
                                            const staged_tile<Storage, Rows>& tile,
                                            uint32_t* words) {
  using layout = std::conditional_t<Keys, key_layout<Bits>, value_layout<Bits>>;
  constexpr int32_t known_words = HeadDim == 0 ? 1 : layout::words_per_lane(HeadDim);
  constexpr int32_t vector = known_words % 4 == 0 ? 4 : (known_words % 2 == 0 ? 2 : 1);
  const int32_t head_dim = HeadDim == 0 ? tile.head_dim : HeadDim;
  const int32_t per_lane = layout::words_per_lane(head_dim);
  // A loop of few instructions: warps are at different places of the kernel, and the instruction
  // cache is small. So words move up in `packed` until it is full.
  constexpr int32_t at_once = Bits >= 4 && vector >= 2 ? 2 : 1;
  uint32_t packed[vector] = {};
#pragma unroll 1
  for (int32_t step = 0; step < per_lane / at_once; ++step) {
    ZIPCACHE_UNROLL
    for (int32_t i = at_once; i < vector; ++i) packed[i - at_once] = packed[i];
    ZIPCACHE_UNROLL
    for (int32_t i = 0; i < at_once; ++i) {
      uint32_t& word = packed[vector - at_once + i];
      if constexpr (Keys) {
        word = key_word<layout, Bits, Plane>(coder, tile, head_dim, at_once * step + i);
      } else {
        word = value_word<layout, Bits, Plane>(coder, tile, head_dim, at_once * step + i);
      }
    }
    const int32_t next = at_once * (step + 1);
    if (next % vector == 0)
      save_words(words + lane_word_index(tile.lane, next - vector, per_lane), packed);
  }
}

/// 16-bit words: two values of the rows.
template <bool Keys, int HeadDim, class Storage, class Rows>
__device__ void copy_plane(const staged_tile<Storage, Rows>& tile, uint32_t* words) {
  using layout = std::conditional_t<Keys, key_layout<16>, value_layout<16>>;
  constexpr int32_t vector = 4;  // head_dim is a multiple of 16
  const int32_t head_dim = HeadDim == 0 ? tile.head_dim : HeadDim;
  const int32_t per_lane = layout::words_per_lane(head_dim);
#pragma unroll 2
  for (int32_t step = 0; step < per_lane / vector; ++step) {
    uint32_t packed[vector];
    ZIPCACHE_UNROLL
    for (int32_t i = 0; i < vector; ++i) {
      const lane_word place{tile.lane, vector * step + i};
      const tile_element low = layout::element(head_dim, place, 0);
      const tile_element high = layout::element(head_dim, place, 1);
      const float x = to_float(tile.row(low.token)[low.channel]);
      const float y = to_float(tile.row(high.token)[high.channel]);
      // By way of float, which makes all NaNs one.
      packed[i] = static_cast<uint32_t>(from_float<Storage>(x).bits) |
                  static_cast<uint32_t>(from_float<Storage>(y).bits) << 16;
    }
    save_words(words + lane_word_index(tile.lane, vector * step, per_lane), packed);
  }
}

/// Range of channels [first, last) of this lane's token.
template <class Coder, class Granularity, class Storage, class Rows>
__device__ __forceinline__ value_range token_range(const staged_tile<Storage, Rows>& tile,
                                                   int32_t first, int32_t last, bool& exceptional) {
  const Storage* row = tile.row(tile.lane);
  if constexpr (!Granularity::has_channel_magnitudes) {
    pair_range range;
#pragma unroll 4
    for (int32_t channel = first; channel < last; channel += 8) {
      const uint4 values = *reinterpret_cast<const uint4*>(row + channel);
      include_pair<Storage>(range, values.x);
      include_pair<Storage>(range, values.y);
      include_pair<Storage>(range, values.z);
      include_pair<Storage>(range, values.w);
    }
    return range_of(fminf(first_of<Storage>(range.lowest), second_of<Storage>(range.lowest)),
                    fmaxf(first_of<Storage>(range.highest), second_of<Storage>(range.highest)));
  } else {
    const value_range none;
    float lowest = none.lowest;
    float highest = none.highest;
    uint32_t finite = 0;
#pragma unroll 2
    for (int32_t channel = first; channel < last; channel += 8) {
      const uint4 values = *reinterpret_cast<const uint4*>(row + channel);
      const uint32_t pairs[4] = {values.x, values.y, values.z, values.w};
      ZIPCACHE_UNROLL
      for (int32_t i = 0; i < 4; ++i) {
        // Zeros, as long as all are finite.
        finite = add_zero_times<Storage>(pairs[i], finite);
        const float* divisors = tile.divisors + channel + 2 * i;
        const float2 high = *reinterpret_cast<const float2*>(divisors);
        const float2 low = *reinterpret_cast<const float2*>(divisors + tile.head_dim);
        const float left = first_of<Storage>(pairs[i]);
        const float right = second_of<Storage>(pairs[i]);
        const float a = Coder::normalize(left, {high.x, low.x});
        const float b = Coder::normalize(right, {high.y, low.y});
        lowest = fminf(lowest, fminf(a, b));
        highest = fmaxf(highest, fmaxf(a, b));
        exceptional =
            exceptional || !divides_exactly<Storage>(left) || !divides_exactly<Storage>(right);
      }
    }
    exceptional = exceptional || magnitude_pair(finite) != 0u;
    return range_of(lowest, highest);
  }
}

/// The same where values are exceptional.
template <class Storage, class Rows>
__device__ value_range exceptional_token_range(const staged_tile<Storage, Rows>& tile,
                                               int32_t first, int32_t last) {
  value_range range;
#pragma unroll 1
  for (int32_t channel = first; channel < last; ++channel) {
    range = include(
        range, divide(to_float(tile.row(tile.lane)[channel]), to_float(tile.magnitudes[channel])));
  }
  return range;
}

/// Pairs of the tile's tokens, a lane each, written to `pairs` and as scales. True in all lanes if
/// a value is exceptional.
template <class Granularity, int Bits, class Storage, class Rows>
__device__ bool fit_staged_tokens(const staged_tile<Storage, Rows>& tile, int32_t head_dim,
                                  affine_params<Storage>* pairs) {
  using coder = value_coder<Granularity, Bits, Storage, Rows, false>;
  const int32_t group_size = channels_per_group<Granularity>(head_dim);
  bool is_exceptional = false;
#pragma unroll 1
  for (int32_t group = 0; group < groups_per_token<Granularity>(head_dim); ++group) {
    bool exceptional = false;
    value_range range = token_range<coder, Granularity>(tile, group * group_size,
                                                        (group + 1) * group_size, exceptional);
    if constexpr (Granularity::has_channel_magnitudes) {
      if (__any_sync(whole_warp, exceptional && tile.lane < tile.count)) {
        range = exceptional_token_range(tile, group * group_size, (group + 1) * group_size);
        is_exceptional = true;
      }
    }
    const affine_params<Storage> params = fit_pair<Granularity, Bits, Storage>(range);
    const affine_scale scale = affine<Bits>::widen(params);
    save_lanes_pair<Granularity, Bits, 1>(pairs, tile.lane, group, params);
    tile.scales[group * tile_tokens + tile.lane] = {scale.min, scale.inverse_step};
  }
  return is_exceptional;
}

/// One pair for each channel of the tile, two channels a lane, written to `pairs` and as scales.
template <int Bits, class Storage, class Rows>
__device__ void fit_staged_channels(const staged_tile<Storage, Rows>& tile, int32_t head_dim,
                                    affine_params<Storage>* pairs) {
  for (int32_t channel = 2 * tile.lane; channel < head_dim; channel += 64) {
    pair_range range;
#pragma unroll 8
    for (int32_t token = 0; token < tile_tokens; ++token)
      include_pair<Storage>(range, *reinterpret_cast<const uint32_t*>(tile.row(token) + channel));
    const value_range ranges[2] = {
        range_of(first_of<Storage>(range.lowest), first_of<Storage>(range.highest)),
        range_of(second_of<Storage>(range.lowest), second_of<Storage>(range.highest))};
    ZIPCACHE_UNROLL
    for (int32_t i = 0; i < 2; ++i) {
      const affine_params<Storage> params = affine<Bits>::template fit<Storage>(ranges[i]);
      const affine_scale scale = affine<Bits>::widen(params);
      pairs[channel + i] = params;
      tile.scales[channel + i] = {scale.min, scale.inverse_step};
    }
  }
}

template <bool Keys, int Bits, int HeadDim, class Coder, class Storage, class Rows>
__device__ __forceinline__ void write_codes(const Coder& coder,
                                            const staged_tile<Storage, Rows>& tile,
                                            uint32_t* codes) {
  if constexpr (Bits == 3) {
    using low = std::conditional_t<Keys, key_layout<2>, value_layout<2>>;
    write_plane<Keys, 2, code_plane::low_two, HeadDim>(coder, tile, codes);
    write_plane<Keys, 1, code_plane::third, HeadDim>(coder, tile,
                                                     codes + low::words(tile.head_dim));
  } else {
    write_plane<Keys, Bits, code_plane::whole, HeadDim>(coder, tile, codes);
  }
}

/// @brief Writes one side of a tile: the bytes that `encode_side` writes. Called by a whole warp
/// whose lanes see the rows.
/// @param[out] codes, pairs  as of encode_tile_side
template <bool Keys, class Granularity, int Bits, int HeadDim, class Storage, class Rows>
__device__ void encode_staged_side(const staged_tile<Storage, Rows>& tile, uint32_t* codes,
                                   affine_params<Storage>* pairs) {
  const int32_t head_dim = HeadDim == 0 ? tile.head_dim : HeadDim;
  if constexpr (Bits == 16) {
    copy_plane<Keys, HeadDim>(tile, codes);
  } else if constexpr (Bits > 0) {
    if constexpr (Granularity::axis == parameter_axis::token) {
      const bool exceptional = fit_staged_tokens<Granularity, Bits>(tile, head_dim, pairs);
      __syncwarp();
      if constexpr (Granularity::has_channel_magnitudes) {
        if (exceptional) {
          write_codes<Keys, Bits, 0>(value_coder<Granularity, Bits, Storage, Rows, true>{tile},
                                     tile, codes);
          return;
        }
      }
    } else if constexpr (Granularity::home == parameter_home::tile) {
      fit_staged_channels<Bits>(tile, head_dim, pairs);
      __syncwarp();
    }
    write_codes<Keys, Bits, HeadDim>(value_coder<Granularity, Bits, Storage, Rows, false>{tile},
                                     tile, codes);
  }
}

// --- what a segment's statistics come to, and what a warp works in
// --------------------------------

/// What codes need of one side of a head, in float. [3, head_dim]; the divisors are two rows of
/// floats instead of pairs.
enum side_scales : int32_t { salient_scales, regular_scales, side_divisors, side_scales_count };

/// Writes what the record keeps of one channel of one side, and what its codes need of that.
template <class Quantizer, bool Keys, class Policies, class Storage>
__device__ void save_channel(const channel_statistics& statistics, int32_t channel,
                             const record_view<Policies, Storage>& record, float2* scales) {
  using needed = needed_statistics<Quantizer>;
  const int32_t head_dim = record.head_dim;
  affine_params<Storage>* salient_pairs;
  affine_params<Storage>* regular_pairs;
  Storage* magnitudes;
  if constexpr (Keys) {
    salient_pairs = record.template key_pairs<token_class::salient>();
    regular_pairs = record.template key_pairs<token_class::regular>();
    magnitudes = record.key_magnitudes();
  } else {
    salient_pairs = record.template value_pairs<token_class::salient>();
    regular_pairs = record.template value_pairs<token_class::regular>();
    magnitudes = record.value_magnitudes();
  }
  save_channel_parameters<Quantizer>(statistics, channel, salient_pairs, regular_pairs, magnitudes);
  if constexpr (needed::salient) {
    const affine_scale scale = affine<needed::salient_bits>::widen(salient_pairs[channel]);
    scales[salient_scales * head_dim + channel] = make_float2(scale.min, scale.inverse_step);
  }
  if constexpr (needed::regular) {
    const affine_scale scale = affine<needed::regular_bits>::widen(regular_pairs[channel]);
    scales[regular_scales * head_dim + channel] = make_float2(scale.min, scale.inverse_step);
  }
  if constexpr (needed::largest) {
    const channel_divisor divisor = divisor_of(to_float(magnitudes[channel]));
    auto* divisors = reinterpret_cast<float*>(scales + side_divisors * head_dim);
    divisors[channel] = divisor.high;
    divisors[head_dim + channel] = divisor.low;
  }
}

/// One side of one tile of `Class` whose rows are there. scales [side_scales_count, head_dim], of
/// the side
template <bool Keys, token_class Class, int HeadDim, class Policies, class Storage, class Rows>
__device__ void encode_staged_class(const record_view<Policies, Storage>& record,
                                    const float2* scales, staged_tile<Storage, Rows> tile,
                                    tile_place at) {
  using layout = tile_record<Policies, Class>;
  const int32_t head_dim = HeadDim == 0 ? tile.head_dim : HeadDim;
  constexpr int32_t which = Class == token_class::salient ? salient_scales : regular_scales;
  tile.segment_scales = reinterpret_cast<const quantize_scale*>(scales + which * head_dim);
  tile.divisors = reinterpret_cast<const float*>(scales + side_divisors * head_dim);
  if constexpr (Keys) {
    tile.magnitudes = record.key_magnitudes();
    encode_staged_side<true, typename layout::key_granularity, layout::key_bits, HeadDim>(
        tile, reinterpret_cast<uint32_t*>(at.codes),
        reinterpret_cast<affine_params<Storage>*>(at.pairs));
  } else {
    tile.magnitudes = record.value_magnitudes();
    encode_staged_side<false, typename layout::value_granularity, layout::value_bits, HeadDim>(
        tile, reinterpret_cast<uint32_t*>(at.codes + layout::value_codes_offset(head_dim)),
        reinterpret_cast<affine_params<Storage>*>(at.pairs + layout::value_pairs_offset(head_dim)));
  }
}

/// What a warp of `Policies` needs in shared memory, at most, for either side and class.
template <class Policies>
struct encode_memory {
  using salient = tile_record<Policies, token_class::salient>;
  using regular = tile_record<Policies, token_class::regular>;

  /// Rows of either side. Bytes.
  ZIPCACHE_HOST_DEVICE static constexpr int32_t row_bytes(int32_t head_dim) {
    const int32_t stride =
        most(staged_stride<typename salient::key_granularity, true>(head_dim),
             staged_stride<typename salient::value_granularity, false>(head_dim));
    return tile_tokens * stride * 2;
  }
  ZIPCACHE_HOST_DEVICE static constexpr int32_t num_scales(int32_t head_dim) {
    const int32_t keys =
        most(staged_scales<typename salient::key_granularity, salient::key_bits>(head_dim),
             staged_scales<typename regular::key_granularity, regular::key_bits>(head_dim));
    const int32_t values =
        most(staged_scales<typename salient::value_granularity, salient::value_bits>(head_dim),
             staged_scales<typename regular::value_granularity, regular::value_bits>(head_dim));
    return most(keys, values);
  }
  ZIPCACHE_HOST_DEVICE static constexpr int32_t warp_bytes(int32_t head_dim) {
    return row_bytes(head_dim) + 8 * num_scales(head_dim);
  }
};

}  // namespace zipcache::detail

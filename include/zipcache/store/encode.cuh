// One side (keys or values) of one tile on the device: rows to bytes and back, and the statistics
// of the segment that it belongs to. The caller says where rows come from (`Rows`: a callable
// `float (int32_t token, int32_t channel)` that returns a 16-bit value) and who works (`Team`: a
// warp or a block). Only intervals that do not fit into shared memory are encoded so; everything
// else takes the faster tile_encoder.cuh to the same bytes. Twin: encode.hpp.
// @equality same_bytes
#pragma once

#include <cstdint>

#include <zipcache/detail/warp.cuh>
#include <zipcache/quantize/quantize.cuh>
#include <zipcache/store/encode.hpp>
#include <zipcache/store/store.hpp>
#include <zipcache/store/tile.hpp>

namespace zipcache::detail {

/// Up to 32 rows of 16-bit values, in shared memory. Rows are 16 bytes further apart than they are
/// long: then eight neighbouring rows begin in different groups of four banks.
template <class Storage>
struct tile_rows {
  const Storage* data;
  int32_t stride;

  ZIPCACHE_HOST_DEVICE static constexpr int32_t stride_of(int32_t head_dim) { return head_dim + 8; }
  ZIPCACHE_HOST_DEVICE static constexpr int32_t bytes(int32_t head_dim) {
    return tile_tokens * stride_of(head_dim) * 2;
  }
  __device__ float operator()(int32_t token, int32_t channel) const {
    return to_float(data[token * stride + channel]);
  }
};

/// What quantizing needs of an affine_scale.
struct quantize_scale {
  float min;
  float inverse_step;
};

/// Shared memory, in floats, that `encode_tile_side` works in.
template <class Granularity, int Bits>
ZIPCACHE_HOST_DEVICE constexpr int32_t encode_scratch_floats(int32_t head_dim) {
  if (!has_pairs(Bits)) return 0;
  if (Granularity::axis == parameter_axis::channel) return 2 * head_dim;
  return 2 * tile_tokens * groups_per_token<Granularity>(head_dim) +
         (Granularity::has_channel_magnitudes ? head_dim : 0);
}

/// Statistics of one channel of one side over a segment. Its parts may be gathered in any order.
struct channel_statistics {
  value_range salient;
  value_range regular;
  float largest = 0.0f;
};

/// Which of them a quantizer needs for its segment record.
template <class Quantizer>
struct needed_statistics {
  using granularity = typename Quantizer::granularity;
  static constexpr int salient_bits = Quantizer::template bits<token_class::salient>;
  static constexpr int regular_bits = Quantizer::template bits<token_class::regular>;
  static constexpr bool of_segment = granularity::home == parameter_home::segment;
  static constexpr bool salient = of_segment && has_pairs(salient_bits);
  static constexpr bool regular = of_segment && has_pairs(regular_bits);
  static constexpr bool largest =
      granularity::has_channel_magnitudes && (has_pairs(salient_bits) || has_pairs(regular_bits));
  static constexpr bool any = salient || regular || largest;
};

template <class Quantizer>
__device__ void add_value(channel_statistics& statistics, float x, bool is_salient) {
  using needed = needed_statistics<Quantizer>;
  if constexpr (needed::salient && needed::regular) {
    // One range is chosen, so that both classes cost what one does.
    const value_range range = include(is_salient ? statistics.salient : statistics.regular, x);
    statistics.salient = is_salient ? range : statistics.salient;
    statistics.regular = is_salient ? statistics.regular : range;
  } else if constexpr (needed::salient) {
    if (is_salient) statistics.salient = include(statistics.salient, x);
  } else if constexpr (needed::regular) {
    if (!is_salient) statistics.regular = include(statistics.regular, x);
  }
  if constexpr (needed::largest) statistics.largest = include_magnitude(statistics.largest, x);
}

__device__ inline channel_statistics merge(const channel_statistics& a,
                                           const channel_statistics& b) {
  return {merge(a.salient, b.salient), merge(a.regular, b.regular), most(a.largest, b.largest)};
}

/// Writes what the segment record keeps of one channel of one side; as `fit_segment_side`.
template <class Quantizer, class Storage>
__device__ void save_channel_parameters(const channel_statistics& statistics, int32_t channel,
                                        affine_params<Storage>* salient_pairs,
                                        affine_params<Storage>* regular_pairs,
                                        Storage* magnitudes) {
  using needed = needed_statistics<Quantizer>;
  if constexpr (needed::salient) {
    salient_pairs[channel] =
        affine<needed::salient_bits>::template fit<Storage>(statistics.salient);
  }
  if constexpr (needed::regular) {
    regular_pairs[channel] =
        affine<needed::regular_bits>::template fit<Storage>(statistics.regular);
  }
  if constexpr (needed::largest)
    magnitudes[channel] = channel_magnitude<Storage>(statistics.largest);
}

/// @brief Writes the pair of a token that `Lanes` neighbouring lanes work on; all of a warp call
/// it. The lane of the even token writes the zeros of two compact pairs.
template <class Granularity, int Bits, int Lanes, class Storage>
__device__ void save_lanes_pair(affine_params<Storage>* pairs, int32_t token, int32_t group,
                                affine_params<Storage> pair) {
  const bool first = threadIdx.x % Lanes == 0;
  if constexpr (has_compact_pairs<Granularity>) {
    const compact_pair narrow = compact_affine<Bits>::narrow(pair);
    const uint32_t zero = narrow.zero;
    const uint32_t next = __shfl_down_sync(whole_warp, zero, Lanes);
    auto* steps = reinterpret_cast<uint8_t*>(pairs);
    if (first) steps[token_parameter_slot(token)] = narrow.step;
    if (first && token % 2 == 0) {
      steps[tile_tokens + compact_zero_place_of(token).byte] =
          static_cast<uint8_t>(zero | next << 4);
    }
  } else if (first) {
    pairs[group * tile_tokens + token_parameter_slot(token)] = pair;
  }
}

/// @brief Pairs of the tile's tokens, four neighbouring threads a token: written to `pairs` (zeros
/// for unused tokens), and what quantizing needs of them to `scales` [groups, 32].
template <class Granularity, int Bits, class Storage, class Team, class Rows>
__device__ void fit_tile_tokens(Team team, const Rows& rows, int32_t count, int32_t head_dim,
                                const float* magnitudes, affine_params<Storage>* pairs,
                                quantize_scale* scales) {
  const int32_t part = team.thread % 4;
  const int32_t group_size = channels_per_group<Granularity>(head_dim);
  for (int32_t token = team.thread / 4; token < tile_tokens; token += team.num_threads / 4) {
    for (int32_t group = 0; group < groups_per_token<Granularity>(head_dim); ++group) {
      value_range range;
      if (token < count) {
        // Two neighbouring channels share a bank, so a thread takes both.
        for (int32_t i = 2 * part; i < group_size; i += 8) {
          const int32_t channel = group * group_size + i;
          range = include(range, normalized_value<Granularity>(rows, token, channel, magnitudes));
          range =
              include(range, normalized_value<Granularity>(rows, token, channel + 1, magnitudes));
        }
      }
      ZIPCACHE_UNROLL
      for (int32_t distance = 1; distance < 4; distance *= 2) {
        range = merge(range, {__shfl_xor_sync(whole_warp, range.lowest, distance),
                              __shfl_xor_sync(whole_warp, range.highest, distance)});
      }
      // The parameters of an empty range are zeros.
      const affine_params<Storage> params = fit_pair<Granularity, Bits, Storage>(range);
      save_lanes_pair<Granularity, Bits, 4>(pairs, token, group, params);
      if (part == 0) {
        const affine_scale scale = affine<Bits>::widen(params);
        scales[group * tile_tokens + token] = {scale.min, scale.inverse_step};
      }
    }
  }
}

/// @brief One scale for each channel, from the segment's pairs or from those of the tile, which are
/// then written to `pairs`. scales [head_dim]
template <class Granularity, int Bits, class Storage, class Team, class Rows>
__device__ void fit_tile_channels(Team team, const Rows& rows, int32_t count, int32_t head_dim,
                                  side_parameters<Storage> given, affine_params<Storage>* pairs,
                                  quantize_scale* scales) {
  for (int32_t channel = team.thread; channel < head_dim; channel += team.num_threads) {
    affine_params<Storage> params;
    if constexpr (Granularity::home == parameter_home::segment) {
      params = given.segment_pairs[channel];
    } else {
      params = affine<Bits>::template fit<Storage>(channel_range(rows, 0, count, channel));
      pairs[channel] = params;
    }
    const affine_scale scale = affine<Bits>::widen(params);
    scales[channel] = {scale.min, scale.inverse_step};
  }
}

/// Writes `Vector` neighbouring words at once.
template <int Vector>
__device__ void save_words(uint32_t* to, const uint32_t (&words)[Vector]) {
  if constexpr (Vector == 4) {
    *reinterpret_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
  } else {
    ZIPCACHE_UNROLL
    for (int32_t i = 0; i < Vector; ++i) to[i] = words[i];
  }
}

/// @brief Fills the words of one plane of codes: each word by one thread, fields without a token or
/// a channel with zeros. `code_of(token, channel)` gives the field's bits.
template <class Layout, int Bits, class Team, class CodeOf>
__device__ void pack_plane(Team team, int32_t count, int32_t head_dim, uint32_t* words,
                           const CodeOf& code_of) {
  // A lane's neighbouring words lie together: with four of them a warp's threads are its 32 lanes.
  constexpr int32_t vector = 4;
  for (int32_t first = team.thread * vector; first < Layout::words(head_dim);
       first += team.num_threads * vector) {
    uint32_t packed[vector];
    ZIPCACHE_UNROLL
    for (int32_t i = 0; i < vector; ++i) {
      uint32_t word = 0;
      ZIPCACHE_UNROLL
      for (int32_t field = 0; field < 32 / Bits; ++field) {
        const tile_element element = Layout::element(head_dim, first + i, field);
        const bool used = element.token < count && element.channel < head_dim;
        const uint32_t code = used ? code_of(element.token, element.channel) : 0u;
        word = bit_pack<Bits>::insert(word, Bits * field, code);
      }
      packed[i] = word;
    }
    save_words(words + first, packed);
  }
}

/// @brief Writes one side of a tile: the bytes that `encode_side` writes.
/// @param team  who calls; all of its threads do, together
/// @param rows  value (token, channel) of the tile's `count` tokens, in ascending token order
/// @param given  the segment's pairs and magnitudes, complete and visible to the team
/// @param[out] codes  code_tile<Layout, Bits>::words(head_dim) words, aligned to 16 bytes
/// @param[out] pairs  tile_pairs<Granularity, Bits>(head_dim) pairs
/// @param scratch  shared memory of the team, encode_scratch_floats<Granularity, Bits>(head_dim),
/// aligned to 8 bytes; free for other use after the team's next sync
template <template <int> class Layout, class Granularity, int Bits, class Storage, class Team,
          class Rows>
__device__ void encode_tile_side(Team team, const Rows& rows, int32_t count, int32_t head_dim,
                                 side_parameters<Storage> given, uint32_t* codes,
                                 affine_params<Storage>* pairs, float* scratch) {
  if constexpr (Bits == 16) {
    pack_plane<Layout<16>, 16>(team, count, head_dim, codes, [&](int32_t token, int32_t channel) {
      return static_cast<uint32_t>(from_float<Storage>(rows(token, channel)).bits);
    });
  } else if constexpr (Bits > 0) {
    constexpr bool by_channel = Granularity::axis == parameter_axis::channel;
    auto* scales = reinterpret_cast<quantize_scale*>(scratch);
    float* magnitudes = scratch + 2 * tile_tokens * groups_per_token<Granularity>(head_dim);
    if constexpr (by_channel) {
      fit_tile_channels<Granularity, Bits>(team, rows, count, head_dim, given, pairs, scales);
    } else {
      if constexpr (Granularity::has_channel_magnitudes) {
        for (int32_t channel = team.thread; channel < head_dim; channel += team.num_threads)
          magnitudes[channel] = to_float(given.magnitudes[channel]);
        team.sync();
      }
      fit_tile_tokens<Granularity, Bits>(team, rows, count, head_dim, magnitudes, pairs, scales);
    }
    team.sync();
    const auto code_of = [&](int32_t token, int32_t channel) {
      const int32_t index =
          by_channel ? channel
                     : channel / channels_per_group<Granularity>(head_dim) * tile_tokens + token;
      const quantize_scale scale = scales[index];
      const float x = normalized_value<Granularity>(rows, token, channel, magnitudes);
      return affine<Bits>::quantize(x, {0.0f, scale.min, scale.inverse_step});
    };
    if constexpr (Bits == 3) {
      pack_plane<Layout<2>, 2>(team, count, head_dim, codes, code_of);
      pack_plane<Layout<1>, 1>(
          team, count, head_dim, codes + Layout<2>::words(head_dim),
          [&](int32_t token, int32_t channel) { return code_of(token, channel) >> 2; });
    } else {
      pack_plane<Layout<Bits>, Bits>(team, count, head_dim, codes, code_of);
    }
  }
}

/// @brief Both sides of one tile of `Class`, from the rows of each and the head's segment record.
template <class Policies, token_class Class, class Storage, class Team, class Rows>
__device__ void encode_tile(Team team, const Rows& key_rows, const Rows& value_rows, int32_t count,
                            int32_t head_dim, record_view<Policies, Storage> record, tile_place at,
                            float* scratch) {
  using tile = tile_record<Policies, Class>;
  encode_tile_side<key_layout, typename tile::key_granularity, tile::key_bits>(
      team, key_rows, count, head_dim, record.template key_side<Class>(),
      reinterpret_cast<uint32_t*>(at.codes), reinterpret_cast<affine_params<Storage>*>(at.pairs),
      scratch);
  team.sync();
  encode_tile_side<value_layout, typename tile::value_granularity, tile::value_bits>(
      team, value_rows, count, head_dim, record.template value_side<Class>(),
      reinterpret_cast<uint32_t*>(at.codes + tile::value_codes_offset(head_dim)),
      reinterpret_cast<affine_params<Storage>*>(at.pairs + tile::value_pairs_offset(head_dim)),
      scratch);
  team.sync();
}

/// Scratch of `encode_tile` for whichever class and side needs most.
template <class Policies>
ZIPCACHE_HOST_DEVICE constexpr int32_t tile_scratch_floats(int32_t head_dim) {
  using salient = tile_record<Policies, token_class::salient>;
  using regular = tile_record<Policies, token_class::regular>;
  const int32_t keys =
      most(encode_scratch_floats<typename salient::key_granularity, salient::key_bits>(head_dim),
           encode_scratch_floats<typename regular::key_granularity, regular::key_bits>(head_dim));
  const int32_t values = most(
      encode_scratch_floats<typename salient::value_granularity, salient::value_bits>(head_dim),
      encode_scratch_floats<typename regular::value_granularity, regular::value_bits>(head_dim));
  return most(keys, values);
}

/// @brief One value of one token of one side, as `decode_token` gives it.
template <template <int> class Layout, class Granularity, int Bits, class Storage>
__device__ float decode_value(const uint32_t* codes, const affine_params<Storage>* pairs,
                              side_parameters<Storage> given, int32_t head_dim, int32_t token,
                              int32_t channel) {
  using tile = code_tile<Layout, Bits>;
  if constexpr (Bits == 0) {
    return 0.0f;
  } else if constexpr (Bits == 16) {
    return to_float(Storage{static_cast<uint16_t>(tile::load(codes, head_dim, token, channel))});
  } else {
    affine_params<Storage> params;
    if constexpr (Granularity::axis == parameter_axis::token) {
      params = load_token_pair<Granularity, Bits>(
          pairs, token, channel / channels_per_group<Granularity>(head_dim));
    } else {
      params = (Granularity::home == parameter_home::tile ? pairs : given.segment_pairs)[channel];
    }
    const float x = affine<Bits>::dequantize(tile::load(codes, head_dim, token, channel),
                                             affine<Bits>::widen(params));
    return Granularity::has_channel_magnitudes ? x * to_float(given.magnitudes[channel]) : x;
  }
}

}  // namespace zipcache::detail

// One side (keys or values) of one tile on the CPU: rows to bytes and back. Twin: encode.cuh.
// @equality same_bytes
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>

#include <zipcache/quantize/quantize.hpp>
#include <zipcache/store/tile.hpp>
#include <zipcache/store/token_pair.hpp>

namespace zipcache::detail {

inline constexpr int32_t max_head_dim = 256;

/// Parameters of one tile side: those that lie with the segment are given, those of the tile are in
/// it.
template <class Storage>
struct side_parameters {
  const affine_params<Storage>* segment_pairs;  ///< [head_dim], or null
  const Storage* magnitudes;                    ///< [head_dim], or null
};

/// Writes up to 32 rows of one class, in ascending token order. Unused tokens get zeros.
template <template <int> class Layout, class Granularity, int Bits, class Storage, class Element>
void encode_side(row_span<Element> rows, int32_t head_dim, side_parameters<Storage> given,
                 uint32_t* codes, affine_params<Storage>* pairs) {
  using tile = code_tile<Layout, Bits>;
  std::memset(codes, 0, static_cast<size_t>(tile::words(head_dim)) * 4);
  std::memset(static_cast<void*>(pairs), 0,
              static_cast<size_t>(tile_pair_bytes<Granularity, Bits>(head_dim)));
  const int32_t count = static_cast<int32_t>(rows.size());
  if constexpr (Bits == 16) {
    for (int32_t token = 0; token < count; ++token) {
      for (int32_t channel = 0; channel < head_dim; ++channel) {
        const Storage x = from_float<Storage>(to_float(rows[static_cast<size_t>(token)][channel]));
        tile::save(codes, head_dim, token, channel, x.bits);
      }
    }
  } else if constexpr (Bits > 0) {
    constexpr bool by_channel = Granularity::axis == parameter_axis::channel;
    if constexpr (by_channel && Granularity::home == parameter_home::tile)
      fit_channels<Bits, Storage, Element>(rows, head_dim, pairs);
    const affine_params<Storage>* channel_pairs =
        Granularity::home == parameter_home::tile ? pairs : given.segment_pairs;
    affine_params<Storage> token_pairs[max_head_dim / 16];
    uint8_t row_codes[max_head_dim];
    for (int32_t token = 0; token < count; ++token) {
      const Element* row = rows[static_cast<size_t>(token)];
      if constexpr (by_channel) {
        quantize_row<Granularity, Bits>(row, head_dim, channel_pairs, given.magnitudes, row_codes);
      } else {
        fit_token<Granularity, Bits>(row, head_dim, given.magnitudes, token_pairs);
        quantize_row<Granularity, Bits>(row, head_dim, token_pairs, given.magnitudes, row_codes);
        for (int32_t group = 0; group < groups_per_token<Granularity>(head_dim); ++group) {
          save_token_pair<Granularity, Bits>(pairs, token, group, token_pairs[group]);
        }
      }
      for (int32_t channel = 0; channel < head_dim; ++channel)
        tile::save(codes, head_dim, token, channel, row_codes[channel]);
    }
  }
}

/// Reads one token of one side as values. out [head_dim]
template <template <int> class Layout, class Granularity, int Bits, class Storage>
void decode_token(const uint32_t* codes, const affine_params<Storage>* pairs,
                  side_parameters<Storage> given, int32_t head_dim, int32_t token, float* out) {
  using tile = code_tile<Layout, Bits>;
  if constexpr (Bits == 0) {
    std::fill(out, out + head_dim, 0.0f);
  } else if constexpr (Bits == 16) {
    for (int32_t channel = 0; channel < head_dim; ++channel) {
      out[channel] =
          to_float(Storage{static_cast<uint16_t>(tile::load(codes, head_dim, token, channel))});
    }
  } else {
    uint8_t row_codes[max_head_dim];
    for (int32_t channel = 0; channel < head_dim; ++channel) {
      row_codes[channel] = static_cast<uint8_t>(tile::load(codes, head_dim, token, channel));
    }
    affine_params<Storage> token_pairs[max_head_dim / 16];
    const affine_params<Storage>* row_pairs =
        Granularity::home == parameter_home::tile ? pairs : given.segment_pairs;
    if constexpr (Granularity::axis == parameter_axis::token) {
      for (int32_t group = 0; group < groups_per_token<Granularity>(head_dim); ++group)
        token_pairs[group] = load_token_pair<Granularity, Bits>(pairs, token, group);
      row_pairs = token_pairs;
    }
    dequantize_row<Granularity, Bits>(row_codes, head_dim, row_pairs, given.magnitudes, out);
  }
}

}  // namespace zipcache::detail

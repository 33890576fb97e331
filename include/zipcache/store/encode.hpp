// One side (keys or values) of one tile on the CPU: rows to bytes and back. Twin: encode.cuh.
// @equality same_bytes
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>

#include <zipcache/quantize/quantize.hpp>
#include <zipcache/store/pack_tile.hpp>
#include <zipcache/store/tile.hpp>
#include <zipcache/store/token_pair.hpp>

namespace zipcache::detail {

/// Parameters of one tile side: those that lie with the segment are given, those of the tile are in
/// it.
template <class Storage>
struct side_parameters {
  const affine_params<Storage>* segment_pairs;  ///< [head_dim], or null
  const Storage* magnitudes;                    ///< [head_dim], or null
};

/// x rounded to Storage, as bits. Rounding to the own type changes only a NaN, to the canonical
/// one.
template <class Storage, class Element>
uint16_t rounded_bits(Element x) {
  if constexpr (std::is_same_v<Storage, Element>) {
    constexpr int infinity = std::is_same_v<Storage, half> ? 0x7c00 : 0x7f80;
    return (x.bits & 0x7fff) > infinity ? uint16_t{0x7fff} : x.bits;
  } else {
    return from_float<Storage>(to_float(x)).bits;
  }
}

/// Writes up to 32 rows of one class in 16 bits.
template <template <int> class Layout, class Storage, class Element>
void encode_wide_side(row_span<Element> rows, int32_t head_dim, uint32_t* codes) {
  uint16_t bits[tile_tokens * max_head_dim];
  uint16_t* target = bits;
  for (const Element* row : rows) {
    for (int32_t channel = 0; channel < head_dim; ++channel)
      target[channel] = rounded_bits<Storage>(row[channel]);
    target += head_dim;
  }
  std::fill(target, bits + tile_tokens * head_dim, uint16_t{0});
  pack_wide_tile<Layout>(bits, head_dim, codes);
}

/// Writes up to 32 rows of one class, in ascending token order. Unused tokens get zeros.
template <template <int> class Layout, class Granularity, int Bits, class Storage, class Element>
void encode_side(row_span<Element> rows, int32_t head_dim, side_parameters<Storage> given,
                 uint32_t* codes, affine_params<Storage>* pairs) {
  std::memset(static_cast<void*>(pairs), 0,
              static_cast<size_t>(tile_pair_bytes<Granularity, Bits>(head_dim)));
  if constexpr (Bits == 16) {
    encode_wide_side<Layout, Storage, Element>(rows, head_dim, codes);
  } else if constexpr (Bits > 0) {
    constexpr bool in_tile = Granularity::home == parameter_home::tile;
    if constexpr (in_tile && Granularity::axis == parameter_axis::channel)
      fit_channels<Bits, Storage, Element>(rows, head_dim, pairs);
    row_quantizer<Granularity, Bits, Storage> quantizer(
        head_dim, in_tile ? pairs : given.segment_pairs, given.magnitudes);
    uint8_t row_codes[tile_tokens * max_head_dim];
    affine_params<Storage> token_pairs[max_head_dim / 16];
    int32_t token = 0;
    for (const Element* row : rows) {
      quantizer.quantize(row, row_codes + token * head_dim, token_pairs);
      if constexpr (Granularity::axis == parameter_axis::token) {
        for (int32_t group = 0; group < groups_per_token<Granularity>(head_dim); ++group)
          save_token_pair<Granularity, Bits>(pairs, token, group, token_pairs[group]);
      }
      ++token;
    }
    std::fill(row_codes + token * head_dim, row_codes + tile_tokens * head_dim, uint8_t{0});
    pack_tile<Layout, Bits>({row_codes, head_dim}, codes);
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

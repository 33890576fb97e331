// Pairs that vary by token, among the bytes of their tile (tile.hpp): one at a time, 32 or 12 bits.
#pragma once

#include <cstdint>

#include <zipcache/quantize/compact_pairs.hpp>
#include <zipcache/store/layout.hpp>

namespace zipcache::detail {

/// A token's pair of `group`, from the pairs of its tile. pairs: tile_pair_bytes
template <class Granularity, int Bits, class Storage>
ZIPCACHE_HOST_DEVICE affine_params<Storage> load_token_pair(const affine_params<Storage>* pairs,
                                                            int32_t token, int32_t group) {
  if constexpr (has_compact_pairs<Granularity>) {
    const auto* steps = reinterpret_cast<const uint8_t*>(pairs);
    const compact_zero_place place = compact_zero_place_of(token);
    const uint32_t zeros = steps[tile_tokens + place.byte];
    return compact_affine<Bits>::template widen<Storage>(
        {steps[token_parameter_slot(token)], static_cast<uint8_t>(zeros >> place.shift & 15u)});
  } else {
    return pairs[group * tile_tokens + token_parameter_slot(token)];
  }
}

/// Writes it. Neighbouring tokens of compact pairs share a byte, so one thread writes both.
template <class Granularity, int Bits, class Storage>
void save_token_pair(affine_params<Storage>* pairs, int32_t token, int32_t group,
                     affine_params<Storage> pair) {
  if constexpr (has_compact_pairs<Granularity>) {
    auto* steps = reinterpret_cast<uint8_t*>(pairs);
    const compact_zero_place place = compact_zero_place_of(token);
    const compact_pair narrow = compact_affine<Bits>::narrow(pair);
    uint8_t& zeros = steps[tile_tokens + place.byte];
    steps[token_parameter_slot(token)] = narrow.step;
    zeros = static_cast<uint8_t>((zeros & ~(15u << place.shift)) |
                                 static_cast<uint32_t>(narrow.zero) << place.shift);
  } else {
    pairs[group * tile_tokens + token_parameter_slot(token)] = pair;
  }
}

}  // namespace zipcache::detail

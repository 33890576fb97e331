// Patterns where no token is: what nothing may read.
#pragma once

#include <cstddef>
#include <cstdint>

#include <zipcache/store/token_pair.hpp>

namespace zipcache_test {

/// Fills the pair of a token that the tile does not have, and leaves its neighbours alone.
template <class Granularity, class Storage>
void poison_token_pair(std::byte* pairs, int32_t token, int32_t group, uint16_t bits) {
  if constexpr (zipcache::has_compact_pairs<Granularity>) {
    const auto place = zipcache::compact_zero_place_of(token);
    std::byte& zeros = pairs[zipcache::tile_tokens + place.byte];
    pairs[zipcache::token_parameter_slot(token)] = static_cast<std::byte>(bits);
    zeros = (zeros & ~static_cast<std::byte>(15 << place.shift)) |
            static_cast<std::byte>((bits & 15) << place.shift);
  } else {
    reinterpret_cast<zipcache::affine_params<Storage>*>(
        pairs)[group * zipcache::tile_tokens + zipcache::token_parameter_slot(token)] = {
        Storage{bits}, Storage{bits}};
  }
}

}  // namespace zipcache_test

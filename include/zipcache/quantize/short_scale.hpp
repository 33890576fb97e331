// A positive number in 8 bits, 5 of exponent and 3 of mantissa: the upper bits of a number of type
// half. What steps of compact_pairs and scales of token_scaled are kept in; exact in half and in
// bfloat16.
#pragma once

#include <cstdint>

#include <zipcache/core/numerics.hpp>
#include <zipcache/core/types.hpp>

namespace zipcache {

ZIPCACHE_HOST_DEVICE inline float widen_short_scale(uint32_t scale) {
  return to_float(half{static_cast<uint16_t>(scale << 7)});
}

/// The nearest one, within 1/16 from 2^-14 on; 0 below 2^-18, `largest` where x is larger.
ZIPCACHE_HOST_DEVICE inline uint32_t short_scale_of(float x, uint32_t largest) {
  const float limit = widen_short_scale(largest);
  const uint32_t rounded = (from_float<half>(x < limit ? x : limit).bits + 0x40u) >> 7;
  return least(rounded, largest);
}

}  // namespace zipcache

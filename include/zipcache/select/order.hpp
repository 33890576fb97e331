// The total order in which tokens are salient: higher score first, then lower index. Being total,
// it makes every top-k algorithm give the same set.
#pragma once

#include <cstdint>

#include <zipcache/core/types.hpp>

namespace zipcache {

/// A key that sorts ascending in rank order. NaN ranks last; -0 ranks with +0.
ZIPCACHE_HOST_DEVICE inline uint64_t rank_key(float score, uint32_t token) {
  const uint32_t bits = bits_of(score + 0.0f);
  const bool not_a_number = (bits & 0x7fffffffu) > 0x7f800000u;
  // Order-preserving map of floats to unsigned integers.
  const uint32_t ascending = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  const uint32_t descending = not_a_number ? 0xffffffffu : ~ascending;
  return static_cast<uint64_t>(descending) << 32 | token;
}

ZIPCACHE_HOST_DEVICE inline bool ranks_before(float score_a, uint32_t token_a, float score_b,
                                              uint32_t token_b) {
  return rank_key(score_a, token_a) < rank_key(score_b, token_b);
}

}  // namespace zipcache

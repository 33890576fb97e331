// Seeded tensors for benchmarks.
#pragma once

#include <cstdint>
#include <vector>

#include <zipcache/core/numerics.hpp>

namespace zipcache_bench {

/// Uniform in [-1, 1); one channel in 13 is ten times larger. [num_heads, num_tokens, head_dim]
template <class Element>
std::vector<Element> make_tensor(int64_t num_heads, int64_t num_tokens, int64_t head_dim,
                                 uint64_t seed) {
  std::vector<Element> x;
  x.reserve(static_cast<size_t>(num_heads * num_tokens * head_dim));
  for (int64_t i = 0; i < num_heads * num_tokens * head_dim; ++i) {
    const uint64_t hash = zipcache::mix64(seed << 40 ^ static_cast<uint64_t>(i));
    const float noise = static_cast<float>(hash >> 40) * 0x1p-23f - 1.0f;
    x.push_back(zipcache::from_float<Element>(i % head_dim % 13 == 5 ? 10.0f * noise : noise));
  }
  return x;
}

}  // namespace zipcache_bench

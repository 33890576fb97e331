// Selection on the CPU: scores to salient tokens. In: score [num_heads, num_tokens]. Out: salient
// tokens of each head, ascending [num_heads, num_salient]. Source: ZipCache, algorithm 2. Twin:
// select.cuh. @equality same_bytes
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <span>
#include <vector>

#include <zipcache/core/backend.hpp>
#include <zipcache/core/error.hpp>
#include <zipcache/select/order.hpp>

namespace zipcache {

/// How many of `num_tokens` are salient, and how many of those are the last ones whatever they
/// score.
struct selection_size {
  int64_t num_tokens;
  int64_t num_salient;
  int64_t num_recent = 0;
};

/// @brief The `num_salient` first tokens in rank order (score down, then index up), listed by
/// ascending index.
/// @param[in] scores  [num_heads, num_tokens]; NaN ranks last
/// @param[out] salient  [num_heads, num_salient]
/// @throws argument_error  sizes that do not fit, more salient tokens than tokens
inline void select(cpu_backend, std::span<const float> scores, int32_t num_heads,
                   selection_size size, std::span<int32_t> salient) {
  detail::require_between("num_tokens", size.num_tokens, 0, 2147483647);
  detail::require_between("num_salient", size.num_salient, int64_t{0}, size.num_tokens);
  detail::require_between("num_recent", size.num_recent, int64_t{0}, size.num_salient);
  detail::require_equal("scores.size()", static_cast<int64_t>(scores.size()),
                        num_heads * size.num_tokens);
  detail::require_equal("salient.size()", static_cast<int64_t>(salient.size()),
                        num_heads * size.num_salient);
  const int64_t num_ranked = size.num_tokens - size.num_recent;
  const int64_t num_heavy = size.num_salient - size.num_recent;
  std::vector<uint64_t> keys(static_cast<size_t>(num_ranked));
  for (int32_t head = 0; head < num_heads; ++head) {
    const float* score = scores.data() + head * size.num_tokens;
    int32_t* out = salient.data() + head * size.num_salient;
    for (int64_t token = 0; token < num_ranked; ++token) {
      keys[static_cast<size_t>(token)] = rank_key(score[token], static_cast<uint32_t>(token));
    }
    std::nth_element(keys.begin(), keys.begin() + num_heavy, keys.end());
    for (int64_t i = 0; i < num_heavy; ++i)
      out[i] = static_cast<int32_t>(keys[static_cast<size_t>(i)] & 0xffffffffu);
    std::sort(out, out + num_heavy);
    std::iota(out + num_heavy, out + size.num_salient, static_cast<int32_t>(num_ranked));
  }
}

}  // namespace zipcache

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
#include <zipcache/detail/thread_pool.hpp>
#include <zipcache/select/order.hpp>

namespace zipcache {

/// How many of `num_tokens` are salient, and how many of those are the last ones whatever they
/// score.
struct selection_size {
  int64_t num_tokens;
  int64_t num_salient;
  int64_t num_recent = 0;
};

namespace detail {

/// Where the first tokens in rank order end: those with smaller keys are among them, and the first
/// `ties` of those with this key.
struct rank_cut {
  uint32_t key;
  int64_t ties;
};

/// The part of rank_key that the score decides, for each token.
inline std::vector<uint32_t> score_keys(std::span<const float> scores) {
  std::vector<uint32_t> keys(scores.size());
  std::transform(scores.begin(), scores.end(), keys.begin(),
                 [](float score) { return static_cast<uint32_t>(rank_key(score, 0) >> 32); });
  return keys;
}

/// Finds the key of the token at place `count` >= 1, a byte at a time from the highest: tokens are
/// counted by that byte, never moved.
inline rank_cut find_rank_cut(std::span<const uint32_t> keys, int64_t count) {
  rank_cut cut{0, count};
  uint32_t decided = 0;  // bits
  for (int shift = 24; shift >= 0; shift -= 8) {
    uint32_t tokens[256] = {};
    for (const uint32_t key : keys) tokens[key >> shift & 255] += (key & decided) == cut.key;
    uint32_t byte = 0;
    for (; int64_t{tokens[byte]} < cut.ties; ++byte) cut.ties -= tokens[byte];
    cut.key |= byte << shift;
    decided |= 255u << shift;
  }
  return cut;
}

/// Lists the `count` first tokens in rank order by ascending index. out [count]
inline void list_first_ranked(std::span<const float> scores, int64_t count, int32_t* out) {
  if (count == 0) return;
  const std::vector<uint32_t> keys = score_keys(scores);
  rank_cut cut = find_rank_cut(keys, count);
  int64_t listed = 0;
  for (size_t token = 0; listed < count; ++token) {
    out[listed] = static_cast<int32_t>(token);
    const bool ties = keys[token] == cut.key && cut.ties > 0;
    cut.ties -= ties;
    listed += ties || keys[token] < cut.key;
  }
}

}  // namespace detail

/// @brief The `num_salient` first tokens in rank order (score down, then index up), listed by
/// ascending index.
/// @param[in] scores  [num_heads, num_tokens]; NaN ranks last
/// @param[out] salient  [num_heads, num_salient]
/// @throws argument_error  sizes that do not fit, more salient tokens than tokens
inline void select(cpu_backend backend, std::span<const float> scores, int32_t num_heads,
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
  detail::parallel_for(backend.num_threads, num_heads, [&](int64_t head) {
    int32_t* out = salient.data() + head * size.num_salient;
    detail::list_first_ranked(scores.subspan(static_cast<size_t>(head * size.num_tokens),
                                             static_cast<size_t>(num_ranked)),
                              num_heavy, out);
    std::iota(out + num_heavy, out + size.num_salient, static_cast<int32_t>(num_ranked));
  });
}

}  // namespace zipcache

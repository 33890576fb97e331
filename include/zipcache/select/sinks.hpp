// Sinks: tokens that stay in 16 bits for good, and how they are found among those that are sealed.
// In: keys of a span of tokens. Out: tokens of the span.
#pragma once

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <zipcache/core/numerics.hpp>
#include <zipcache/core/view.hpp>
#include <zipcache/policy/roles.hpp>

namespace zipcache {

/// The first `Count` tokens of a sequence (attention sinks) stay in 16 bits.
template <int Count>
struct sink_tokens {
  static_assert(Count >= 0, "zipcache: a number of sink tokens is not negative");
  using role = sink_role;
  static constexpr int32_t count = Count;
  static std::string name() { return "sinks" + std::to_string(Count); }
};

/// OTT (outlier tokens tracing, 2025): tokens whose keys are unusually short stay in 16 bits, since
/// they widen the range of every channel that they share with others: of every interval that is
/// sealed the `PerInterval` tokens with the smallest key norm over all heads, at most `Most` of a
/// sequence. CPU only.
template <int PerInterval, int Most>
struct outlier_tokens {
  static_assert(
      PerInterval > 0 && Most >= PerInterval,
      "zipcache: outlier_tokens needs at least one token of an interval, and room for it");
  using role = sink_role;
  static constexpr int32_t count = 0;  ///< of the first tokens
  static constexpr int32_t per_interval = PerInterval;
  static constexpr int32_t most = Most;
  static std::string name() {
    return "outliers" + std::to_string(PerInterval) + "_" + std::to_string(Most);
  }
};

/// Sink policies that pick tokens by the norm of their keys.
template <class Sinks>
concept picks_outliers = requires {
  { Sinks::per_interval } -> std::convertible_to<int32_t>;
  { Sinks::most } -> std::convertible_to<int32_t>;
};

/// What a sequence had before the span that is sealed.
struct sink_search {
  int64_t num_sealed;  ///< tokens, sinks among them
  int64_t num_sinks;
  int64_t interval;
};

namespace detail {

/// Squared length of a token's keys over all heads, added in the order of heads and channels. fma,
/// so that no compiler rounds it in another way.
template <class Storage>
float squared_key_norm(tensor_view<const Storage> k, int64_t token) {
  float sum = 0.0f;
  for (int32_t head = 0; head < k.num_heads; ++head) {
    for (int32_t channel = 0; channel < k.head_dim; ++channel) {
      const float x = to_float(k.row(head, token)[channel]);
      sum = std::fma(x, x, sum);
    }
  }
  return sum;
}

}  // namespace detail

/// @brief Which of the first `count` tokens of a span become sinks, ascending. Ties go to the lower
/// index.
/// @param[in] k  [num_kv_heads, at least count, head_dim], of the tokens behind `before.num_sealed`
template <class Sinks, class Storage>
std::vector<int64_t> find_sinks(tensor_view<const Storage> k, int64_t count, sink_search before) {
  std::vector<int64_t> found;
  if constexpr (picks_outliers<Sinks>) {
    const int64_t wanted = Sinks::per_interval * most<int64_t>(1, count / before.interval);
    const int64_t number =
        std::clamp<int64_t>(Sinks::most - before.num_sinks, 0, least(wanted, count));
    std::vector<std::pair<float, int64_t>> norms;
    for (int64_t token = 0; token < count; ++token)
      norms.emplace_back(detail::squared_key_norm(k, token), token);
    std::partial_sort(norms.begin(), norms.begin() + number, norms.end());
    for (int64_t i = 0; i < number; ++i) found.push_back(norms[static_cast<size_t>(i)].second);
    std::sort(found.begin(), found.end());
  } else {
    for (int64_t token = 0; token < least(Sinks::count - before.num_sealed, count); ++token)
      found.push_back(token);
  }
  return found;
}

}  // namespace zipcache

// Budgets: how many tokens are salient, and which are so whatever their score.
#pragma once

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <functional>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include <zipcache/core/shape.hpp>
#include <zipcache/policy/roles.hpp>

namespace zipcache {

/// Numbers of a budget. `salient_ratio` is a share of the tokens that are classified together.
struct budget_options {
  double salient_ratio = 0.0;
  int64_t salient_count = 0;

  bool operator==(const budget_options&) const = default;
};

namespace detail {

inline int64_t share_of(int64_t num_tokens, double ratio) {
  return std::clamp<int64_t>(static_cast<int64_t>(static_cast<double>(num_tokens) * ratio + 0.5), 0,
                             num_tokens);
}

/// From 4096 tokens on a share is rounded down to whole tiles, as a tile of few tokens takes as
/// much room as a full one: 2432 instead of 2458 of 4096 tokens at 60 %.
inline int64_t share_in_tiles(int64_t num_tokens, double ratio) {
  const int64_t share = share_of(num_tokens, ratio);
  return num_tokens < 4096 || share == num_tokens ? share : share / tile_tokens * tile_tokens;
}

}  // namespace detail

/// A share of the tokens, rounded to the nearest number, and down to whole tiles from 4096 tokens
/// on; `DefaultPercent` unless the cache's options say otherwise.
template <int DefaultPercent>
struct salient_share {
  static_assert(DefaultPercent >= 0 && DefaultPercent <= 100,
                "zipcache: a share is between 0 and 100 percent");
  using role = budget_role;
  static constexpr double default_ratio = DefaultPercent / 100.0;
  static constexpr bool uses_scores = DefaultPercent > 0;
  static int64_t num_salient(int64_t num_tokens, const budget_options& options) {
    return detail::share_in_tiles(num_tokens, options.salient_ratio);
  }
  static int64_t num_recent(int64_t, const budget_options&) { return 0; }
  static std::string name() { return "share"; }
};

/// A fixed number of tokens of every segment (`salient_count` of the options).
struct salient_count {
  using role = budget_role;
  static constexpr double default_ratio = 0.0;
  static constexpr bool uses_scores = true;
  static int64_t num_salient(int64_t num_tokens, const budget_options& options) {
    return std::clamp<int64_t>(options.salient_count, 0, num_tokens);
  }
  static int64_t num_recent(int64_t, const budget_options&) { return 0; }
  static std::string name() { return "count"; }
};

/// H2O: half of the share are the highest scores, the other half are the most recent tokens.
template <int DefaultPercent>
struct heavy_and_recent_share : salient_share<DefaultPercent> {
  static int64_t num_recent(int64_t num_tokens, const budget_options& options) {
    return detail::share_of(num_tokens, options.salient_ratio) / 2;
  }
  static std::string name() { return "heavy_and_recent"; }
};

/// ZipVL (He et al., 2024): the fewest tokens that together hold a share of the layer's attention
/// mass, `DefaultPerMille` / 1000 or the options' salient_ratio. The number follows the data:
/// layers that look at few tokens keep few. All heads of a layer have the same number. CPU only.
template <int DefaultPerMille>
struct mass_share {
  static_assert(DefaultPerMille > 0 && DefaultPerMille <= 1000,
                "zipcache: a share of the attention mass is between 1 and 1000 per mille");
  using role = budget_role;
  static constexpr double default_ratio = DefaultPerMille / 1000.0;
  static constexpr bool uses_scores = true;
  /// The most it can be; the mass decides.
  static int64_t num_salient(int64_t num_tokens, const budget_options&) { return num_tokens; }
  static int64_t num_recent(int64_t, const budget_options&) { return 0; }
  /// @param mass  attention mass of each token, summed over the probe rows and heads of the layer
  static int64_t num_salient_by_mass(std::span<const float> mass, const budget_options& options) {
    std::vector<float> sorted(mass.begin(), mass.end());
    std::sort(sorted.begin(), sorted.end(), std::greater<float>());
    const double total = std::accumulate(sorted.begin(), sorted.end(), 0.0);
    const double wanted = options.salient_ratio * total;
    double held = 0.0;
    int64_t count = 0;
    while (count < static_cast<int64_t>(sorted.size()) && held < wanted)
      held += sorted[static_cast<size_t>(count++)];
    return count;
  }
  static std::string name() { return "mass_share"; }
};

/// Budgets whose number of salient tokens follows the attention mass.
template <class Budget>
concept counts_by_mass = requires(std::span<const float> mass, const budget_options& options) {
  { Budget::num_salient_by_mass(mass, options) } -> std::same_as<int64_t>;
};

/// One class only: every token is salient.
struct all_salient {
  using role = budget_role;
  static constexpr double default_ratio = 1.0;
  static constexpr bool uses_scores = false;
  static int64_t num_salient(int64_t num_tokens, const budget_options&) { return num_tokens; }
  static int64_t num_recent(int64_t, const budget_options&) { return 0; }
  static std::string name() { return "all_salient"; }
};

/// One class only: every token is regular.
struct all_regular {
  using role = budget_role;
  static constexpr double default_ratio = 0.0;
  static constexpr bool uses_scores = false;
  static int64_t num_salient(int64_t, const budget_options&) { return 0; }
  static int64_t num_recent(int64_t, const budget_options&) { return 0; }
  static std::string name() { return "all_regular"; }
};

}  // namespace zipcache

// Probe strategies: which query rows are looked at to score tokens (ZipCache, section 4.3).
// Positions come out ascending and without repetition; from the same length, options and seed they
// are the same on every backend. Any non-empty span of rows has at least one probe, its last row.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include <zipcache/core/numerics.hpp>
#include <zipcache/policy/roles.hpp>

namespace zipcache {

/// Numbers of a probe strategy. Fractions are of the rows in question.
struct probe_options {
  double recent_fraction = 0.05;
  double random_fraction = 0.05;
  int64_t max_probes = 0;  ///< at most so many probes of each kind (recent, random); 0: no cap
  uint64_t seed = 0;

  bool operator==(const probe_options&) const = default;
};

namespace detail {

inline int64_t probe_share(int64_t num_rows, double fraction, int64_t cap) {
  const int64_t share = static_cast<int64_t>(static_cast<double>(num_rows) * fraction + 0.5);
  const int64_t capped = cap > 0 ? std::min(share, cap) : share;
  return std::clamp<int64_t>(capped, 0, num_rows);
}

inline std::vector<int64_t> last_rows(int64_t num_rows, int64_t count) {
  std::vector<int64_t> rows(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) rows[static_cast<size_t>(i)] = num_rows - count + i;
  return rows;
}

/// `count` of the rows [0, num_rows), without replacement: those with the smallest hash of (seed,
/// row).
inline std::vector<int64_t> random_rows(int64_t num_rows, int64_t count, uint64_t seed) {
  std::vector<std::pair<uint64_t, int64_t>> keyed(static_cast<size_t>(num_rows));
  for (int64_t row = 0; row < num_rows; ++row) {
    keyed[static_cast<size_t>(row)] = {mix64(mix64(seed) ^ static_cast<uint64_t>(row)), row};
  }
  std::nth_element(keyed.begin(), keyed.begin() + count, keyed.end());
  std::vector<int64_t> rows(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i)
    rows[static_cast<size_t>(i)] = keyed[static_cast<size_t>(i)].second;
  std::sort(rows.begin(), rows.end());
  return rows;
}

}  // namespace detail

struct all_probes {
  using role = probe_role;
  static constexpr bool given_by_caller = false;
  static std::vector<int64_t> rows(int64_t num_rows, const probe_options&) {
    return detail::last_rows(num_rows, num_rows);
  }
  static std::string name() { return "all"; }
};

struct recent_probes {
  using role = probe_role;
  static constexpr bool given_by_caller = false;
  static std::vector<int64_t> rows(int64_t num_rows, const probe_options& options) {
    const int64_t count = detail::probe_share(
        num_rows, options.recent_fraction + options.random_fraction, options.max_probes);
    return detail::last_rows(num_rows, std::max<int64_t>(count, num_rows > 0 ? 1 : 0));
  }
  static std::string name() { return "recent"; }
};

struct random_probes {
  using role = probe_role;
  static constexpr bool given_by_caller = false;
  static std::vector<int64_t> rows(int64_t num_rows, const probe_options& options) {
    const int64_t count = detail::probe_share(
        num_rows, options.recent_fraction + options.random_fraction, options.max_probes);
    if (count == 0) return detail::last_rows(num_rows, num_rows > 0 ? 1 : 0);
    return detail::random_rows(num_rows, count, options.seed);
  }
  static std::string name() { return "random"; }
};

/// The method's default: the last 5 % of the rows and a random 5 % of all, drawn from the others.
struct recent_and_random_probes {
  using role = probe_role;
  static constexpr bool given_by_caller = false;
  static std::vector<int64_t> rows(int64_t num_rows, const probe_options& options) {
    const int64_t recent = std::max<int64_t>(
        detail::probe_share(num_rows, options.recent_fraction, options.max_probes),
        num_rows > 0 ? 1 : 0);
    const int64_t others = num_rows - recent;
    const int64_t random = std::min(
        others, detail::probe_share(num_rows, options.random_fraction, options.max_probes));
    std::vector<int64_t> rows = detail::random_rows(others, random, options.seed);
    const std::vector<int64_t> last = detail::last_rows(num_rows, recent);
    rows.insert(rows.end(), last.begin(), last.end());
    return rows;
  }
  static std::string name() { return "recent_and_random"; }
};

/// The caller names the rows with each prefill (punctuation and other special tokens, for example).
/// While decoding, where nobody names any, the last row of every interval is the probe.
struct given_probes {
  using role = probe_role;
  static constexpr bool given_by_caller = true;
  static std::vector<int64_t> rows(int64_t num_rows, const probe_options&) {
    return detail::last_rows(num_rows, num_rows > 0 ? 1 : 0);
  }
  static std::string name() { return "given"; }
};

}  // namespace zipcache

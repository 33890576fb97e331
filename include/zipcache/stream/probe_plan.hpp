// Which rows are probes, of a prompt and of every interval after it: the same on both backends,
// since the host decides.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <zipcache/core/error.hpp>
#include <zipcache/saliency/probe.hpp>
#include <zipcache/stream/options.hpp>

namespace zipcache::detail {

/// Rows of a prompt whose queries are looked at: those the caller names under given_probes, else
/// the strategy's.
/// @throws argument_error  rows that are missing, not wanted, out of range or not ascending
template <class Policies>
std::vector<int64_t> prompt_probe_rows(int64_t prompt_len, std::span<const int64_t> given,
                                       const stream_options& options) {
  if constexpr (Policies::probe_policy::given_by_caller) {
    require(!given.empty(), "probe_rows must name at least one row under given_probes");
    for (size_t i = 0; i < given.size(); ++i) {
      require_between("probe row", given[i], int64_t{0}, prompt_len - 1);
      require(i == 0 || given[i - 1] < given[i], "probe_rows must be ascending and differ");
    }
    return {given.begin(), given.end()};
  } else {
    require(given.empty(), "probe_rows may only be given under given_probes");
    return Policies::probe_policy::rows(prompt_len, options.probe);
  }
}

/// Rows of the interval whose first row is at position `first`, less those before `begin`, which
/// the prompt already brought and which were not kept. The last row of an interval always lies
/// ahead. Relative to `first`, ascending.
template <class Policies>
std::vector<int64_t> interval_probe_rows(int64_t first, int64_t begin,
                                         const stream_options& options) {
  probe_options seeded = options.probe;
  seeded.seed = mix64(seeded.seed ^ mix64(static_cast<uint64_t>(first)));
  std::vector<int64_t> rows =
      Policies::probe_policy::rows(options.schedule.recompress_interval, seeded);
  std::erase_if(rows, [&](int64_t row) { return first + row < begin; });
  return rows;
}

}  // namespace zipcache::detail

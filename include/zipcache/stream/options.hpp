// Numbers that change results without changing code. Those left out take the policy's default.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <zipcache/core/error.hpp>
#include <zipcache/policy/policies.hpp>
#include <zipcache/store/segment.hpp>

namespace zipcache {

struct cache_options {
  std::optional<double> salient_ratio = {};         ///< share of salient tokens, 0 to 1
  std::optional<int64_t> recompress_interval = {};  ///< new tokens that are compressed together
  std::optional<int64_t> recent_window = {};        ///< newest tokens that always stay in 16 bits
  int64_t salient_count = 0;                        ///< for the budget `salient_count`
  double recent_probe_fraction = 0.05;
  double random_probe_fraction = 0.05;
  int64_t max_probes = 0;  ///< cap on the probes of each kind; 0: none
  uint64_t seed = 0;       ///< of random probes
  int64_t max_pages = 0;   ///< capacity of the page pool; 0: as much as memory holds
  int64_t page_bytes = 0;  ///< size of a page; 0: what an interval of one KV head needs, or half
  std::vector<int32_t> layer_policy =
      {};  ///< [num_layers] index into a policy_table; empty: the first for all
};

/// Options with the policies' defaults filled in.
struct stream_options {
  budget_options budget;
  schedule_options schedule;
  probe_options probe;

  bool operator==(const stream_options&) const = default;
};

namespace detail {

/// @throws argument_error  a number out of range
template <class Policies>
stream_options resolve(const cache_options& options) {
  stream_options resolved;
  resolved.budget.salient_ratio =
      options.salient_ratio.value_or(Policies::budget_policy::default_ratio);
  resolved.budget.salient_count = options.salient_count;
  resolved.schedule.recompress_interval =
      options.recompress_interval.value_or(Policies::schedule_policy::default_interval);
  resolved.schedule.recent_window =
      options.recent_window.value_or(Policies::schedule_policy::default_recent);
  resolved.probe = {options.recent_probe_fraction, options.random_probe_fraction,
                    options.max_probes, options.seed};
  // Written so that a NaN is refused as well.
  const auto require_share = [](const char* name, double x) {
    if (!(x >= 0.0 && x <= 1.0)) refuse(name, x, "between 0 and 1");
  };
  require_share("salient_ratio", resolved.budget.salient_ratio);
  require_share("recent_probe_fraction", options.recent_probe_fraction);
  require_share("random_probe_fraction", options.random_probe_fraction);
  require_between("salient_count", options.salient_count, 0, INT32_MAX);
  require_between("recompress_interval", resolved.schedule.recompress_interval, 1, INT32_MAX);
  require_between("recent_window", resolved.schedule.recent_window, 0, INT32_MAX);
  require_between("max_probes", options.max_probes, 0, INT32_MAX);
  return resolved;
}

/// Half of a flush, where two such pages hold its tiles with at most 2 % of unused bytes, or all of
/// it. The rest of a prompt's last page, half a page on average, is then half as large: 1 % of 4096
/// tokens. Flushes below 16 KiB stay one page, since every page has an entry in a table to be read.
inline int64_t page_of_flush(const page_plan& flush, int64_t flush_bytes) {
  if (flush_bytes < 16384) return flush_bytes;
  const int64_t largest_tile = most(flush.salient_tile_bytes, flush.regular_tile_bytes);
  for (int64_t page = round_up<int64_t>(most(ceil_div<int64_t>(flush_bytes, 2), largest_tile), 16);
       2 * page <= flush_bytes + flush_bytes / 50; page += 16) {
    const page_plan halves =
        page_plan::make(page, flush.salient_tile_bytes, flush.regular_tile_bytes,
                        flush.salient_tiles, flush.regular_tiles);
    if (halves.num_pages == 2) return page;
  }
  return flush_bytes;
}

/// Bytes that one flush of one KV head needs, or half of them, blocks behind its tiles, and at
/// least one tile of each class: the natural page.
template <class Policies>
int64_t natural_page_bytes(const stream_options& options, int32_t head_dim) {
  using shape = segment_shape<Policies>;
  const int64_t interval = options.schedule.recompress_interval;
  const int64_t salient = Policies::budget_policy::num_salient(interval, options.budget);
  const page_plan plan{0, shape::salient_tile_bytes(head_dim), shape::regular_tile_bytes(head_dim),
                       ceil_div<int64_t>(salient, tile_tokens),
                       ceil_div<int64_t>(interval - salient, tile_tokens)};
  const int64_t flush =
      plan.salient_tiles * plan.salient_tile_bytes + plan.regular_tiles * plan.regular_tile_bytes;
  const int64_t blocks =
      block_record<Policies>::bytes({interval, head_dim, segment_origin::streamed});
  const int64_t largest_tile = most(plan.salient_tile_bytes, plan.regular_tile_bytes);
  // Beyond a few tiles a larger page only leaves a larger last page unfilled.
  constexpr int64_t most_tiles = 16;
  constexpr int64_t most_block_bytes = int64_t{64} << 10;
  int64_t tiles = least(flush, most_tiles * largest_tile);
  if (tiles == flush && blocks == 0) tiles = page_of_flush(plan, flush);
  return round_up<int64_t>(most(round_up<int64_t>(tiles, 16) + least(blocks, most_block_bytes),
                                most<int64_t>(largest_tile, 4 * head_dim)),
                           16);
}

}  // namespace detail
}  // namespace zipcache

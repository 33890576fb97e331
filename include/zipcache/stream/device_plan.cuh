// How large everything of a cache in device memory is: host arithmetic over shape, limits and
// options, before anything is allocated. device_memory.cuh allocates it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include <zipcache/core/cuda.cuh>
#include <zipcache/core/error.hpp>
#include <zipcache/core/numerics.hpp>
#include <zipcache/core/shape.hpp>
#include <zipcache/store/device_layer.cuh>
#include <zipcache/store/segment.hpp>
#include <zipcache/stream/general_flush.cuh>
#include <zipcache/stream/options.hpp>
#include <zipcache/stream/probe_plan.hpp>

namespace zipcache {

/// What a cache in device memory is sized for; all of it is allocated at once.
struct device_limits {
  int32_t max_sequences = 1;
  int64_t max_tokens = 4096;  ///< of one sequence
};

namespace detail {

/// Sizes of a cache's device memory.
template <class Policies, class Element>
struct device_plan {
  int64_t num_layers = 0;
  int64_t num_pages = 0;                       ///< of the pool that all layers share
  device_layer<Policies, Element> layer{};     ///< every layer's sizes; its pointers are null
  std::vector<flush_sizes> pinning_flushes{};  ///< [sinks]: flushes that pin 1, 2, ... tokens
};

/// The segment that `num_tokens` tokens become.
template <class Policies>
segment_shape<Policies> segment_of(int32_t num_kv_heads, int32_t head_dim, int64_t num_tokens,
                                   const budget_options& budget) {
  return {num_kv_heads, head_dim, num_tokens,
          Policies::budget_policy::num_salient(num_tokens, budget)};
}

/// @throws argument_error  not a multiple of 16 that one tile fits into, or too large
template <class Policies>
int64_t planned_page_bytes(int64_t asked, const stream_options& options, int32_t head_dim) {
  if (asked == 0) return natural_page_bytes<Policies>(options, head_dim);
  using tiles = segment_shape<Policies>;
  const int64_t largest_tile =
      most(tiles::salient_tile_bytes(head_dim), tiles::regular_tile_bytes(head_dim));
  // The CPU keeps 16-bit rows in pages as well; the same sizes are refused on both.
  const int64_t least_bytes = most<int64_t>(largest_tile, int64_t{4} * head_dim);
  if (asked < least_bytes || asked > (int64_t{256} << 10) || asked % 16 != 0) {
    refuse("page_bytes", asked,
           ("a multiple of 16 from " + std::to_string(least_bytes) +
            ", which one tile needs, to 256 KiB")
               .c_str());
  }
  return asked;
}

/// An interval is compressed in one block's shared memory.
/// @throws argument_error  an interval that does not fit there
template <class Policies>
void check_interval(const schedule_options& schedule, int32_t head_dim) {
  const auto needed = [&](int64_t tokens) {
    return general_flush_layout<Policies>{static_cast<int32_t>(tokens), head_dim}.bytes();
  };
  // Scores, ranks, list and bitmap take less than 17 bytes a token.
  const int64_t most_tokens = (most_shared_bytes() - needed(0) - 64) / 17;
  if (schedule.recompress_interval > most_tokens)
    refuse("recompress_interval", schedule.recompress_interval,
           ("at most " + std::to_string(most_tokens) +
            " on this GPU, whose shared memory an interval must fit into")
               .c_str());
  require_between("recent_window", schedule.recent_window, int64_t{0}, int64_t{1} << 30);
}

/// A flush that makes sinks of the first `pinned` tokens.
template <class Policies, class Element>
flush_sizes plan_flush(const device_layer<Policies, Element>& layer, const stream_options& options,
                       int64_t pinned) {
  const int64_t rest = options.schedule.recompress_interval - pinned;
  const auto shape = segment_of<Policies>(layer.num_kv_heads, layer.head_dim, rest, options.budget);
  return {static_cast<int32_t>(pinned), static_cast<int32_t>(shape.num_salient),
          static_cast<int32_t>(Policies::budget_policy::num_recent(rest, options.budget)),
          static_cast<int32_t>(shape.plan(layer.page_bytes).num_pages)};
}

/// What a flush takes, whatever sequence it is of.
template <class Policies, class Element>
void plan_intervals(device_plan<Policies, Element>& plan, const stream_options& options) {
  auto& layer = plan.layer;
  const int64_t interval = options.schedule.recompress_interval;
  layer.interval = static_cast<int32_t>(interval);
  layer.recent = static_cast<int32_t>(options.schedule.recent_window);
  const flush_sizes flush = plan_flush(layer, options, 0);
  layer.interval_salient = flush.salient;
  layer.interval_recent = flush.recent;
  layer.interval_pages = flush.pages;
  for (int32_t pinned = 1; pinned <= Policies::sink_policy_type::count; ++pinned)
    plan.pinning_flushes.push_back(plan_flush(layer, options, std::min<int64_t>(pinned, interval)));
}

/// What a sequence of `max_tokens` tokens takes in one layer.
/// @return pages of one of its heads
template <class Policies, class Element>
int64_t plan_sequence(device_layer<Policies, Element>& layer, int64_t max_tokens,
                      const stream_options& options) {
  const int64_t most_intervals = ceil_div(max_tokens, options.schedule.recompress_interval) + 1;
  const int64_t prompt_pages =
      segment_of<Policies>(layer.num_kv_heads, layer.head_dim, max_tokens, options.budget)
          .plan(layer.page_bytes)
          .num_pages;
  const int64_t most_pages =
      std::max(prompt_pages, most_intervals * layer.interval_pages) + layer.interval_pages + 1;
  layer.max_pages = static_cast<int32_t>(most_pages + layer.interval_pages);
  layer.max_segments = static_cast<int32_t>(most_intervals + 1);
  layer.bitmap_words = static_cast<int32_t>(max_tokens / 32 + 2 * layer.max_segments + 2);
  layer.window_tiles = static_cast<int32_t>(ceil_div<int64_t>(
      options.schedule.recompress_interval + options.schedule.recent_window, tile_tokens));
  layer.sink_tiles = ceil_div<int32_t>(Policies::sink_policy_type::count, tile_tokens);
  if constexpr (Policies::needs_probes) {
    layer.probes.max_intervals = static_cast<int32_t>(most_intervals);
    layer.probes.mask_words =
        static_cast<int32_t>(ceil_div<int64_t>(options.schedule.recompress_interval, 32));
    layer.probes.max_kept =
        static_cast<int32_t>(interval_probe_rows<Policies>(0, 0, options).size());
  }
  return most_pages;
}

/// @param given  page_bytes and max_pages; its other numbers are those of `options`
/// @throws argument_error  a size out of range
template <class Policies, class Element>
device_plan<Policies, Element> plan_device_memory(const cache_shape& shape,
                                                  const device_limits& limits,
                                                  const cache_options& given,
                                                  const stream_options& options) {
  device_plan<Policies, Element> plan;
  plan.num_layers = shape.num_layers;
  auto& layer = plan.layer;
  layer.num_qo_heads = shape.num_qo_heads;
  layer.num_kv_heads = shape.num_kv_heads;
  layer.head_dim = shape.head_dim;
  layer.max_sequences = limits.max_sequences;
  layer.sm_scale = shape.softmax_scale();
  layer.set_page_bytes(planned_page_bytes<Policies>(given.page_bytes, options, shape.head_dim));
  require_between("max_pages", given.max_pages, int64_t{0}, int64_t{1} << 31);
  check_interval<Policies>(options.schedule, shape.head_dim);
  plan_intervals(plan, options);
  const int64_t most_pages = plan_sequence(layer, limits.max_tokens, options);
  plan.num_pages = given.max_pages > 0
                       ? given.max_pages
                       : most_pages * shape.num_kv_heads * limits.max_sequences * shape.num_layers;
  require_between("the number of pages", plan.num_pages, int64_t{0}, int64_t{1} << 31);
  return plan;
}

}  // namespace detail
}  // namespace zipcache

// A flush of any interval that fits nowhere: keys and values are read value by value from the
// window's 16-bit tiles. For intervals that staged_flush.cuh has no room for. Twin: stream.hpp.
// @equality same_bytes
#pragma once

#include <cstdint>

#include <zipcache/store/device_layer.cuh>
#include <zipcache/store/encode.cuh>
#include <zipcache/stream/window_interval.cuh>

namespace zipcache::detail {

/// Shared memory of one block: an interval's scores, ranks and classes, and what encoding works in.
template <class Policies>
struct general_flush_layout {
  int32_t interval;
  int32_t head_dim;

  ZIPCACHE_HOST_DEVICE int64_t keys_offset() const { return 0; }  // uint64_t [interval]
  ZIPCACHE_HOST_DEVICE int64_t scores_offset() const {
    return int64_t{8} * interval;
  }  // float [interval]
  ZIPCACHE_HOST_DEVICE int64_t lists_offset() const {
    return scores_offset() + int64_t{4} * interval;
  }  // int32_t [interval]
  ZIPCACHE_HOST_DEVICE int64_t bitmap_offset() const {
    return lists_offset() + int64_t{4} * interval;
  }  // uint32_t [words]
  ZIPCACHE_HOST_DEVICE int64_t query_offset() const {
    return round_up<int64_t>(bitmap_offset() + 4 * ceil_div(interval, 32), 16);
  }
  ZIPCACHE_HOST_DEVICE int64_t scratch_offset() const {
    return query_offset() + int64_t{4} * head_dim;
  }  // floats, by warp
  ZIPCACHE_HOST_DEVICE int64_t warp_scratch_bytes() const {
    return round_up<int64_t>(4 * most(tile_scratch_floats<Policies>(head_dim), 1), 16);
  }
  ZIPCACHE_HOST_DEVICE int64_t bytes() const {
    return scratch_offset() + append_warps * warp_scratch_bytes();
  }
};

/// Attention mass that the kept probes give to the oldest interval of one head's window: probes
/// ascending, then heads, as on the CPU. One block; query [head_dim] and scores [interval] in
/// shared (or global) memory.
template <class Policies, class Storage>
__device__ void sum_kept_probes(const device_layer<Policies, Storage>& layer,
                                const window_reader<Policies, Storage>& window, int32_t num_kept,
                                float* query, float* scores) {
  const int32_t group = layer.group();
  const float factor = layer.sm_scale * log2_e;
  for (int32_t token = static_cast<int32_t>(threadIdx.x); token < layer.interval;
       token += append_threads)
    scores[token] = 0.0f;
  // The row of probe `kept` within the interval decides which tokens it sees; rows come with the
  // mask's bits.
  const sequence_counts count = layer.counts[window.sequence];
  const uint32_t* planned = layer.probes.planned_of(window.sequence, count.intervals);
  int32_t row = -1;
  for (int32_t kept = 0; kept < num_kept; ++kept) {
    for (++row; (planned[row / 32] >> (row % 32) & 1u) == 0;) ++row;
    const int32_t position = row + layer.recent;  // among the window's tokens
    for (int32_t i = 0; i < group; ++i) {
      const int64_t kept_row =
          (static_cast<int64_t>(window.sequence) * layer.probes.max_kept + kept) *
              layer.num_qo_heads +
          window.head * group + i;
      __syncthreads();
      for (int32_t channel = static_cast<int32_t>(threadIdx.x); channel < layer.head_dim;
           channel += append_threads) {
        query[channel] = to_float(layer.probes.q[kept_row * layer.head_dim + channel]) * factor;
      }
      __syncthreads();
      const float base = layer.probes.lse[kept_row] * log2_e;
      for (int32_t token = static_cast<int32_t>(threadIdx.x); token < layer.interval;
           token += append_threads) {
        if (token > position) continue;
        float score = 0.0f;
        for (int32_t channel = 0; channel < layer.head_dim; ++channel)
          score = fmaf(query[channel], to_float(window.key(token, channel)), score);
        scores[token] += exp2_poly(score - base);
      }
    }
  }
  __syncthreads();
}

/// Segment record of one head from the segment's rows. One block, a channel a thread.
template <class Policies, class Storage>
__device__ void fit_interval(const window_reader<Policies, Storage>& window, int32_t num_tokens,
                             const uint32_t* bitmap, record_view<Policies, Storage> record) {
  const int32_t head_dim = window.layer.head_dim;
  using keys = typename Policies::key_quantizer_policy;
  using values = typename Policies::value_quantizer_policy;
  constexpr token_class salient = token_class::salient;
  constexpr token_class regular = token_class::regular;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < 2 * head_dim; i += append_threads) {
    const bool is_key = i < head_dim;
    const int32_t channel = is_key ? i : i - head_dim;
    channel_statistics statistics;
    if (is_key ? needed_statistics<keys>::any : needed_statistics<values>::any) {
      for (int32_t token = 0; token < num_tokens; ++token) {
        const bool is_salient = (bitmap[token / 32] >> (token % 32) & 1u) != 0;
        if (is_key) {
          add_value<keys>(statistics, to_float(window.key(token, channel)), is_salient);
        } else {
          add_value<values>(statistics, to_float(window.value(token, channel)), is_salient);
        }
      }
    }
    if (is_key) {
      save_channel_parameters<keys>(statistics, channel, record.template key_pairs<salient>(),
                                    record.template key_pairs<regular>(), record.key_magnitudes());
    } else {
      save_channel_parameters<values>(statistics, channel, record.template value_pairs<salient>(),
                                      record.template value_pairs<regular>(),
                                      record.value_magnitudes());
    }
  }
  __syncthreads();
}

/// Listed tokens of the window as rows of a tile, one side of them.
template <class Policies, class Storage>
struct window_rows {
  const window_reader<Policies, Storage>& window;
  const int32_t* tokens;
  bool values;

  __device__ float operator()(int32_t token, int32_t channel) const {
    return to_float(values ? window.value(tokens[token], channel)
                           : window.key(tokens[token], channel));
  }
};

template <class Policies, token_class Class, class Storage>
__device__ void encode_interval_tile(const window_reader<Policies, Storage>& window,
                                     const int32_t* tokens, int32_t count,
                                     record_view<Policies, Storage> record, tile_place tile,
                                     float* scratch) {
  using rows = window_rows<Policies, Storage>;
  encode_tile<Policies, Class>(warp_team{static_cast<int32_t>(threadIdx.x) % 32},
                               rows{window, tokens, false}, rows{window, tokens, true}, count,
                               window.layer.head_dim, record, tile, scratch);
}

/// Compresses the oldest interval of one head's window into new pages, less the tokens that become
/// sinks. One block. Counts are not touched.
template <class Policies, class Storage>
__device__ void flush_general(const device_layer<Policies, Storage>& layer,
                              const sequence_counts& count, const flush_sizes& flush,
                              int32_t sequence, int32_t head, int32_t num_kept,
                              const float* all_sums, std::byte* memory) {
  const general_flush_layout<Policies> layout{layer.interval, layer.head_dim};
  uint64_t* keys = reinterpret_cast<uint64_t*>(memory + layout.keys_offset());
  float* scores = reinterpret_cast<float*>(memory + layout.scores_offset());
  int32_t* lists = reinterpret_cast<int32_t*>(memory + layout.lists_offset());
  uint32_t* bitmap = reinterpret_cast<uint32_t*>(memory + layout.bitmap_offset());
  float* query = reinterpret_cast<float*>(memory + layout.query_offset());
  const int32_t warp = static_cast<int32_t>(threadIdx.x) / 32;
  float* scratch = reinterpret_cast<float*>(memory + layout.scratch_offset() +
                                            warp * layout.warp_scratch_bytes());

  const window_reader<Policies, Storage> window{layer, sequence, head, count.window_first};
  pin_sinks(window, count.sinks, flush.pinned);
  const int32_t num_tokens = layer.interval - flush.pinned;
  if (num_tokens == 0) return;
  if constexpr (Policies::needs_probes && Policies::scope_policy::shared_by_heads) {
    add_head_sums(layer, sequence, all_sums, scores);
  } else {
    sum_kept_probes(layer, window, num_kept, query, scores);
  }
  __syncthreads();
  apply_metric(layer, sequence, count.intervals, scores);
  __syncthreads();
  // From here on tokens count from the first one of the segment.
  const window_reader<Policies, Storage> rows{
      layer, sequence, head, (count.window_first + flush.pinned) % layer.window_slots()};
  select_interval(scores + flush.pinned, num_tokens, flush, keys, bitmap, lists);
  const record_view<Policies, Storage> record{layer.record_of(sequence, count.segments, head),
                                              layer.head_dim};
  fit_interval(rows, num_tokens, bitmap, record);

  const int32_t num_regular = num_tokens - flush.salient;
  const segment_shape<Policies> shape{layer.num_kv_heads, layer.head_dim, num_tokens,
                                      flush.salient};
  const page_plan plan = shape.plan(layer.page_bytes);
  page_entry* table = layer.table_of(sequence, head) + count.pages;
  int32_t turn = 0;
  int32_t salient_done = 0;
  int32_t regular_done = 0;
  for (int32_t page = 0; page < flush.pages; ++page) {
    const page_entry entry = plan.entry(page, table[page].page, flush.salient, num_regular);
    for (int32_t first = 0; first < entry.salient_tokens; first += tile_tokens) {
      if (turn++ % (append_warps) != warp) continue;
      encode_interval_tile<Policies, token_class::salient>(
          rows, lists + salient_done + first, least(tile_tokens, entry.salient_tokens - first),
          record, layer.template tile<token_class::salient>(entry, first / tile_tokens), scratch);
    }
    for (int32_t first = 0; first < entry.regular_tokens; first += tile_tokens) {
      if (turn++ % (append_warps) != warp) continue;
      encode_interval_tile<Policies, token_class::regular>(
          rows, lists + flush.salient + regular_done + first,
          least(tile_tokens, entry.regular_tokens - first), record,
          layer.template tile<token_class::regular>(entry, first / tile_tokens), scratch);
    }
    salient_done += entry.salient_tokens;
    regular_done += entry.regular_tokens;
  }
  __syncthreads();  // everybody has read the table's page numbers
  for (int32_t page = static_cast<int32_t>(threadIdx.x); page < flush.pages;
       page += append_threads) {
    table[page] = plan.entry(page, table[page].page, flush.salient, num_regular);
  }
  uint32_t* kept_bitmap = layer.bitmap_of(sequence, head) + ceil_div(count.prompt_tokens, 32) +
                          count.interval_segments() * ceil_div(layer.interval, 32);
  for (int32_t word = static_cast<int32_t>(threadIdx.x); word < ceil_div(num_tokens, 32);
       word += append_threads)
    kept_bitmap[word] = bitmap[word];
}

}  // namespace zipcache::detail

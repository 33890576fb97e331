// Streaming on CUDA: one token more for every sequence of a batch, and the compression of windows
// that are full. Both are one kernel without host work, so that a captured graph can be replayed
// while sequences grow: it reads lengths on the device and writes them back. Twin: stream.hpp.
// @equality same_bytes for the same scores; scores agree with the CPU's within rounding
#pragma once

#include <cstdint>

#include <zipcache/attend/attend_schedule.cuh>
#include <zipcache/core/cuda.cuh>
#include <zipcache/saliency/metric.hpp>
#include <zipcache/select/order.hpp>
#include <zipcache/store/device_layer.cuh>
#include <zipcache/store/encode.cuh>

namespace zipcache {

/// One new token for each sequence of a batch, in device memory.
template <class Storage>
struct append_batch {
  int32_t num_items = 0;
  const int32_t* sequences = nullptr;  ///< [num_items], no sequence twice
  const Storage* k = nullptr;          ///< [num_items, num_kv_heads, head_dim]
  const Storage* v = nullptr;          ///< [num_items, num_kv_heads, head_dim]
};

namespace detail {

inline constexpr int32_t append_threads = 256;

/// Shared memory of one block: an interval's scores, ranks and classes, and what encoding works in.
template <class Policies>
struct flush_layout {
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
    return scratch_offset() + append_threads / 32 * warp_scratch_bytes();
  }
};

/// The tokens of one head's window, oldest first.
template <class Policies, class Storage>
struct window_reader {
  const device_layer<Policies, Storage>& layer;
  int32_t sequence;
  int32_t head;
  int32_t first;

  __device__ Storage* tile_of(int32_t token, int32_t& slot) const {
    slot = first + token;
    const int32_t slots = layer.window_tiles * tile_tokens;
    if (slot >= slots) slot -= slots;
    Storage* tile = layer.window_tile(sequence, head, slot / tile_tokens);
    slot %= tile_tokens;
    return tile;
  }
  __device__ Storage& key(int32_t token, int32_t channel) const {
    int32_t slot;
    Storage* tile = tile_of(token, slot);
    return row_tile_element<key_layout>(tile, layer.head_dim, slot, channel);
  }
  __device__ Storage& value(int32_t token, int32_t channel) const {
    int32_t slot;
    Storage* tile = tile_of(token, slot);
    return row_tile_element<value_layout>(tile + tile_tokens * layer.head_dim, layer.head_dim, slot,
                                          channel);
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

/// What is planned of the interval that a sequence is filling: how many probes, and whether all
/// were attended.
template <class Policies, class Storage>
__device__ int32_t count_planned(const device_layer<Policies, Storage>& layer, int32_t sequence,
                                 const sequence_counts& count, bool& complete) {
  complete = true;
  if constexpr (!Policies::needs_probes) return 0;
  if (count.intervals >= layer.probes.max_intervals) {
    complete = false;
    return 0;
  }
  const uint32_t* planned = layer.probes.planned_of(sequence, count.intervals);
  const uint32_t* recorded = layer.probes.recorded_of(sequence);
  int32_t number = 0;
  for (int32_t word = 0; word < layer.probes.mask_words; ++word) {
    number += __popc(planned[word]);
    complete = complete && (planned[word] & ~recorded[word]) == 0;
  }
  return number;
}

/// Scores of the interval's tokens of one head, by the metric. One block.
template <class Policies, class Storage>
__device__ void score_interval(const device_layer<Policies, Storage>& layer,
                               const window_reader<Policies, Storage>& window, int32_t num_kept,
                               const float* all_sums, float* query, float* scores) {
  using metric = typename Policies::saliency_policy;
  const int32_t interval = layer.interval;
  if constexpr (Policies::needs_probes) {
    if (Policies::scope_policy::shared_by_heads) {
      // Every head's sums are there already; all blocks add them in the same order.
      for (int32_t token = static_cast<int32_t>(threadIdx.x); token < interval;
           token += append_threads) {
        float sum = 0.0f;
        for (int32_t head = 0; head < layer.num_kv_heads; ++head) {
          sum += all_sums[(static_cast<int64_t>(window.sequence) * layer.num_kv_heads + head) *
                              interval +
                          token];
        }
        scores[token] = sum;
      }
    } else {
      sum_kept_probes(layer, window, num_kept, query, scores);
    }
  } else {
    for (int32_t token = static_cast<int32_t>(threadIdx.x); token < interval;
         token += append_threads)
      scores[token] = 0.0f;
  }
  __syncthreads();
  if constexpr (Policies::budget_policy::uses_scores) {  // otherwise zeros, as on the CPU
    const sequence_counts count = layer.counts[window.sequence];
    for (int32_t token = static_cast<int32_t>(threadIdx.x); token < interval;
         token += append_threads) {
      int64_t visible_probes = 0;
      if constexpr (Policies::needs_probes) {
        const uint32_t* planned = layer.probes.planned_of(window.sequence, count.intervals);
        for (int32_t row = most(0, token - layer.recent); row < interval; ++row)
          visible_probes += planned[row / 32] >> (row % 32) & 1u;
      }
      scores[token] =
          metric::score(scores[token], token_visibility{visible_probes, interval - token});
    }
    __syncthreads();
  }
}

/// Which of the `num_tokens` tokens that become a segment are salient: bitmap [words], and the
/// tokens by class, salient ones first. One block.
inline __device__ void select_interval(const float* scores, int32_t num_tokens,
                                       const flush_sizes& flush, uint64_t* keys, uint32_t* bitmap,
                                       int32_t* lists) {
  const int32_t ranked = num_tokens - flush.recent;
  const int32_t heavy = flush.salient - flush.recent;
  const int32_t words = ceil_div(num_tokens, 32);
  for (int32_t token = static_cast<int32_t>(threadIdx.x); token < num_tokens;
       token += append_threads) {
    keys[token] = rank_key(scores[token], static_cast<uint32_t>(token));
  }
  for (int32_t word = static_cast<int32_t>(threadIdx.x); word < words; word += append_threads)
    bitmap[word] = 0;
  __syncthreads();
  for (int32_t token = static_cast<int32_t>(threadIdx.x); token < num_tokens;
       token += append_threads) {
    int32_t before = 0;
    for (int32_t other = 0; other < ranked; ++other) before += keys[other] < keys[token] ? 1 : 0;
    if (token >= ranked || before < heavy) atomicOr(bitmap + token / 32, 1u << (token % 32));
  }
  __syncthreads();
  for (int32_t token = static_cast<int32_t>(threadIdx.x); token < num_tokens;
       token += append_threads) {
    int32_t salient_before = __popc(bitmap[token / 32] & ((1u << (token % 32)) - 1u));
    for (int32_t word = 0; word < token / 32; ++word) salient_before += __popc(bitmap[word]);
    const bool salient = (bitmap[token / 32] >> (token % 32) & 1u) != 0;
    lists[salient ? salient_before : flush.salient + token - salient_before] = token;
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
                                     record_view<Policies, Storage> record, std::byte* tile,
                                     float* scratch) {
  using rows = window_rows<Policies, Storage>;
  encode_tile<Policies, Class>(warp_team{static_cast<int32_t>(threadIdx.x) % 32},
                               rows{window, tokens, false}, rows{window, tokens, true}, count,
                               window.layer.head_dim, record, tile, scratch);
}

/// The first tokens of one head's window become sinks, behind those that there are. One block.
template <class Policies, class Storage>
__device__ void pin_sinks(const window_reader<Policies, Storage>& window, int32_t first_sink,
                          int32_t count) {
  const device_layer<Policies, Storage>& layer = window.layer;
  const int32_t head_dim = layer.head_dim;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < count * head_dim; i += append_threads) {
    const int32_t token = i / head_dim;
    const int32_t channel = i - token * head_dim;
    const int32_t slot = first_sink + token;
    Storage* tile = layer.sink_tile(window.sequence, window.head, slot / tile_tokens);
    row_tile_element<key_layout>(tile, head_dim, slot % tile_tokens, channel) =
        window.key(token, channel);
    row_tile_element<value_layout>(tile + tile_tokens * head_dim, head_dim, slot % tile_tokens,
                                   channel) = window.value(token, channel);
  }
}

/// Compresses the oldest interval of one head's window into new pages, less the tokens that become
/// sinks. One block. Counts are not touched.
template <class Policies, class Storage>
__device__ void flush_head(const device_layer<Policies, Storage>& layer,
                           const sequence_counts& count, const flush_sizes& flush, int32_t sequence,
                           int32_t head, int32_t num_kept, const float* all_sums,
                           std::byte* memory) {
  const flush_layout<Policies> layout{layer.interval, layer.head_dim};
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
  score_interval(layer, window, num_kept, all_sums, query, scores);
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
    std::byte* tile = layer.page(entry.page);
    for (int32_t first = 0; first < entry.salient_tokens;
         first += tile_tokens, tile += shape.salient_tile_bytes(layer.head_dim)) {
      if (turn++ % (append_threads / 32) != warp) continue;
      encode_interval_tile<Policies, token_class::salient>(
          rows, lists + salient_done + first, least(tile_tokens, entry.salient_tokens - first),
          record, tile, scratch);
    }
    for (int32_t first = 0; first < entry.regular_tokens;
         first += tile_tokens, tile += shape.regular_tile_bytes(layer.head_dim)) {
      if (turn++ % (append_threads / 32) != warp) continue;
      encode_interval_tile<Policies, token_class::regular>(
          rows, lists + flush.salient + regular_done + first,
          least(tile_tokens, entry.regular_tokens - first), record, tile, scratch);
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

inline constexpr uint32_t unreserved_page = 0xffffffffu;

/// Whether a full window can be compressed now; if not, says why in the layer's status.
template <class Policies, class Storage>
__device__ bool can_flush(const device_layer<Policies, Storage>& layer,
                          const sequence_counts& count, const flush_sizes& flush, int32_t sequence,
                          int32_t head, bool probes_complete) {
  const int32_t pages = count.pages + flush.pages;
  const bool room =
      pages <= layer.max_pages && count.segments < layer.max_segments &&
      (flush.pages == 0 || layer.table_of(sequence, head)[pages - 1].page != unreserved_page);
  if (threadIdx.x == 0 && !room)
    atomicOr(layer.status, static_cast<uint32_t>(device_fault::not_reserved));
  if (threadIdx.x == 0 && !probes_complete)
    atomicOr(layer.status, static_cast<uint32_t>(device_fault::missing_probes));
  return room && probes_complete;
}

/// Attention sums of all heads, for scopes that add them up; only of windows that are full.
/// grid: a block for each (item, KV head); memory: query [head_dim]
template <class Policies, class Storage>
static __global__ void __launch_bounds__(append_threads)
    sum_probes_kernel(device_layer<Policies, Storage> layer, append_batch<Storage> batch,
                      float* all_sums) {
  extern __shared__ __align__(16) std::byte append_memory[];
  const int32_t sequence = batch.sequences[blockIdx.x / static_cast<uint32_t>(layer.num_kv_heads)];
  const int32_t head = static_cast<int32_t>(blockIdx.x) % layer.num_kv_heads;
  const sequence_counts count = layer.counts[sequence];
  if (count.window < layer.interval + layer.recent) return;
  bool complete;
  const int32_t num_kept = count_planned(layer, sequence, count, complete);
  if (!complete) return;
  const window_reader<Policies, Storage> window{layer, sequence, head, count.window_first};
  sum_kept_probes(
      layer, window, num_kept, reinterpret_cast<float*>(append_memory),
      all_sums + (static_cast<int64_t>(sequence) * layer.num_kv_heads + head) * layer.interval);
}

/// Compresses full windows and appends one token to every sequence of the batch.
/// grid: a block for each (item, KV head); the last block of an item to finish writes the new
/// counts warp: a tile of the interval at a time; lane: words of the tile memory: flush_layout
template <class Policies, class Storage>
static __global__ void __launch_bounds__(append_threads)
    append_kernel(device_layer<Policies, Storage> layer, append_batch<Storage> batch,
                  const float* all_sums, uint32_t* arrivals) {
  extern __shared__ __align__(16) std::byte append_memory[];
  const int32_t item = static_cast<int32_t>(blockIdx.x) / layer.num_kv_heads;
  const int32_t head = static_cast<int32_t>(blockIdx.x) % layer.num_kv_heads;
  const int32_t sequence = batch.sequences[item];
  const sequence_counts count = layer.counts[sequence];
  const bool full = count.window >= layer.interval + layer.recent;
  bool refused = false;
  sequence_counts updated = count;
  if (full) {
    bool complete;
    const int32_t num_kept = count_planned(layer, sequence, count, complete);
    const flush_sizes flush = layer.next_flush(count, layer.pinning_flushes);
    refused = !can_flush(layer, count, flush, sequence, head, complete);
    if (!refused) {
      flush_head(layer, count, flush, sequence, head, num_kept, all_sums, append_memory);
      advance_flush(updated, flush, layer.interval, layer.window_slots());
      __syncthreads();  // the interval's rows are read; the new token may take their place
    }
  }
  if (!refused) {
    const window_reader<Policies, Storage> window{layer, sequence, head, updated.window_first};
    const int64_t row = (static_cast<int64_t>(item) * layer.num_kv_heads + head) * layer.head_dim;
    bool finite = true;
    for (int32_t channel = static_cast<int32_t>(threadIdx.x); channel < layer.head_dim;
         channel += append_threads) {
      const Storage key = batch.k[row + channel];
      const Storage value = batch.v[row + channel];
      const bool fine_key = is_finite(to_float(key));
      const bool fine_value = is_finite(to_float(value));
      finite = finite && fine_key && fine_value;
      window.key(updated.window, channel) = fine_key ? key : Storage{};
      window.value(updated.window, channel) = fine_value ? value : Storage{};
    }
    if (!finite) atomicOr(layer.status, static_cast<uint32_t>(device_fault::non_finite));
    updated.window += 1;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  __threadfence();
  if (atomicAdd(arrivals + sequence, 1u) + 1 < static_cast<uint32_t>(layer.num_kv_heads)) return;
  arrivals[sequence] = 0;
  if (refused) return;
  layer.counts[sequence] = updated;
  if constexpr (Policies::needs_probes) {
    if (full) {
      for (int32_t word = 0; word < layer.probes.mask_words; ++word)
        layer.probes.recorded_of(sequence)[word] = 0;
    }
  }
}

}  // namespace detail

/// @brief Bytes of workspace of `append`; must be zero before its first use.
template <class Policies, class Storage>
size_t append_workspace_bytes(const device_layer<Policies, Storage>& layer) {
  const size_t arrivals =
      round_up<size_t>(static_cast<size_t>(layer.max_sequences) * sizeof(uint32_t), 256);
  const bool sums = Policies::needs_probes && Policies::scope_policy::shared_by_heads;
  return arrivals + (sums ? static_cast<size_t>(layer.max_sequences) *
                                static_cast<size_t>(layer.num_kv_heads) *
                                static_cast<size_t>(layer.interval) * sizeof(float)
                          : 0);
}

/// @brief Appends one token to every sequence of the batch; a full window is compressed first.
/// What cannot be done on the device (no pages reserved, probes not attended, values not finite)
/// leaves its sequence as it was, or the value zero, and sets bits of layer.status (device_fault).
/// @throws argument_error  null or host pointers, a workspace that is too small
/// @throws cuda_error  the launch failed
/// Asynchronous on backend.stream; may be captured.
template <class Policies, class Storage>
void append(cuda_backend backend, const device_layer<Policies, Storage>& layer,
            const append_batch<Storage>& batch, void* workspace, size_t workspace_bytes) {
  if (batch.num_items == 0) return;
  detail::check_head_dim(layer.head_dim);
  detail::require_between("num_items", batch.num_items, 0, INT32_MAX / most(layer.num_kv_heads, 1));
  detail::check_device_pointer("sequences", batch.sequences);
  detail::check_device_pointer("k", batch.k);
  detail::check_device_pointer("v", batch.v);
  detail::check_device_pointer("workspace", workspace);
  if (workspace_bytes < append_workspace_bytes(layer)) {
    detail::refuse("workspace_bytes", workspace_bytes,
                   ("at least " + std::to_string(append_workspace_bytes(layer))).c_str());
  }
  detail::check_no_earlier_error();
  uint32_t* arrivals = static_cast<uint32_t*>(workspace);
  float* sums = reinterpret_cast<float*>(
      static_cast<std::byte*>(workspace) +
      round_up<size_t>(static_cast<size_t>(layer.max_sequences) * sizeof(uint32_t), 256));
  const unsigned blocks =
      static_cast<unsigned>(batch.num_items) * static_cast<unsigned>(layer.num_kv_heads);
  if constexpr (Policies::needs_probes && Policies::scope_policy::shared_by_heads) {
    detail::
        sum_probes_kernel<<<blocks, detail::append_threads,
                            static_cast<size_t>(layer.head_dim) * sizeof(float), backend.stream>>>(
            layer, batch, sums);
    detail::check_launch("the probe kernel");
  }
  const detail::flush_layout<Policies> layout{layer.interval, layer.head_dim};
  const size_t shared_bytes = static_cast<size_t>(layout.bytes());
  detail::check_cuda("cudaFuncSetAttribute",
                     cudaFuncSetAttribute(detail::append_kernel<Policies, Storage>,
                                          cudaFuncAttributeMaxDynamicSharedMemorySize,
                                          static_cast<int>(shared_bytes)));
  detail::append_kernel<<<blocks, detail::append_threads, shared_bytes, backend.stream>>>(
      layer, batch, sums, arrivals);
  detail::check_launch("the append kernel");
}

}  // namespace zipcache

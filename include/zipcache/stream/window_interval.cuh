// One head's full window on CUDA: its tokens, the probes that were planned of it, and what both
// ways to compress it (staged_flush.cuh, general_flush.cuh) do alike: scores by the metric, the
// salient set, sinks. Twin: stream.hpp.
#pragma once

#include <cstdint>

#include <zipcache/core/cuda.cuh>
#include <zipcache/saliency/metric.hpp>
#include <zipcache/select/order.hpp>
#include <zipcache/store/device_layer.cuh>

namespace zipcache::detail {

inline constexpr int32_t append_threads = 512;
inline constexpr int32_t append_warps = append_threads / 32;

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

/// Scores of scopes that add up the heads' sums, which are all there already: every block adds them
/// in the same order. all_sums [max_sequences, num_kv_heads, interval]; one block
template <class Policies, class Storage>
__device__ void add_head_sums(const device_layer<Policies, Storage>& layer, int32_t sequence,
                              const float* all_sums, float* scores) {
  const float* sums = all_sums + int64_t{sequence} * layer.num_kv_heads * layer.interval;
  for (int32_t token = static_cast<int32_t>(threadIdx.x); token < layer.interval;
       token += append_threads) {
    float sum = 0.0f;
    for (int32_t head = 0; head < layer.num_kv_heads; ++head)
      sum += sums[int64_t{head} * layer.interval + token];
    scores[token] = sum;
  }
}

/// Planned probes of an interval at or after row `row`.
inline __device__ int32_t probes_from(const uint32_t* planned, int32_t mask_words, int32_t row) {
  int32_t count = __popc(planned[row / 32] >> (row % 32));
  for (int32_t word = row / 32 + 1; word < mask_words; ++word) count += __popc(planned[word]);
  return count;
}

/// From sums of attention to scores, each by the thread that has its token; zeros stay where the
/// budget looks at no score, as on the CPU. One block.
template <class Policies, class Storage>
__device__ void apply_metric(const device_layer<Policies, Storage>& layer, int32_t sequence,
                             int32_t num_intervals, float* scores) {
  using metric = typename Policies::saliency_policy;
  if constexpr (Policies::budget_policy::uses_scores) {
    for (int32_t token = static_cast<int32_t>(threadIdx.x); token < layer.interval;
         token += append_threads) {
      int64_t visible_probes = 0;
      if constexpr (Policies::needs_probes) {
        visible_probes = probes_from(layer.probes.planned_of(sequence, num_intervals),
                                     layer.probes.mask_words, most(0, token - layer.recent));
      }
      scores[token] =
          metric::score(scores[token], token_visibility{visible_probes, layer.interval - token});
    }
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
    const uint64_t own = keys[token];
    int32_t before = 0;
#pragma unroll 8
    for (int32_t other = 0; other < ranked; ++other) before += keys[other] < own ? 1 : 0;
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

}  // namespace zipcache::detail

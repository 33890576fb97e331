// Small kernels around a prompt: its probe rows are gathered, chunks of it copied, its 16-bit
// tokens (sinks, window) written as tiles, and entries of tables forgotten.
#pragma once

#include <cstdint>

#include <zipcache/core/cuda.cuh>
#include <zipcache/core/view.hpp>
#include <zipcache/saliency/metric.hpp>
#include <zipcache/store/device_layer.cuh>
#include <zipcache/stream/stream.cuh>

namespace zipcache::detail {

inline unsigned blocks_for(int64_t items, int64_t threads) {
  return static_cast<unsigned>(least<int64_t>(most<int64_t>(ceil_div(items, threads), 1), 65535));
}

/// Probes of a prompt whose rows a chunk brings.
struct probe_slice {
  const int64_t* positions;  ///< of all probes of the prompt, in device memory
  int64_t first_token;       ///< of the chunk
  int64_t first;             ///< of the probes
  int64_t count;
};

/// q_rows [num_qo_heads, num_probes, head_dim] and lse_rows [num_qo_heads, num_probes] of the
/// slice's probes; q and lse are the chunk's.
template <class Element>
static __global__ void gather_probes_kernel(tensor_view<const Element> q, const float* lse,
                                            probe_slice slice, int64_t num_probes, Element* q_rows,
                                            float* lse_rows) {
  const int64_t items = slice.count * q.num_heads * q.head_dim;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < items;
       i += int64_t{gridDim.x} * blockDim.x) {
    const int64_t channel = i % q.head_dim;
    const int64_t probe = slice.first + i / q.head_dim % slice.count;
    const int64_t head = i / q.head_dim / slice.count;
    const int64_t token = slice.positions[probe] - slice.first_token;
    const int64_t place = head * num_probes + probe;
    q_rows[place * q.head_dim + channel] = q.row(head, token)[channel];
    if (channel == 0 && lse != nullptr) lse_rows[place] = lse[token * q.num_heads + head];
  }
}

template <class Element>
void gather_probes(cudaStream_t stream, tensor_view<const Element> q, const float* lse,
                   const probe_slice& slice, int64_t num_probes, Element* q_rows, float* lse_rows) {
  gather_probes_kernel<<<blocks_for(slice.count * q.num_heads * q.head_dim, 256), 256, 0, stream>>>(
      q, lse, slice, num_probes, q_rows, lse_rows);
  check_launch("gather_probes_kernel");
}

/// Copies tokens whose rows are aligned to 16 bytes, 16 bytes a thread.
template <class Element>
static __global__ void copy_tokens_kernel(tensor_view<const Element> from,
                                          tensor_view<Element> to) {
  constexpr int32_t at_once = 16 / sizeof(Element);
  const int64_t in_row = from.head_dim / at_once;
  const int64_t items = from.num_tokens * from.num_heads * in_row;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < items;
       i += int64_t{gridDim.x} * blockDim.x) {
    const int64_t channel = i % in_row * at_once;
    const int64_t token = i / in_row % from.num_tokens;
    const int64_t head = i / in_row / from.num_tokens;
    *reinterpret_cast<uint4*>(to.row(head, token) + channel) =
        *reinterpret_cast<const uint4*>(from.row(head, token) + channel);
  }
}

template <class Element>
void copy_tokens(cudaStream_t stream, tensor_view<const Element> from, tensor_view<Element> to) {
  const int64_t items =
      from.num_tokens * from.num_heads * from.head_dim * int64_t{sizeof(Element)} / 16;
  copy_tokens_kernel<<<blocks_for(items, 256), 256, 0, stream>>>(from, to);
  check_launch("copy_tokens_kernel");
}

/// Scores of metrics that look at no attention. scores [num_heads, num_tokens]
template <class Metric>
static __global__ void score_positions_kernel(int32_t num_heads, int64_t num_tokens,
                                              float* scores) {
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < num_heads * num_tokens;
       i += int64_t{gridDim.x} * blockDim.x) {
    scores[i] = Metric::score(0.0f, token_visibility{0, num_tokens - i % num_tokens});
  }
}

template <class Metric>
void score_positions(cudaStream_t stream, int32_t num_heads, int64_t num_tokens, float* scores) {
  score_positions_kernel<Metric>
      <<<blocks_for(num_heads * num_tokens, 256), 256, 0, stream>>>(num_heads, num_tokens, scores);
  check_launch("score_positions_kernel");
}

/// Tokens [0, pinned) of k and v become the sinks, tokens [window_begin, end) the window; all
/// others are only looked at for values that are not finite.
template <class Policies, class Storage>
static __global__ void write_rows_kernel(device_layer<Policies, Storage> layer, int32_t sequence,
                                         tensor_view<const Storage> k, tensor_view<const Storage> v,
                                         int64_t pinned, int64_t window_begin) {
  const int64_t items = k.num_tokens * k.num_heads * k.head_dim;
  bool finite = true;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < items;
       i += int64_t{gridDim.x} * blockDim.x) {
    const int32_t channel = static_cast<int32_t>(i % k.head_dim);
    const int32_t head = static_cast<int32_t>(i / k.head_dim % k.num_heads);
    const int64_t token = i / k.head_dim / k.num_heads;
    const Storage key = k.row(head, token)[channel];
    const Storage value = v.row(head, token)[channel];
    const bool fine_key = is_finite(to_float(key));
    const bool fine_value = is_finite(to_float(value));
    finite = finite && fine_key && fine_value;
    if (token >= pinned && token < window_begin) continue;
    const int32_t place = static_cast<int32_t>(token < pinned ? token : token - window_begin);
    Storage* tile = token < pinned ? layer.sink_tile(sequence, head, place / tile_tokens)
                                   : layer.window_tile(sequence, head, place / tile_tokens);
    row_tile_element<key_layout>(tile, layer.head_dim, place % tile_tokens, channel) =
        fine_key ? key : Storage{};
    row_tile_element<value_layout>(tile + tile_tokens * layer.head_dim, layer.head_dim,
                                   place % tile_tokens, channel) = fine_value ? value : Storage{};
  }
  if (!finite) atomicOr(layer.status, static_cast<uint32_t>(device_fault::non_finite));
}

template <class Policies, class Storage>
void write_rows(cudaStream_t stream, const device_layer<Policies, Storage>& layer, int32_t sequence,
                tensor_view<const Storage> k, tensor_view<const Storage> v, int64_t pinned,
                int64_t window_begin) {
  write_rows_kernel<<<blocks_for(k.num_tokens * k.num_heads * k.head_dim, 256), 256, 0, stream>>>(
      layer, sequence, k, v, pinned, window_begin);
  check_launch("write_rows_kernel");
}

/// Entries from `first` on of all heads' tables have no page.
template <class Policies, class Storage>
static __global__ void forget_pages_kernel(device_layer<Policies, Storage> layer, int32_t sequence,
                                           int32_t first) {
  for (int32_t head = static_cast<int32_t>(blockIdx.x); head < layer.num_kv_heads;
       head += static_cast<int32_t>(gridDim.x)) {
    for (int32_t i = first + static_cast<int32_t>(threadIdx.x); i < layer.max_pages;
         i += static_cast<int32_t>(blockDim.x))
      layer.table_of(sequence, head)[i] = {unreserved_page, 0, 0};
  }
}

template <class Policies, class Storage>
void forget_pages(cudaStream_t stream, const device_layer<Policies, Storage>& layer,
                  int32_t sequence, int32_t first) {
  forget_pages_kernel<<<blocks_for(layer.num_kv_heads, 1), 256, 0, stream>>>(layer, sequence,
                                                                             first);
  check_launch("forget_pages_kernel");
}

/// Probes of the current interval from row `first` on were not attended.
template <class Policies, class Storage>
static __global__ void forget_probes_kernel(device_layer<Policies, Storage> layer, int32_t sequence,
                                            int32_t first) {
  for (int32_t word = static_cast<int32_t>(threadIdx.x); word < layer.probes.mask_words;
       word += static_cast<int32_t>(blockDim.x)) {
    const int32_t kept = first - word * 32;
    layer.probes.recorded_of(sequence)[word] &=
        kept >= 32 ? 0xffffffffu : (kept <= 0 ? 0u : (1u << kept) - 1u);
  }
}

template <class Policies, class Storage>
void forget_probes(cudaStream_t stream, const device_layer<Policies, Storage>& layer,
                   int32_t sequence, int32_t first) {
  forget_probes_kernel<<<1, 128, 0, stream>>>(layer, sequence, first);
  check_launch("forget_probes_kernel");
}

}  // namespace zipcache::detail

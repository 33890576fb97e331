// What becomes of a prompt when all of it is there: its first tokens are sinks, those behind them
// one segment, the newest the window. Twin: the prefill of stream.hpp.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include <zipcache/core/backend.hpp>
#include <zipcache/core/cuda.cuh>
#include <zipcache/core/view.hpp>
#include <zipcache/core/workspace.cuh>
#include <zipcache/saliency/saliency.cuh>
#include <zipcache/select/select.cuh>
#include <zipcache/store/device_layer.cuh>
#include <zipcache/store/store.cuh>
#include <zipcache/stream/device_plan.cuh>
#include <zipcache/stream/device_prompt.cuh>
#include <zipcache/stream/device_rows.cuh>
#include <zipcache/stream/options.hpp>

namespace zipcache::detail {

/// Where a prompt's tokens go: those up to `pinned` into sinks, up to `sealed` into a segment, the
/// others into the window.
struct prompt_parts {
  int64_t pinned;
  int64_t sealed;
  int64_t compressed() const { return sealed - pinned; }
};
template <class Policies>
prompt_parts parts_of_prompt(int64_t prompt_len, const schedule_options& schedule) {
  const int64_t sealed = Policies::schedule_policy::sealed_by_prefill(prompt_len, schedule);
  return {std::min<int64_t>(Policies::sink_policy_type::count, sealed), sealed};
}

/// Temporary memory of a prompt's compression, from the stream's pool.
struct prompt_compression_memory {
  float* all_scores;  ///< [num_kv_heads, prompt_len]
  float* scores;      ///< [num_kv_heads, num_tokens]: those of the tokens that are compressed
  uint32_t* bitmap;   ///< [num_kv_heads, words of num_tokens]
  std::byte* workspace;

  /// The same code counts and hands out.
  size_t carve(void* memory, int64_t heads, int64_t prompt_len, int64_t num_tokens,
               size_t workspace_bytes) {
    workspace_cursor cursor(memory);
    all_scores = cursor.take<float>(heads * prompt_len);
    scores = num_tokens < prompt_len ? cursor.take<float>(heads * num_tokens) : all_scores;
    bitmap = cursor.take<uint32_t>(heads * ceil_div<int64_t>(num_tokens, 32));
    workspace = cursor.take<std::byte>(static_cast<int64_t>(workspace_bytes));
    return cursor.taken_bytes();
  }
};

/// Scores of all tokens of a prompt: those that stay in the window have their share of attention.
template <class Policies, class Element>
void score_prompt(cuda_backend backend, const device_layer<Policies, Element>& layer,
                  const device_prompt<Element>& prompt, tensor_view<const Element> k, float* scores,
                  const device_workspace& workspace) {
  using metric = typename Policies::saliency_policy;
  if constexpr (Policies::needs_probes) {
    saliency<metric, typename Policies::scope_policy>(backend, prompt.probes(), k, layer.sm_scale,
                                                      scores, workspace);
  } else if constexpr (Policies::budget_policy::uses_scores) {
    score_positions<metric>(backend.stream, layer.num_kv_heads, k.num_tokens, scores);
  } else {
    check_cuda(
        "cudaMemsetAsync",
        cudaMemsetAsync(scores, 0,
                        static_cast<size_t>(layer.num_kv_heads * k.num_tokens) * sizeof(float),
                        backend.stream));
  }
}

/// Columns [first, first + num_tokens) of the scores of all heads.
inline void copy_scores(cudaStream_t stream, int32_t heads, const float* from, int64_t prompt_len,
                        int64_t first, int64_t num_tokens, float* to) {
  check_cuda("cudaMemcpy2DAsync",
             cudaMemcpy2DAsync(to, static_cast<size_t>(num_tokens) * sizeof(float), from + first,
                               static_cast<size_t>(prompt_len) * sizeof(float),
                               static_cast<size_t>(num_tokens) * sizeof(float),
                               static_cast<size_t>(heads), cudaMemcpyDeviceToDevice, stream));
}

/// Scores, selects and stores the prompt's tokens behind its sinks.
template <class Policies, class Element>
void compress_prompt(cuda_backend backend, const device_layer<Policies, Element>& layer,
                     int32_t sequence, const device_prompt<Element>& prompt,
                     tensor_view<const Element> k, tensor_view<const Element> v, int64_t pinned,
                     const selection_size& size) {
  const int32_t heads = layer.num_kv_heads;
  size_t workspace_bytes = store_workspace_bytes(layer, 1, size.num_tokens);
  if constexpr (Policies::needs_probes)
    workspace_bytes =
        std::max(workspace_bytes,
                 saliency_workspace_bytes<typename Policies::saliency_policy,
                                          typename Policies::scope_policy>(prompt.probes(), k));
  prompt_compression_memory parts{};
  const auto carve = [&](void* memory) {
    return parts.carve(memory, heads, k.num_tokens, size.num_tokens, workspace_bytes);
  };
  void* memory = nullptr;
  check_cuda("cudaMallocAsync", cudaMallocAsync(&memory, carve(nullptr), backend.stream));
  carve(memory);
  try {
    const device_workspace workspace{parts.workspace, workspace_bytes};
    score_prompt(backend, layer, prompt, k, parts.all_scores, workspace);
    if (size.num_tokens < k.num_tokens)
      copy_scores(backend.stream, heads, parts.all_scores, k.num_tokens, pinned, size.num_tokens,
                  parts.scores);
    select(backend, parts.scores, heads, size, nullptr, parts.bitmap);
    store(backend, layer, sequence, k.tokens(pinned, size.num_tokens),
          v.tokens(pinned, size.num_tokens), parts.bitmap, size.num_salient, workspace);
  } catch (...) {
    cudaFreeAsync(memory, backend.stream);
    throw;
  }
  check_cuda("cudaFreeAsync", cudaFreeAsync(memory, backend.stream));
}

/// @brief Compresses a prompt into an empty sequence whose pages are reserved.
/// @param[in] k, v  all of the prompt [num_kv_heads, prompt_len, head_dim]
/// @return what the sequence's counts are then; they are not written
template <class Policies, class Element>
sequence_counts complete_prompt(cuda_backend backend, const device_layer<Policies, Element>& layer,
                                int32_t sequence, const device_prompt<Element>& prompt,
                                tensor_view<const Element> k, tensor_view<const Element> v,
                                const stream_options& options) {
  const prompt_parts parts = parts_of_prompt<Policies>(k.num_tokens, options.schedule);
  sequence_counts counts{};
  counts.sinks = static_cast<int32_t>(parts.pinned);
  counts.sealed = static_cast<int32_t>(parts.sealed);
  counts.window = static_cast<int32_t>(k.num_tokens - parts.sealed);
  if (const int64_t rest = parts.compressed(); rest > 0) {
    const auto shape =
        segment_of<Policies>(layer.num_kv_heads, layer.head_dim, rest, options.budget);
    counts.prompt_tokens = static_cast<int32_t>(rest);
    counts.prompt_pages = counts.pages =
        static_cast<int32_t>(shape.plan(layer.page_bytes).num_pages);
    counts.segments = 1;
    compress_prompt(
        backend, layer, sequence, prompt, k, v, parts.pinned,
        {rest, shape.num_salient, Policies::budget_policy::num_recent(rest, options.budget)});
  }
  write_rows(backend.stream, layer, sequence, k, v, parts.pinned, parts.sealed);
  return counts;
}

}  // namespace zipcache::detail

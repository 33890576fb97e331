// Saliency on the device: attention mass that probe rows give to every token. One product on tensor
// cores and no score matrix in memory: keys stay in registers, probe rows come through shared
// memory, and the keys' columns are added up on the way, by warpgroups on sm_90a and by warps
// elsewhere. Without log-sum-exp of the probe rows, the same product with its sides changed finds
// it first, split over the context. In: probe queries, keys. Out: score [num_kv_heads, kv_len].
// Twin: saliency.hpp.
// @equality within a bound: products are summed in the tensor cores' order, exponentials by the
// special function unit. The order of every sum follows from the shape alone, so runs are
// reproducible bit by bit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>

#include <zipcache/core/cuda.cuh>
#include <zipcache/core/numerics.hpp>
#include <zipcache/core/shape.hpp>
#include <zipcache/core/types.hpp>
#include <zipcache/core/view.hpp>
#include <zipcache/core/workspace.cuh>
#include <zipcache/detail/warpgroup.cuh>
#include <zipcache/saliency/metric.hpp>
#include <zipcache/saliency/saliency_arguments.cuh>
#include <zipcache/saliency/warp_products.cuh>
#include <zipcache/saliency/warpgroup_products.cuh>

namespace zipcache {
namespace detail {

/// Threads of a block of the two kernels with products: their launch bounds say on the host for
/// which machine they were compiled.
template <int HeadDim>
__host__ __device__ constexpr int32_t product_threads() {
#if ZIPCACHE_HAS_WARPGROUPS
  return warpgroup_tuning<HeadDim>::threads;
#else
  return warp_tuning<HeadDim>::threads;
#endif
}
template <int HeadDim>
__host__ __device__ constexpr int32_t product_blocks() {
#if ZIPCACHE_HAS_WARPGROUPS
  return 1;
#else
  return warp_tuning<HeadDim>::blocks;
#endif
}

namespace {

// Grid, warps, lanes and memory: warpgroup_products.cuh on sm_90a, warp_products.cuh elsewhere.
template <class Metric, class Scope, int HeadDim, class Element>
__global__ void __launch_bounds__(product_threads<HeadDim>(), product_blocks<HeadDim>())
    column_sum_kernel(saliency_arguments<Element> given) {
#if ZIPCACHE_HAS_WARPGROUPS
  run_products<HeadDim, Element>(column_work<Metric, Scope, HeadDim, Element>{given});
#else
  add_columns_by_warps<Metric, Scope, HeadDim>(given);
#endif
}

// As column_sum_kernel.
template <int HeadDim, class Element>
__global__ void __launch_bounds__(product_threads<HeadDim>(), product_blocks<HeadDim>())
    row_sum_kernel(saliency_arguments<Element> given) {
#if ZIPCACHE_HAS_WARPGROUPS
  run_products<HeadDim, Element>(row_work<HeadDim, Element>{given});
#else
  add_rows_by_warps<HeadDim>(given);
#endif
}

// Grid: x = 256 probe rows, y = KV head of a sequence (striding). Warp: 32 rows. Lane: one row.
// Memory: reads one float2 for each of several splits of the context, writes the row's log-sum-exp
// in base 2.
template <class Element>
__global__ void __launch_bounds__(256) row_lse_kernel(saliency_arguments<Element> given) {
  const int32_t row = static_cast<int32_t>(blockIdx.x * blockDim.x + threadIdx.x);
  if (row >= given.num_rows) return;
  for (int32_t item = static_cast<int32_t>(blockIdx.y); item < given.num_items();
       item += static_cast<int32_t>(gridDim.y)) {
    row_sum total;
    for (int32_t split = 0; split < given.num_splits; ++split) {
      const float2 part =
          given.partials[(int64_t{item} * given.num_splits + split) * given.num_rows + row];
      total = merge(total, row_sum{part.x, part.y});
    }
    given.found_lse[given.lse_index(item, row)] = lse_of(total);
  }
}

// Grid: x = 256 tokens, y = sequence (striding). Warp: 32 tokens. Lane: one token of every head.
// Memory: reads the heads' sums in ascending order where there are any, writes the scores.
template <class Metric, class Scope, class Element>
__global__ void __launch_bounds__(256) score_kernel(saliency_arguments<Element> given) {
  const int32_t token = static_cast<int32_t>(blockIdx.x * blockDim.x + threadIdx.x);
  if (token >= given.kv_len) return;
  for (int32_t sequence = static_cast<int32_t>(blockIdx.y); sequence < given.batch.num_sequences;
       sequence += static_cast<int32_t>(gridDim.y)) {
    const int64_t first = int64_t{sequence} * given.k.num_heads * given.kv_len + token;
    float sum = 0.0f;
    if (given.sums != nullptr) {
      for (int32_t head = 0; head < given.k.num_heads; ++head)
        sum += given.sums[first + int64_t{head} * given.kv_len];
    }
    const float score =
        Metric::score(sum, visibility_of(given.positions(sequence * given.k.num_heads),
                                         given.num_probes(), token, given.kv_len));
    for (int32_t head = 0; head < given.k.num_heads; ++head)
      given.scores[first + int64_t{head} * given.kv_len] = score;
  }
}

}  // namespace

// --- host
// -----------------------------------------------------------------------------------------

/// Calls action(std::integral_constant) with the head dimension that a kernel is made for: head_dim
/// or the next larger one, whose further channels are zeros.
template <class Action>
void for_head_dim(int32_t head_dim, Action&& action) {
  if (head_dim <= 64) {
    action(std::integral_constant<int, 64>());
  } else if (head_dim <= 96) {
    action(std::integral_constant<int, 96>());
  } else if (head_dim <= 128) {
    action(std::integral_constant<int, 128>());
  } else {
    action(std::integral_constant<int, 256>());
  }
}

/// Whether a kernel with products has been compiled to the form by warpgroups.
template <int HeadDim>
bool is_by_warpgroups(const cudaFuncAttributes& attributes) {
  return attributes.maxThreadsPerBlock >= warpgroup_tuning<HeadDim>::threads;
}

template <class Kernel>
cudaFuncAttributes attributes_of(Kernel kernel) {
  cudaFuncAttributes attributes{};
  check_cuda("cudaFuncGetAttributes", cudaFuncGetAttributes(&attributes, kernel));
  return attributes;
}

/// Splits the context of the rows' log-sum-exp: into as many parts as fill the GPU, of 512 keys at
/// least.
template <class Element>
void split_context(saliency_arguments<Element>& given) {
  for_head_dim(given.head_dim, [&](auto dim) {
    const bool by_warpgroups = is_by_warpgroups<dim>(attributes_of(row_sum_kernel<dim, Element>));
    const int64_t rows =
        by_warpgroups ? warpgroup_tuning<dim>::block_rows : warp_tuning<dim>::block_rows;
    const int64_t target =
        by_warpgroups ? warpgroup_tuning<dim>::target_spans : warp_tuning<dim>::target_blocks;
    const int64_t blocks = given.num_items() * ceil_div<int64_t>(given.num_rows, rows);
    const int64_t wanted = ceil_div(target, blocks);
    const int64_t splits = most<int64_t>(1, least<int64_t>(wanted, ceil_div(given.kv_len, 512)));
    given.keys_per_split =
        static_cast<int32_t>(round_up<int64_t>(ceil_div<int64_t>(given.kv_len, splits), 128));
    given.num_splits = ceil_div(given.kv_len, given.keys_per_split);
  });
}

/// Lays out what a call needs; `workspace` null counts only.
template <class Metric, class Scope, class Element>
size_t carve_saliency(saliency_arguments<Element>& given, void* workspace) {
  workspace_cursor cursor(workspace);
  const int64_t items = given.num_items();
  if (!Metric::needs_probes || given.num_rows == 0) return 0;
  if (given.lse == nullptr) {
    split_context(given);
    given.found_lse = cursor.take<float>(items * given.num_rows);
    if (given.num_splits > 1)
      given.partials = cursor.take<float2>(items * given.num_rows * given.num_splits);
  }
  if (Scope::shared_by_heads) given.sums = cursor.take<float>(items * given.kv_len);
  return cursor.taken_bytes();
}

template <class Metric, class Element>
void check_saliency(const saliency_arguments<Element>& given) {
  const auto& q = given.probes.q;
  const auto& k = given.k;
  const auto check_rows_aligned = [](const char* name, const void* data, int64_t head_stride,
                                     int64_t token_stride, int64_t sequence_stride) {
    check_device_pointer(name, data);
    require(reinterpret_cast<uintptr_t>(data) % 16 == 0 && head_stride % 8 == 0 &&
                token_stride % 8 == 0 && sequence_stride % 8 == 0,
            std::string(name) + " and its strides must be aligned to 16 bytes");
  };
  check_device_pointer("scores", given.scores);
  if (q.num_tokens > 0) check_device_pointer("positions", given.probes.positions);
  if (!Metric::needs_probes || q.num_tokens == 0) return;
  require_equal("q.head_dim", q.head_dim, k.head_dim);
  require_between("q.num_heads", q.num_heads, 1, 65536);
  require(q.num_heads % k.num_heads == 0, "q.num_heads must be a multiple of k.num_heads");
  require(q.num_tokens * (q.num_heads / k.num_heads) <= 2147483647 - 1024,
          "there are too many probe rows");
  check_rows_aligned("q.data", q.data, q.head_stride, q.token_stride, given.batch.q_stride);
  check_rows_aligned("k.data", k.data, k.head_stride, k.token_stride, given.batch.k_stride);
  if (given.probes.lse != nullptr) check_device_pointer("lse", given.probes.lse);
}

/// Launches a kernel with products in the form it was compiled to: over `grid` by warps, or as many
/// blocks as run at once, which share `num_spans` pieces of work, by warpgroups.
template <int HeadDim, class Kernel, class Element>
void launch_products(const char* name, Kernel kernel, dim3 grid, int64_t num_spans,
                     cudaStream_t stream, const saliency_arguments<Element>& given) {
  const cudaFuncAttributes attributes = attributes_of(kernel);
  if (!is_by_warpgroups<HeadDim>(attributes)) {
    kernel<<<grid, warp_tuning<HeadDim>::threads, 0, stream>>>(given);
  } else {
    require(attributes.numRegs >= warpgroup_tuning<HeadDim>::launch_registers,
            std::string(name) +
                " was compiled for fewer registers than it shares out (-maxrregcount?)");
    constexpr size_t shared_bytes = sizeof(warpgroup_memory<HeadDim>);
    check_cuda("cudaFuncSetAttribute",
               cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(shared_bytes)));
    const auto blocks =
        static_cast<unsigned>(least<int64_t>(num_spans, int64_t{num_multiprocessors()}));
    kernel<<<blocks, warpgroup_tuning<HeadDim>::threads, shared_bytes, stream>>>(given);
  }
  check_launch(name);
}

template <class Metric, class Scope, class Element>
void launch_saliency(cudaStream_t stream, saliency_arguments<Element> given) {
  const auto up_to = [](int64_t count) {
    return static_cast<unsigned>(least<int64_t>(count, 65535));
  };
  const auto token_blocks = static_cast<unsigned>(ceil_div(given.kv_len, 256));
  const bool sums_up = Metric::needs_probes && given.num_rows > 0;
  if (sums_up) {
    for_head_dim(given.head_dim, [&](auto dim) {
      using columns = column_work<Metric, Scope, dim, Element>;
      using tuning = warp_tuning<dim>;
      if (given.lse == nullptr) {
        const auto row_blocks = static_cast<unsigned>(ceil_div(given.num_rows, tuning::block_rows));
        const dim3 grid(row_blocks, static_cast<unsigned>(given.num_splits),
                        up_to(given.num_items()));
        launch_products<dim>("saliency: row_sum_kernel", row_sum_kernel<dim, Element>, grid,
                             row_work<dim, Element>{given}.num_spans(), stream, given);
        if (given.num_splits > 1) {
          const dim3 lse_grid(static_cast<unsigned>(ceil_div(given.num_rows, 256)),
                              up_to(given.num_items()));
          row_lse_kernel<<<lse_grid, 256, 0, stream>>>(given);
          check_launch("saliency: row_lse_kernel");
        }
        given.lse = given.found_lse;
        given.lse_factor = 1.0f;
      }
      const auto key_blocks = static_cast<unsigned>(ceil_div(given.kv_len, tuning::block_rows));
      const dim3 grid(key_blocks, up_to(given.num_items()));
      launch_products<dim>("saliency: column_sum_kernel",
                           column_sum_kernel<Metric, Scope, dim, Element>, grid,
                           columns{given}.num_spans(), stream, given);
    });
  }
  if (!sums_up || Scope::shared_by_heads) {
    const dim3 grid(token_blocks, up_to(given.batch.num_sequences));
    score_kernel<Metric, Scope><<<grid, 256, 0, stream>>>(given);
    check_launch("saliency: score_kernel");
  }
}

template <class Element>
saliency_arguments<Element> plan_saliency(const device_probe_queries<Element>& probes,
                                          tensor_view<const Element> k, float sm_scale,
                                          float* scores, saliency_batch batch) {
  require_between("k.num_tokens", k.num_tokens, int64_t{0}, int64_t{2147483647 - 1024});
  require_between("q.num_tokens", probes.q.num_tokens, int64_t{0}, int64_t{2147483647});
  require_between("k.num_heads", k.num_heads, 1, 65536);
  require_between("batch.num_sequences", batch.num_sequences, 1, 65536);
  require(int64_t{k.num_heads} * batch.num_sequences <= 2147483647,
          "there are too many heads in all sequences");
  check_head_dim(k.head_dim);
  saliency_arguments<Element> given{};
  given.probes = probes;
  given.k = k;
  given.batch = batch;
  given.scale = sm_scale * log2_e;
  given.head_dim = k.head_dim;
  given.group = most(1, probes.q.num_heads / k.num_heads);
  given.group_shift = -1;
  for (int32_t shift = 0; shift < 31; ++shift)
    if (given.group == int32_t{1} << shift) given.group_shift = shift;
  given.num_rows =
      static_cast<int32_t>(least<int64_t>(probes.q.num_tokens * given.group, 2147483647));
  given.kv_len = static_cast<int32_t>(k.num_tokens);
  given.lse_factor = log2_e;
  given.lse = probes.lse;
  given.scores = scores;
  return given;
}

}  // namespace detail

/// @brief Workspace of `saliency` for the same arguments on the current device; their pointers do
/// not matter, but whether lse is null does.
template <class Metric, class Scope, class Element>
size_t saliency_workspace_bytes(const device_probe_queries<Element>& probes,
                                tensor_view<const Element> k, saliency_batch batch = {}) {
  auto given = detail::plan_saliency(probes, k, 0.0f, nullptr, batch);
  return detail::carve_saliency<Metric, Scope>(given, nullptr);
}

/// @brief Scores every token of every KV head from the attention that the probe rows give it.
/// @param[in] probes  query rows with their positions among the keys of `k`, ascending and not
/// negative; their lse must be over all keys that the row saw
/// @param[in] k  device memory [num_kv_heads, kv_len, head_dim], half or bfloat16, rows aligned to
/// 16 bytes, as those of probes.q
/// @param[out] scores  device memory [batch.num_sequences, num_kv_heads, kv_len]; under `per_layer`
/// every head gets the sum over the heads
/// @param workspace  saliency_workspace_bytes<Metric, Scope>(probes, k, batch)
/// @throws argument_error  shapes that do not fit, host pointers; nothing was launched
template <class Metric, class Scope, class Element>
void saliency(cuda_backend backend, const device_probe_queries<Element>& probes,
              tensor_view<const Element> k, float sm_scale, float* scores,
              device_workspace workspace, saliency_batch batch = {}) {
  static_assert(std::is_same_v<Element, half> || std::is_same_v<Element, bfloat16>,
                "zipcache: the CUDA backend takes half or bfloat16");
  auto given = detail::plan_saliency(probes, k, sm_scale, scores, batch);
  if (given.kv_len == 0) return;
  detail::check_saliency<Metric>(given);
  detail::check_workspace(workspace, detail::carve_saliency<Metric, Scope>(given, workspace.data));
  detail::check_no_earlier_error();
  detail::launch_saliency<Metric, Scope>(backend.stream, given);
}

}  // namespace zipcache

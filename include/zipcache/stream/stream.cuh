// Streaming on CUDA: one token more for every sequence of a batch, and the compression of windows
// that are full. Both are one kernel without host work, so that a captured graph can be replayed
// while sequences grow: it reads lengths on the device and writes them back. Twin: stream.hpp.
// @equality same_bytes for the same scores; scores agree with the CPU's within rounding
#pragma once

#include <cstdint>

#include <zipcache/attend/attend_schedule.cuh>
#include <zipcache/core/cuda.cuh>
#include <zipcache/core/launch.cuh>
#include <zipcache/store/device_layer.cuh>
#include <zipcache/stream/general_flush.cuh>
#include <zipcache/stream/staged_flush.cuh>
#include <zipcache/stream/window_interval.cuh>

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

/// Shared memory of sum_probes_kernel: the interval's keys, then what their scores are made in.
inline int64_t staged_sums_bytes(int32_t interval, int32_t head_dim) {
  return interval_rows_bytes(interval, head_dim) + probe_scratch_bytes(head_dim);
}

// Attention sums of all heads, for scopes that add them up; only of windows that are full.
// Grid: a block for each (item, KV head). Warp: pairs of probes and heads. Lane: tokens.
// Memory: the interval's keys in shared memory; or, if they do not fit, one query.
template <bool Staged, class Policies, class Storage>
static __global__ void __launch_bounds__(append_threads, 1)
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
  float* sums =
      all_sums + (static_cast<int64_t>(sequence) * layer.num_kv_heads + head) * layer.interval;
  if constexpr (Staged) {
    auto* keys = reinterpret_cast<Storage*>(append_memory);
    auto* scratch = reinterpret_cast<float*>(append_memory +
                                             interval_rows_bytes(layer.interval, layer.head_dim));
    stage_side<true, 0>(layer, sequence, head, count.window_first,
                        static_cast<int32_t>(threadIdx.x) / 32, append_warps, keys);
    __syncthreads();
    sum_staged_probes(layer, sequence, head, count.intervals, num_kept, layer.head_dim, keys,
                      scratch, sums);
  } else {
    sum_kept_probes(layer,
                    window_reader<Policies, Storage>{layer, sequence, head, count.window_first},
                    num_kept, reinterpret_cast<float*>(append_memory), sums);
  }
}

// Compresses full windows and appends one token to every sequence of the batch.
// Grid: a block for each (item, KV head); the last block of an item writes the new counts.
// Warp: a tile of the interval at a time. Lane: words of the tile.
// Memory: staged_flush_layout, the interval in shared memory, where that fits; else
// general_flush_layout.
template <bool Staged, int HeadDim, class Policies, class Storage>
static __global__ void __launch_bounds__(append_threads, 1)
    append_kernel(device_layer<Policies, Storage> layer, append_batch<Storage> batch,
                  const float* all_sums, uint32_t* arrivals) {
  extern __shared__ __align__(16) std::byte append_memory[];
  // Attention may set itself up meanwhile; it waits before it reads anything.
  let_next_kernel_begin();
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
      if constexpr (Staged) {
        flush_staged<HeadDim>(layer, count, flush, sequence, head, num_kept, all_sums,
                              append_memory);
      } else {
        flush_general(layer, count, flush, sequence, head, num_kept, all_sums, append_memory);
      }
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

/// Launches one of append's kernels. Its shared memory is allowed for once more with every launch:
/// that is no work for the stream, and another device may be current.
template <class Kernel, class... Arguments>
void launch_append(const char* name, Kernel kernel, unsigned blocks, int64_t shared_bytes,
                   cudaStream_t stream, const Arguments&... arguments) {
  if (shared_bytes > 48 * 1024) {
    check_cuda("cudaFuncSetAttribute",
               cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(shared_bytes)));
  }
  kernel<<<blocks, append_threads, static_cast<size_t>(shared_bytes), stream>>>(arguments...);
  check_launch(name);
}

template <class Policies, class Storage>
void launch_flush(cudaStream_t stream, unsigned blocks,
                  const device_layer<Policies, Storage>& layer, const append_batch<Storage>& batch,
                  const float* sums, uint32_t* arrivals, int64_t most_shared_bytes) {
  const int64_t staged_bytes =
      staged_flush_layout<Policies>{layer.interval, layer.head_dim}.bytes();
  const auto launch = [&](auto kernel, int64_t shared_bytes) {
    launch_append("the append kernel", kernel, blocks, shared_bytes, stream, layer, batch, sums,
                  arrivals);
  };
  if (staged_bytes > most_shared_bytes) {
    launch(append_kernel<false, 0, Policies, Storage>,
           general_flush_layout<Policies>{layer.interval, layer.head_dim}.bytes());
  } else if (layer.head_dim == 128) {
    launch(append_kernel<true, 128, Policies, Storage>, staged_bytes);
  } else if (layer.head_dim == 64) {
    launch(append_kernel<true, 64, Policies, Storage>, staged_bytes);
  } else {
    launch(append_kernel<true, 0, Policies, Storage>, staged_bytes);
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
  const int64_t most_shared_bytes = detail::most_shared_bytes();
  if constexpr (Policies::needs_probes && Policies::scope_policy::shared_by_heads) {
    const int64_t staged_bytes = detail::staged_sums_bytes(layer.interval, layer.head_dim);
    if (staged_bytes <= most_shared_bytes) {
      detail::launch_append("the probe kernel", detail::sum_probes_kernel<true, Policies, Storage>,
                            blocks, staged_bytes, backend.stream, layer, batch, sums);
    } else {
      detail::launch_append("the probe kernel", detail::sum_probes_kernel<false, Policies, Storage>,
                            blocks, int64_t{4} * layer.head_dim, backend.stream, layer, batch,
                            sums);
    }
  }
  detail::launch_flush(backend.stream, blocks, layer, batch, sums, arrivals, most_shared_bytes);
}

}  // namespace zipcache

// Decode attention on CUDA, directly on packed codes: one launch for a ragged batch over pages,
// window and sinks. In: queries of one token for each item of the batch, a layer in device memory.
// Out: output and log-sum-exp. Twin: attend.hpp. Two kernels: tensor cores for codes of 2 and 4
// bits (keys by channel or token, values by token) and 16-bit classes; the general one for every
// other policy.
// @equality within rounding of the CPU's result, and the same bits from run to run on one GPU
#pragma once

#include <cstdint>

#include <zipcache/attend/attend_general.cuh>
#include <zipcache/attend/attend_schedule.cuh>
#include <zipcache/attend/attend_tensor_core.cuh>
#include <zipcache/core/cuda.cuh>
#include <zipcache/core/head_dims.cuh>
#include <zipcache/core/launch.cuh>
#include <zipcache/core/shape.hpp>

namespace zipcache {

/// Which kernel serves `Policies`.
template <class Policies>
constexpr const char* attend_kernel_name() {
  return detail::uses_tensor_cores<Policies> ? "tensor_core" : "general";
}

namespace detail {

/// Query heads that the blocks on a multiprocessor serve at most, with any kernel.
inline constexpr int32_t most_resident_heads = 32;

/// A kernel with what its launch needs.
template <class Policies, class Storage>
struct attend_kernel {
  void (*function)(device_layer<Policies, Storage>, attend_batch<Storage>, attend_division,
                   attend_workspace);
  int32_t heads;  ///< query heads of a KV head that a block serves
  int32_t warps;  ///< of a block
  int32_t blocks_per_multiprocessor;
  size_t shared_bytes;
};

/// Pages for a block from which on it should be a large one.
inline constexpr int64_t pages_of_large_block = 32;

/// @param slots  (items, KV heads, passes)
/// Blocks have all the warps they can where each (item, KV head) has many of them, or may be long:
/// then there is less to prepare and to merge. Otherwise smaller blocks end and begin beside one
/// another, and less of them stands still while few warps have the window's tiles.
template <class Policies, class Storage, int32_t HeadDim, int32_t Sets>
attend_kernel<Policies, Storage> make_tensor_core_kernel(int32_t slots, int32_t max_pages,
                                                         size_t prefix_bytes) {
  using tuning = attend_tuning<HeadDim, Sets>;
  using shared_memory = attend_shared<Policies, Storage, HeadDim, Sets>;
  static_assert(tuning::warps_per_multiprocessor / least_attend_warps * Sets * set_heads <=
                most_resident_heads);
  const auto bytes = [&](int32_t warps) { return shared_memory::bytes(warps) + prefix_bytes; };
  const int64_t blocks = num_multiprocessors() * tuning::blocks_of_most_warps;
  const bool many = 8 * slots <= blocks;
  const bool maybe_long =
      slots <= blocks && int64_t{max_pages} * slots >= pages_of_large_block * blocks;
  const bool fit = static_cast<int64_t>(bytes(tuning::most_warps)) <= most_shared_bytes();
  const bool large = fit && (many || maybe_long);
  const int32_t warps = large ? tuning::most_warps : least_attend_warps;
  return {attend_tensor_core_kernel<Policies, Storage, HeadDim, Sets>, Sets * set_heads, warps,
          tuning::warps_per_multiprocessor / warps, bytes(warps)};
}
template <class Policies, class Storage, int32_t HeadDim, bool General>
attend_kernel<Policies, Storage> make_attend_kernel(const device_layer<Policies, Storage>& layer,
                                                    int32_t num_items) {
  const int32_t group = layer.group();
  const size_t prefix_bytes = (static_cast<size_t>(num_items) + 1) * sizeof(uint32_t);
  if constexpr (uses_tensor_cores<Policies> && !General) {
    const auto slots = [&](int32_t heads) {
      return num_items * layer.num_kv_heads * ceil_div(group, heads);
    };
    if constexpr (fits_two_sets<HeadDim>) {
      if (group > set_heads) {
        return make_tensor_core_kernel<Policies, Storage, HeadDim, 2>(
            slots(2 * set_heads), layer.max_pages, prefix_bytes);
      }
    }
    return make_tensor_core_kernel<Policies, Storage, HeadDim, 1>(slots(set_heads), layer.max_pages,
                                                                  prefix_bytes);
  } else {
    static_assert(most_attend_blocks * general_heads <= most_resident_heads);
    return {attend_general_kernel<Policies, Storage, HeadDim>, general_heads, least_attend_warps,
            most_attend_blocks,
            round_up<size_t>(sizeof(general_shared<HeadDim>), 16) + prefix_bytes};
  }
}

/// Bytes of partial states, for whichever kernel.
inline size_t attend_partial_bytes(int32_t head_dim) {
  return round_up<size_t>(static_cast<size_t>(num_multiprocessors()) * 2 * most_resident_heads *
                              (static_cast<size_t>(head_dim) + 2) * sizeof(float),
                          256);
}

}  // namespace detail

/// @brief Bytes of workspace that `attend` needs on the current device for up to `max_items` items.
/// The workspace must be zero before its first use and belongs to one stream.
template <class Policies, class Storage>
size_t attend_workspace_bytes(const device_layer<Policies, Storage>& layer, int32_t max_items) {
  const size_t passes = static_cast<size_t>(ceil_div(layer.group(), detail::set_heads));
  return detail::attend_partial_bytes(layer.head_dim) +
         static_cast<size_t>(max_items) * static_cast<size_t>(layer.num_kv_heads) * passes *
             sizeof(uint32_t);
}

/// @brief Attention of every item over all tokens of its sequence.
/// @tparam General  takes the general kernel although tensor cores could serve (for comparison)
/// @param[in] workspace  device memory of `attend_workspace_bytes`, zero before its first use
/// @pre every sequence of the batch is below layer.max_sequences, and hides fewer tokens than its
/// window has
/// @throws argument_error  null or host pointers, unsupported head_dim, a workspace that is too
/// small
/// @throws cuda_error  the launch failed
/// Asynchronous on backend.stream; may be captured. Lengths are read on the device.
template <bool General = false, class Policies, class Storage>
void attend(cuda_backend backend, const device_layer<Policies, Storage>& layer,
            const attend_batch<Storage>& batch, void* workspace, size_t workspace_bytes) {
  if (batch.num_items == 0) return;
  detail::check_head_dim(layer.head_dim);
  detail::require_between("num_items", batch.num_items, 0, INT32_MAX);
  detail::check_device_pointer("sequences", batch.sequences);
  detail::check_device_pointer("q", batch.q);
  detail::require(reinterpret_cast<uintptr_t>(batch.q) % 16 == 0, "q must be aligned to 16 bytes");
  detail::check_device_pointer("out", batch.out);
  detail::check_device_pointer("workspace", workspace);
  if (workspace_bytes < attend_workspace_bytes(layer, batch.num_items)) {
    detail::refuse(
        "workspace_bytes", workspace_bytes,
        ("at least " + std::to_string(attend_workspace_bytes(layer, batch.num_items))).c_str());
  }
  detail::check_no_earlier_error();
  const detail::attend_workspace parts{
      static_cast<float*>(workspace),
      reinterpret_cast<uint32_t*>(static_cast<std::byte*>(workspace) +
                                  detail::attend_partial_bytes(layer.head_dim))};
  detail::dispatch_head_dim(layer.head_dim, [&]<int32_t HeadDim>() {
    for (int32_t first = 0; first < batch.num_items; first += detail::attend_max_items) {
      attend_batch<Storage> part = batch;
      const int64_t row_size = static_cast<int64_t>(first) * layer.num_qo_heads;
      part.num_items = least(detail::attend_max_items, batch.num_items - first);
      part.sequences += first;
      part.hidden = batch.hidden == nullptr ? nullptr : batch.hidden + first;
      part.q += row_size * layer.head_dim;
      part.out += row_size * layer.head_dim;
      part.lse = batch.lse == nullptr ? nullptr : batch.lse + row_size;
      const auto kernel =
          detail::make_attend_kernel<Policies, Storage, HeadDim, General>(layer, part.num_items);
      detail::check_cuda(
          "cudaFuncSetAttribute",
          cudaFuncSetAttribute(kernel.function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(kernel.shared_bytes)));
      const int32_t blocks = detail::num_multiprocessors() * kernel.blocks_per_multiprocessor;
      const auto division = detail::attend_division::make(
          part.num_items * layer.num_kv_heads, blocks, ceil_div(layer.group(), kernel.heads));
      detail::launch_closely("the attend kernel", kernel.function, static_cast<unsigned>(blocks),
                             static_cast<unsigned>(32 * kernel.warps), kernel.shared_bytes,
                             backend.stream, layer, part, division, parts);
    }
  });
}

}  // namespace zipcache

// Storing on the device: keys, values and the salient set of prompts become pages, segment records,
// bitmaps and page table entries of a device_layer. Three launches, each of which begins before the
// one in front of it ends: class lists and tables; channel statistics and what the segment keeps of
// them, of policies that have such; codes. In: k, v [num_kv_heads, num_tokens, head_dim], salient
// bitmap. Twin: store.hpp.
// @equality same_bytes
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include <zipcache/core/batch.hpp>
#include <zipcache/core/cuda.cuh>
#include <zipcache/core/launch.cuh>
#include <zipcache/core/view.hpp>
#include <zipcache/core/workspace.cuh>
#include <zipcache/store/class_lists.cuh>
#include <zipcache/store/device_layer.cuh>
#include <zipcache/store/prompt_tiles.cuh>
#include <zipcache/store/segment.hpp>
#include <zipcache/store/segment_statistics.cuh>
#include <zipcache/store/store_arguments.cuh>

namespace zipcache {
namespace detail {

/// Lays out what a call needs; `workspace` null counts only.
template <class Policies, class Storage>
size_t carve_store(store_arguments<Policies, Storage>& given, void* workspace) {
  using sides = store_sides<Policies>;
  const int64_t rows = given.num_rows();
  const int64_t head_dim = given.layer.head_dim;
  const int64_t units = sides::count > 0 ? rows * sides::units : 0;
  workspace_cursor cursor(workspace);
  given.lists = cursor.take<int32_t>(rows * given.num_tokens);
  // Of both classes together; each may have a tile that is not full.
  given.tiles = cursor.take<tile_address>(ceil_div<int64_t>(given.num_tokens, tile_tokens) + 1);
  given.statistics = cursor.take<int32_t>(units * statistic_count * head_dim);
  given.scales = cursor.take<float2>(units * side_scales_count * head_dim);
  given.chunks_done = cursor.take<int32_t>(units);
  given.non_finite = cursor.take<int32_t>(units);
  given.is_regular = cursor.take<int32_t>(units);
  given.next_tile = cursor.take<int32_t>(1);
  return cursor.taken_bytes();
}

template <class Storage>
void check_rows(const char* name, tensor_view<const Storage> x, int64_t sequence_stride,
                int32_t num_kv_heads, int32_t head_dim) {
  const std::string prefix = name;
  require_equal((prefix + ".num_heads").c_str(), x.num_heads, num_kv_heads);
  require_equal((prefix + ".head_dim").c_str(), x.head_dim, head_dim);
  if (x.num_tokens == 0) return;
  check_device_pointer((prefix + ".data").c_str(), x.data);
  require(reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && x.head_stride % values_per_load == 0 &&
              x.token_stride % values_per_load == 0 && sequence_stride % values_per_load == 0,
          prefix + "'s rows must be aligned to 16 bytes: its data and its strides");
  require_between((prefix + ".token_stride").c_str(), x.token_stride, int64_t{0}, int64_t{1} << 30);
}

template <class Policies, class Storage>
void check_store(const store_arguments<Policies, Storage>& given) {
  const device_layer<Policies, Storage>& layer = given.layer;
  check_granularity<typename Policies::key_quantizer_policy::granularity>(layer.head_dim);
  check_granularity<typename Policies::value_quantizer_policy::granularity>(layer.head_dim);
  require_between("batch.count", given.batch.count, 1, layer.max_sequences);
  require_between("batch.first", given.batch.first, 0, layer.max_sequences - given.batch.count);
  check_rows("k", given.k, given.k_stride, layer.num_kv_heads, layer.head_dim);
  check_rows("v", given.v, given.v_stride, layer.num_kv_heads, layer.head_dim);
  require_between("k.num_tokens", given.k.num_tokens, int64_t{0}, int64_t{2147483647});
  require_equal("v.num_tokens", given.v.num_tokens, given.k.num_tokens);
  require_between("num_salient", given.num_salient, int64_t{0}, given.num_tokens);
  if (given.num_tokens > 0) check_device_pointer("salient", given.salient);
  require(given.bitmap_words <= layer.bitmap_words,
          "the layer's bitmaps have " + std::to_string(layer.bitmap_words) +
              " words a head, but the prompt needs " + std::to_string(given.bitmap_words));
  require(given.plan.num_pages <= layer.max_pages,
          "the layer's page tables have " + std::to_string(layer.max_pages) +
              " pages a head, but the prompt needs " + std::to_string(given.plan.num_pages));
  require(layer.page_bytes % 16 == 0, "page_bytes must be a multiple of 16");
  const tile_size planes = page_layout_of<Policies>(layer.head_dim).planes(layer.page_bytes);
  require(layer.page_code_bytes == planes.codes && layer.page_pair_bytes == planes.pairs,
          "page_code_bytes and page_pair_bytes must be what set_page_bytes gives");
  require(given.num_items() <= 2000000000, "the prompts have too many tiles");
}

template <int HeadDim, class Policies, class Storage>
void launch_store_kernels(cudaStream_t stream, const store_arguments<Policies, Storage>& given) {
  const int32_t shared_bytes =
      store_tuning::num_warps * store_memory<Policies>::bytes(given.layer.head_dim);
  if (shared_bytes > 48 * 1024) {
    check_cuda("cudaFuncSetAttribute",
               cudaFuncSetAttribute(store_kernel<HeadDim, Policies, Storage>,
                                    cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
  }
  if constexpr (store_sides<Policies>::count > 0) {
    launch_closely("store: statistics_kernel", statistics_kernel<HeadDim, Policies, Storage>,
                   static_cast<unsigned>(given.num_chunks()), store_tuning::threads, 0, stream,
                   given);
  }
  if (given.all_tiles() == 0) return;
  const int64_t blocks = least<int64_t>(ceil_div(given.all_tiles(), store_tuning::num_warps),
                                        int64_t{store_tuning::tile_blocks} * num_multiprocessors());
  launch_closely("store: store_kernel", store_kernel<HeadDim, Policies, Storage>,
                 static_cast<unsigned>(blocks), store_tuning::threads,
                 static_cast<size_t>(shared_bytes), stream, given);
}

template <class Policies, class Storage>
void launch_store(cudaStream_t stream, const store_arguments<Policies, Storage>& given) {
  const auto rows = static_cast<unsigned>(least<int64_t>(given.num_rows(), 65535));
  const auto spans = static_cast<unsigned>(
      most<int64_t>(1, ceil_div<int64_t>(given.bitmap_words, store_tuning::prepare_words)));
  prepare_kernel<<<dim3(spans, rows), store_tuning::prepare_threads, 0, stream>>>(given);
  check_launch("store: prepare_kernel");
  if (given.num_items() == 0) return;
  if (given.layer.head_dim == 128) {
    launch_store_kernels<128>(stream, given);
  } else if (given.layer.head_dim == 64) {
    launch_store_kernels<64>(stream, given);
  } else {
    launch_store_kernels<0>(stream, given);
  }
}

/// Sets what the blocks that gather statistics have to do: chunks as long as all multiprocessors
/// have some.
template <class Policies, class Storage>
void plan_chunks(store_arguments<Policies, Storage>& given) {
  const auto plan = [&](int32_t warp_tokens) {
    given.warp_tokens = warp_tokens;
    // A segment without tokens has parameters too.
    given.chunks = static_cast<int32_t>(most<int64_t>(
        1, ceil_div<int64_t>(given.num_tokens, int64_t{store_tuning::num_warps} * warp_tokens)));
  };
  const int64_t enough = 2 * num_multiprocessors();
  plan(store_tuning::most_warp_tokens);
  while (given.warp_tokens > 32 && int64_t{given.num_units()} * given.chunks < enough)
    plan(given.warp_tokens / 2);
}

template <class Policies, class Storage>
store_arguments<Policies, Storage> plan_store(const device_layer<Policies, Storage>& layer,
                                              sequence_batch batch, int64_t num_tokens,
                                              int64_t num_salient) {
  store_arguments<Policies, Storage> given{};
  given.layer = layer;
  given.batch = batch;
  given.num_tokens = num_tokens;
  given.num_salient = num_salient;
  const segment_shape<Policies> shape{layer.num_kv_heads, layer.head_dim, num_tokens, num_salient};
  given.bitmap_words = shape.bitmap_words();
  given.plan = shape.plan(layer.page_bytes);
  if (given.plan.num_pages > 0) {
    const int64_t fewest = given.plan.salient_tiles / given.plan.num_pages;
    const int64_t largest_room = most<int64_t>(0, given.plan.room_beside(fewest));
    given.tiles_per_page = ceil_div(given.plan.salient_tiles, given.plan.num_pages) +
                           least(largest_room, given.plan.regular_tiles);
  }
  if constexpr (store_sides<Policies>::count > 0) plan_chunks(given);
  // Numbers of items fit, or check_store refuses the call.
  const auto tiles = static_cast<int32_t>(least<int64_t>(given.unit_tiles(), 2000000000));
  given.by_head = divisor(layer.num_kv_heads);
  given.by_chunks = divisor(most(1, given.chunks));
  given.by_tiles = divisor(most(1, tiles));
  return given;
}

}  // namespace detail

/// @brief Workspace of `store` for `num_sequences` prompts of `num_tokens`.
template <class Policies, class Storage>
size_t store_workspace_bytes(const device_layer<Policies, Storage>& layer, int32_t num_sequences,
                             int64_t num_tokens) {
  detail::store_arguments<Policies, Storage> given{};
  given.layer = layer;
  given.batch.count = num_sequences;
  given.num_tokens = num_tokens;
  return detail::carve_store(given, nullptr);
}

/// @brief Compresses prompts of equal length, one for each sequence of `batch`, each into segment 0
/// of its sequence, whose page numbers are in the layer's table.
/// @param[in] k, v  device memory [num_kv_heads, num_tokens, head_dim] of the first sequence, rows
/// aligned to 16 bytes; the next sequence's are k_stride and v_stride elements further
/// @param[in] salient  device memory [batch.count, num_kv_heads, ceil(num_tokens / 32)]: bit
/// token % 32 of word token / 32 says whether the token is salient; num_salient bits a head
/// @param workspace  store_workspace_bytes(layer, batch.count, num_tokens)
/// Writes pages, the token counts of the table, segment record 0, the bitmaps' first words, and of
/// counts all that the prompt decides (`sealed` is `sinks` plus the prompt's tokens).
/// @throws argument_error  shapes that do not fit, host pointers, a layer with too little room;
/// nothing was launched
/// @equality same_bytes
template <class Policies, class Storage>
void store(cuda_backend backend, const device_layer<Policies, Storage>& layer, sequence_batch batch,
           tensor_view<const Storage> k, tensor_view<const Storage> v, int64_t k_stride,
           int64_t v_stride, const uint32_t* salient, int64_t num_salient,
           device_workspace workspace) {
  detail::require_between("k.num_tokens", k.num_tokens, int64_t{0}, int64_t{2147483647});
  detail::require_between("num_salient", num_salient, int64_t{0}, k.num_tokens);
  detail::check_head_dim(layer.head_dim);
  auto given = detail::plan_store(layer, batch, k.num_tokens, num_salient);
  given.k = k;
  given.v = v;
  given.k_stride = k_stride;
  given.v_stride = v_stride;
  given.salient = salient;
  detail::check_store(given);
  detail::check_workspace(workspace, detail::carve_store(given, workspace.data));
  detail::check_no_earlier_error();
  detail::launch_store(backend.stream, given);
}

/// @brief The same for one sequence.
template <class Policies, class Storage>
void store(cuda_backend backend, const device_layer<Policies, Storage>& layer, int32_t sequence,
           tensor_view<const Storage> k, tensor_view<const Storage> v, const uint32_t* salient,
           int64_t num_salient, device_workspace workspace) {
  store(backend, layer, sequence_batch{sequence, 1}, k, v, 0, 0, salient, num_salient, workspace);
}

}  // namespace zipcache

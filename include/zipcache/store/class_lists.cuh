// The first step of storing prompts on the device: which tokens each class has, in ascending order,
// where every tile lies, and the token counts of page tables and sequences. In: salient bitmap.
// Out: lists and addresses in the workspace, bitmaps, tables, counts.
#pragma once

#include <cstdint>

#include <zipcache/core/launch.cuh>
#include <zipcache/core/numerics.hpp>
#include <zipcache/detail/warp.cuh>
#include <zipcache/store/store_arguments.cuh>

namespace zipcache {
namespace detail {

/// Writes the tokens of 32 words' bitmap to the class lists; `before` is the number of salient
/// tokens in front of them.
__device__ inline int32_t list_words(int32_t lane, int64_t first_word, uint32_t lane_bits,
                                     int32_t num_words, int32_t before, int64_t num_tokens,
                                     int64_t num_salient, int32_t* list) {
  for (int32_t i = 0; i < num_words; ++i) {
    const uint32_t bits = __shfl_sync(whole_warp, lane_bits, i);
    const int64_t token = (first_word + i) * 32 + lane;
    const int32_t salient_before = before + __popc(bits & ((1u << lane) - 1u));
    const bool is_salient = (bits >> lane & 1u) != 0;
    const int64_t place = is_salient ? salient_before : num_salient + token - salient_before;
    const int64_t end = is_salient ? num_salient : num_tokens;
    if (token < num_tokens && place < end) list[place] = static_cast<int32_t>(token);
    before += __popc(bits);
  }
  return before;
}

/// Salient tokens in words [first, last) of a row, counted by `num_threads` threads from `thread`
/// on.
template <class Policies, class Storage>
__device__ int32_t count_words(const store_arguments<Policies, Storage>& given, int64_t row,
                               int32_t thread, int32_t num_threads, int64_t first, int64_t last) {
  int32_t count = 0;
  for (int64_t word = first + thread; word < last; word += num_threads)
    count += __popc(given.bitmap_word(row, word));
  return count;
}

/// Fills the token counts of a row's page table and the counts of its sequence.
template <class Policies, class Storage>
__device__ void save_table(const store_arguments<Policies, Storage>& given, int64_t row,
                           int32_t thread, int32_t num_threads) {
  const int32_t sequence = given.sequence_of(row);
  page_entry* table = given.layer.table_of(sequence, given.head_of(row));
  for (int64_t page = thread; page < given.plan.num_pages; page += num_threads) {
    table[page] = given.plan.entry(page, table[page].page, given.num_salient,
                                   given.num_tokens - given.num_salient);
  }
  if (thread == 0 && given.head_of(row) == 0) {
    sequence_counts& counts = given.layer.counts[sequence];
    const int32_t num_pages = static_cast<int32_t>(given.plan.num_pages);
    counts.sealed = counts.sinks + static_cast<int32_t>(given.num_tokens);
    counts.prompt_tokens = static_cast<int32_t>(given.num_tokens);
    counts.prompt_pages = num_pages;
    counts.pages = num_pages;
    counts.segments = given.num_tokens > 0 ? 1 : 0;
  }
}

/// Fills the addresses of all tiles, `num_threads` threads together.
template <class Policies, class Storage>
__device__ void save_tile_addresses(const store_arguments<Policies, Storage>& given, int64_t thread,
                                    int64_t num_threads) {
  const page_plan& plan = given.plan;
  const page_layout layout = page_layout_of<Policies>(given.layer.head_dim);
  const auto address = [](int64_t page, tile_size skipped) {
    return tile_address{static_cast<int32_t>(page), static_cast<int32_t>(skipped.codes),
                        static_cast<int32_t>(skipped.pairs)};
  };
  for (int64_t i = thread; i < plan.num_pages * given.tiles_per_page; i += num_threads) {
    const int64_t page = i / given.tiles_per_page;
    const int64_t slot = i % given.tiles_per_page;
    const int64_t salient_before = plan.salient_before(page);
    const int64_t salient_here = plan.salient_before(page + 1) - salient_before;
    const int64_t other = slot - salient_here;  // among the page's regular tiles
    if (other < 0) {
      given.tiles[salient_before + slot] =
          address(page, layout.template before<token_class::salient>(salient_here, slot));
      continue;
    }
    const int64_t tile = plan.regular_before(page) + other;
    if (other >= plan.room_beside(salient_here) || tile >= plan.regular_tiles) continue;
    given.tiles[plan.salient_tiles + tile] =
        address(page, layout.template before<token_class::regular>(salient_here, other));
  }
}

namespace {

// Grid: x = 128 words of the bitmap, at least one block; y = row (KV head of a sequence), striding.
// Warp: 16 of the words. Lane: a token of the word that its warp is at.
// Memory: one count a warp in shared memory; words in front of the block's are read to count them.
template <class Policies, class Storage>
__global__ void __launch_bounds__(store_tuning::prepare_threads)
    prepare_kernel(store_arguments<Policies, Storage> given) {
  constexpr int32_t threads = store_tuning::prepare_threads;
  constexpr int32_t num_warps = threads / 32;
  constexpr int32_t span = store_tuning::prepare_words / num_warps;
  __shared__ int32_t counts_before[num_warps];
  __shared__ int32_t warp_counts[num_warps];
  using sides = store_sides<Policies>;
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  const int32_t warp = thread / 32;
  const int32_t lane = thread % 32;
  const int64_t block_first = int64_t{blockIdx.x} * store_tuning::prepare_words;
  const int64_t first = least(block_first + warp * span, given.bitmap_words);
  const int64_t last = least(first + span, given.bitmap_words);
  const bool is_first = blockIdx.x == 0;
  let_next_kernel_begin();
  save_tile_addresses(given, (int64_t{blockIdx.y} * gridDim.x + blockIdx.x) * threads + thread,
                      int64_t{gridDim.x} * gridDim.y * threads);
  if (is_first && blockIdx.y == 0 && thread == 0) *given.next_tile = 0;
  for (int64_t row = blockIdx.y; row < given.num_rows(); row += gridDim.y) {
    uint32_t* copy = given.layer.bitmap_of(given.sequence_of(row), given.head_of(row));
    const uint32_t bits = lane < last - first ? given.bitmap_word(row, first + lane) : 0u;
    if (lane < last - first) copy[first + lane] = bits;
    const int32_t own = warp_sum(__popc(bits));
    const int32_t in_front = warp_sum(count_words(given, row, thread, threads, 0, block_first));
    if (lane == 0) {
      warp_counts[warp] = own;
      counts_before[warp] = in_front;
    }
    __syncthreads();
    int32_t before = 0;
    ZIPCACHE_UNROLL
    for (int32_t other = 0; other < num_warps; ++other)
      before += counts_before[other] + (other < warp ? warp_counts[other] : 0);
    list_words(lane, first, bits, static_cast<int32_t>(last - first), before, given.num_tokens,
               given.num_salient, given.lists + row * given.num_tokens);
    if (is_first) {
      save_table(given, row, thread, threads);
      const int32_t head_dim = given.layer.head_dim;
      for (int32_t unit = 0; sides::count > 0 && unit < sides::units; ++unit) {
        const int64_t index = row * sides::units + unit;
        for (int32_t i = thread; i < statistic_count * head_dim; i += threads)
          given.statistics[index * statistic_count * head_dim + i] =
              initial_statistic(i / head_dim);
        if (thread == 0) {
          given.chunks_done[index] = 0;
          given.non_finite[index] = 0;
        }
      }
    }
    __syncthreads();
  }
}

}  // namespace

}  // namespace detail
}  // namespace zipcache

// Storing on the device: keys, values and the salient set of prompts become pages, segment records,
// bitmaps and page table entries of a device_layer. Two launches: class lists and tables; then
// channel statistics and codes in one, so that statistics run just far enough ahead for the codes'
// reads of the same keys and values to hit the L2 cache. In: k, v [num_kv_heads, num_tokens,
// head_dim], salient bitmap. Twin: store.hpp.
// @equality same_bytes
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>

#include <zipcache/core/batch.hpp>
#include <zipcache/core/cuda.cuh>
#include <zipcache/core/view.hpp>
#include <zipcache/core/workspace.cuh>
#include <zipcache/detail/tensor_core.cuh>
#include <zipcache/detail/warp.cuh>
#include <zipcache/store/device_layer.cuh>
#include <zipcache/store/encode.cuh>
#include <zipcache/store/segment.hpp>
#include <zipcache/store/tile_encoder.cuh>

namespace zipcache {
namespace detail {

struct store_tuning {
  static constexpr int32_t prepare_threads = 256;
  static constexpr int32_t prepare_words = 128;  ///< of a bitmap, by one block
  static constexpr int32_t num_warps = 4;
  static constexpr int32_t threads = 32 * num_warps;
  static constexpr int32_t tiles_of_warp = 1;  ///< one after the other; more delay the block
  static constexpr int32_t tiles_of_group = num_warps * tiles_of_warp;
  static constexpr int32_t blocks = 5;  ///< of a multiprocessor, at 128 channels
  /// Tokens whose statistics a block gathers at once.
  static constexpr int32_t chunk_tokens = 256;
  /// Items that lie between a unit's statistics and its codes, at least: a little more than run at
  /// once, so that codes seldom wait, and no more, so that their reads hit the L2 cache.
  static constexpr int64_t items_ahead = 900;
};

/// Values that a thread reads at once.
inline constexpr int32_t values_per_load = 8;

/// Which sides of a prompt have statistics: keys are 0, values 1.
template <class Policies>
struct store_sides {
  using keys = typename Policies::key_quantizer_policy;
  using values = typename Policies::value_quantizer_policy;
  static constexpr bool of_keys = needed_statistics<keys>::any;
  static constexpr bool of_values = needed_statistics<values>::any;
  static constexpr int32_t count = (of_keys ? 1 : 0) + (of_values ? 1 : 0);
  /// Parts that a row's work falls into, and sides that each encodes.
  static constexpr int32_t units = count == 2 ? 2 : 1;
  static constexpr int32_t sides_of_unit = 2 / units;
  /// The side whose statistics a unit gathers.
  __host__ __device__ static constexpr bool gathers_keys(int32_t unit) {
    return of_keys && unit == 0;
  }
};

/// Statistics of a row's side in memory, gathered by atomic operations: floats as integers of the
/// same order. [statistic_count, head_dim]
enum statistic : int32_t {
  salient_lowest,
  salient_highest,
  regular_lowest,
  regular_highest,
  largest_magnitude,
  statistic_count
};

__device__ inline int32_t ordered_bits(float x) {
  const auto bits = static_cast<int32_t>(bits_of(x));
  return bits >= 0 ? bits : bits ^ 0x7fffffff;
}
__device__ inline float float_of_ordered(int32_t ordered) {
  return float_of(static_cast<uint32_t>(ordered >= 0 ? ordered : ordered ^ 0x7fffffff));
}
/// What an empty statistic holds.
__device__ inline int32_t initial_statistic(int32_t which) {
  const value_range none;
  if (which == largest_magnitude) return 0;
  return ordered_bits(which % 2 == 0 ? none.lowest : none.highest);
}

/// Where a tile lies; the same for all rows.
struct tile_address {
  int32_t page;   ///< of the row's table
  int32_t codes;  ///< bytes in front of its codes and pairs, in the page's planes
  int32_t pairs;
};

/// What all kernels of one call know. A row is one KV head of one sequence.
template <class Policies, class Storage>
struct store_arguments {
  device_layer<Policies, Storage> layer;
  sequence_batch batch;
  tensor_view<const Storage> k;  ///< of the first sequence
  tensor_view<const Storage> v;
  int64_t k_stride;
  int64_t v_stride;
  const uint32_t* salient;  ///< [rows, bitmap_words]
  int64_t bitmap_words;
  int64_t num_tokens;
  int64_t num_salient;
  page_plan plan;
  int64_t tiles_per_page;  ///< at most

  // Work of a row's unit, in the order in which it is taken up.
  int32_t salient_chunks;  ///< of statistics
  int32_t chunks;          ///< all
  int32_t tile_groups;     ///< of tiles_of_group tiles of a side
  int32_t units_ahead;     ///< units whose statistics precede a unit's codes

  int32_t* lists;        ///< [rows, num_tokens]: salient tokens, then regular ones, each ascending
  tile_address* tiles;   ///< [salient tiles, regular tiles]
  int32_t* statistics;   ///< [rows, units, statistic_count, head_dim]
  float2* scales;        ///< [rows, units, side_scales_count, head_dim]
  int32_t* chunks_done;  ///< [rows, units]: the last one also makes the unit's parameters
  int32_t* is_fitted;    ///< [rows, units]
  int32_t* next_item;    ///< [1]

  __host__ __device__ int64_t num_rows() const {
    return static_cast<int64_t>(batch.count) * layer.num_kv_heads;
  }
  __host__ __device__ int32_t num_units() const {
    return static_cast<int32_t>(num_rows()) * store_sides<Policies>::units;
  }
  __host__ __device__ int32_t unit_groups() const {
    return tile_groups * store_sides<Policies>::sides_of_unit;
  }
  __host__ __device__ int64_t num_items() const {
    return int64_t{num_units()} * (chunks + unit_groups());
  }
  __host__ __device__ int64_t num_tiles() const { return plan.salient_tiles + plan.regular_tiles; }
  __device__ int32_t head_of(int64_t row) const {
    return static_cast<int32_t>(row % layer.num_kv_heads);
  }
  __device__ int32_t index_of(int64_t row) const {
    return static_cast<int32_t>(row / layer.num_kv_heads);
  }
  __device__ int32_t sequence_of(int64_t row) const { return batch.first + index_of(row); }
  /// Token 0 of one side of a row, and the distance from one token to the next.
  __device__ const Storage* tokens_of(bool keys, int64_t row) const {
    return keys ? k.row(head_of(row), 0) + index_of(row) * k_stride
                : v.row(head_of(row), 0) + index_of(row) * v_stride;
  }
  /// In values; the host has seen that it fits.
  __device__ int32_t token_stride(bool keys) const {
    return static_cast<int32_t>(keys ? k.token_stride : v.token_stride);
  }
  __device__ record_view<Policies, Storage> record(int64_t row) const {
    return {layer.record_of(sequence_of(row), 0, head_of(row)), layer.head_dim};
  }
  /// A token of the row's list. A bitmap with other than num_salient bits leaves holes in it, which
  /// must not be read as addresses.
  __device__ int32_t listed(int64_t row, int64_t index) const {
    return static_cast<int32_t>(least(static_cast<uint32_t>(lists[row * num_tokens + index]),
                                      static_cast<uint32_t>(num_tokens) - 1u));
  }
  /// 32 tokens of one row's bitmap; bits behind the last token are cleared.
  __device__ uint32_t bitmap_word(int64_t row, int64_t word) const {
    const int64_t left = num_tokens - word * 32;
    const uint32_t valid = left >= 32 ? whole_warp : (1u << left) - 1u;
    return salient[row * bitmap_words + word] & valid;
  }
};

// --- class lists, tables, counts
// ------------------------------------------------------------------

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
  save_tile_addresses(given, (int64_t{blockIdx.y} * gridDim.x + blockIdx.x) * threads + thread,
                      int64_t{gridDim.x} * gridDim.y * threads);
  if (is_first && blockIdx.y == 0 && thread == 0) *given.next_item = 0;
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
          given.is_fitted[index] = 0;
        }
      }
    }
    __syncthreads();
  }
}

}  // namespace

// --- channel statistics
// ---------------------------------------------------------------------------

/// How the lanes of a warp lie over rows of head_dim values, 16 bytes each. Lanes that no whole row
/// is left for double those of the first one.
struct row_lanes {
  int32_t columns;  ///< loads in a row
  int32_t rows;     ///< rows at once
  int32_t row;      ///< of this lane
  int32_t column;

  __device__ row_lanes(int32_t lane, int32_t head_dim)
      : columns(head_dim / values_per_load),
        rows(32 / columns),
        row(lane / columns < rows ? lane / columns : 0),
        column(lane % columns) {}
};

/// Statistics of eight channels of one class.
struct thread_statistics {
  pair_range ranges[4];
  uint32_t largest[4] = {};
};

/// Gathers those of a chunk of a row's list that this thread reads. A warp takes 32 neighbouring
/// tokens of the list at a time, a lane 16 bytes of some of them.
template <class Quantizer, class Policies, class Storage>
__device__ void gather_chunk(const store_arguments<Policies, Storage>& given, bool keys,
                             int64_t row, int64_t first, int64_t last,
                             thread_statistics& statistics) {
  using needed = needed_statistics<Quantizer>;
  constexpr int32_t at_once = 8;
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
  const int32_t warp = static_cast<int32_t>(threadIdx.x) / 32;
  const row_lanes grid(lane, given.layer.head_dim);
  const Storage* tokens = given.tokens_of(keys, row) + grid.column * values_per_load;
  const int32_t stride = given.token_stride(keys);
  const auto add = [&](uint4 values) {
    const uint32_t pairs[4] = {values.x, values.y, values.z, values.w};
    ZIPCACHE_UNROLL
    for (int32_t j = 0; j < 4; ++j) {
      if constexpr (needed::salient || needed::regular)
        include_pair<Storage>(statistics.ranges[j], pairs[j]);
      if constexpr (needed::largest) {
        statistics.largest[j] = higher_pair<Storage>(
            statistics.largest[j], magnitude_pair(finite_pair<Storage>(pairs[j])));
      }
    }
  };
  const auto load = [&](int32_t own, int32_t index) {
    const int32_t token = __shfl_sync(whole_warp, own, index % 32);
    return *reinterpret_cast<const uint4*>(tokens + int64_t{token} * stride);
  };
  for (int64_t start = first + 32 * warp; start < last; start += 32 * store_tuning::num_warps) {
    // Past the last token, the last one again: it changes nothing.
    const int32_t own = given.listed(row, least<int64_t>(start + lane, last - 1));
    int32_t index = grid.row;
    for (int32_t step = 0; step < 32; step += at_once * grid.rows) {
      uint4 values[at_once];
      if (step + at_once * grid.rows <= 32) {
        ZIPCACHE_UNROLL
        for (int32_t j = 0; j < at_once; ++j) values[j] = load(own, index + j * grid.rows);
        ZIPCACHE_UNROLL
        for (int32_t j = 0; j < at_once; ++j) add(values[j]);
        index += at_once * grid.rows;
      } else {
        // A lane that is beyond the last row wraps to a first one.
#pragma unroll 4
        for (int32_t rest = step; rest < 32; rest += grid.rows, index += grid.rows)
          add(load(own, index));
      }
    }
  }
}

/// Chunk `chunk` of a row's side: its statistics into memory.
template <class Quantizer, class Policies, class Storage>
__device__ void add_chunk(const store_arguments<Policies, Storage>& given, bool keys, int64_t row,
                          int32_t chunk, int32_t* memory, uint32_t* shared) {
  using needed = needed_statistics<Quantizer>;
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  const int32_t head_dim = given.layer.head_dim;
  const bool is_salient = chunk < given.salient_chunks;
  const int64_t first = is_salient ? int64_t{chunk} * store_tuning::chunk_tokens
                                   : given.num_salient + int64_t{chunk - given.salient_chunks} *
                                                             store_tuning::chunk_tokens;
  const int64_t last = least<int64_t>(first + store_tuning::chunk_tokens,
                                      is_salient ? given.num_salient : given.num_tokens);
  thread_statistics statistics;
  gather_chunk<Quantizer>(given, keys, row, first, last, statistics);

  // The block's lanes one below the other, [numbers, lanes of a channel, head_dim / 2].
  const row_lanes grid(thread % 32, head_dim);
  const int32_t pairs = head_dim / 2;
  const int32_t lanes = store_tuning::num_warps * grid.rows;
  constexpr bool ranges = needed::salient || needed::regular;
  constexpr int32_t numbers = (ranges ? 2 : 0) + (needed::largest ? 1 : 0);
  const bool has_row = thread % 32 / grid.columns < grid.rows;
  const auto put = [&](int32_t number, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    uint32_t* to = shared + (number * lanes + thread / 32 * grid.rows + grid.row) * pairs;
    if (has_row) *reinterpret_cast<uint4*>(to + grid.column * 4) = make_uint4(a, b, c, d);
  };
  if constexpr (ranges) {
    const pair_range(&all)[4] = statistics.ranges;
    put(0, all[0].lowest, all[1].lowest, all[2].lowest, all[3].lowest);
    put(1, all[0].highest, all[1].highest, all[2].highest, all[3].highest);
  }
  if constexpr (needed::largest) {
    const uint32_t(&all)[4] = statistics.largest;
    put(numbers - 1, all[0], all[1], all[2], all[3]);
  }
  __syncthreads();
  for (int32_t i = thread; i < numbers * pairs; i += store_tuning::threads) {
    const int32_t number = i / pairs;
    const int32_t pair = i % pairs;
    const bool is_lowest = ranges && number == 0;
    const bool is_largest = needed::largest && number == numbers - 1;
    const uint32_t* from = shared + number * lanes * pairs + pair;
    uint32_t result = from[0];
    for (int32_t lane = 1; lane < lanes; ++lane) {
      const uint32_t other = from[lane * pairs];
      result = is_lowest ? lower_pair<Storage>(result, other) : higher_pair<Storage>(result, other);
    }
    const int32_t which =
        is_largest ? largest_magnitude
                   : (is_salient ? salient_lowest : regular_lowest) + (is_lowest ? 0 : 1);
    int32_t* place = memory + which * head_dim + 2 * pair;
    const float values[2] = {first_of<Storage>(result), second_of<Storage>(result)};
    ZIPCACHE_UNROLL
    for (int32_t j = 0; j < 2; ++j) {
      // NaN: there was no value. Zeros are +0, as `include` makes them.
      if (!(values[j] == values[j])) continue;
      const int32_t ordered = ordered_bits(values[j] + 0.0f);
      if (is_lowest) {
        atomicMin(place + j, ordered);
      } else {
        atomicMax(place + j, ordered);
      }
    }
  }
}

/// From a side's statistics to what the record keeps and codes need.
template <class Quantizer, bool Keys, class Policies, class Storage>
__device__ void fit_unit(const store_arguments<Policies, Storage>& given, int64_t row,
                         const int32_t* memory, float2* scales) {
  const int32_t head_dim = given.layer.head_dim;
  const record_view<Policies, Storage> record = given.record(row);
  for (int32_t channel = static_cast<int32_t>(threadIdx.x); channel < head_dim;
       channel += store_tuning::threads) {
    const auto read = [&](int32_t which) {
      return float_of_ordered(__ldcg(memory + which * head_dim + channel));
    };
    channel_statistics statistics;
    statistics.salient = {read(salient_lowest), read(salient_highest)};
    statistics.regular = {read(regular_lowest), read(regular_highest)};
    statistics.largest = read(largest_magnitude);
    save_channel<Quantizer, Keys>(statistics, channel, record, scales);
  }
}

/// A chunk of a unit's statistics, and the unit's parameters if it was the last one.
template <class Policies, class Storage>
__device__ void run_chunk(const store_arguments<Policies, Storage>& given, int32_t unit,
                          int32_t chunk, uint32_t* shared) {
  using sides = store_sides<Policies>;
  __shared__ bool is_last;
  const int64_t row = unit / sides::units;
  const bool keys = sides::gathers_keys(unit % sides::units);
  const int32_t head_dim = given.layer.head_dim;
  int32_t* memory = given.statistics + int64_t{unit} * statistic_count * head_dim;
  float2* scales = given.scales + int64_t{unit} * side_scales_count * head_dim;
  if constexpr (sides::of_keys) {
    if (keys) add_chunk<typename sides::keys>(given, true, row, chunk, memory, shared);
  }
  if constexpr (sides::of_values) {
    if (!keys) add_chunk<typename sides::values>(given, false, row, chunk, memory, shared);
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    is_last = atomicAdd(given.chunks_done + unit, 1) == given.chunks - 1;
    __threadfence();
  }
  __syncthreads();
  if (!is_last) return;
  if constexpr (sides::of_keys) {
    if (keys) fit_unit<typename sides::keys, true>(given, row, memory, scales);
  }
  if constexpr (sides::of_values) {
    if (!keys) fit_unit<typename sides::values, false>(given, row, memory, scales);
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    atomicExch(given.is_fitted + unit, 1);
  }
}

// --- codes
// ----------------------------------------------------------------------------------------

/// Begins to copy a tile's rows of one side into a warp's shared memory. Rows without a token get
/// `filler`.
template <class Policies, class Storage>
__device__ __forceinline__ void begin_tile(const store_arguments<Policies, Storage>& given,
                                           bool keys, int64_t row, int64_t first, int32_t count,
                                           int32_t head_dim, int32_t lane, uint32_t filler,
                                           Storage* rows, int32_t stride) {
  const int32_t columns = head_dim / values_per_load;
  const Storage* tokens = given.tokens_of(keys, row);
  const int32_t token_stride = given.token_stride(keys);
  const int32_t own = lane < count ? given.listed(row, first + lane) : 0;
  const auto copy = [&](int32_t index, int32_t column) {
    const int32_t token = __shfl_sync(whole_warp, own, index);
    if (index < count)
      begin_copy(rows + index * stride + column, tokens + int64_t{token} * token_stride + column,
                 true);
  };
  if (32 % columns == 0) {
    // A lane stays in its column.
    const int32_t at_once = 32 / columns;
    tokens += lane % columns * values_per_load;
    rows += lane % columns * values_per_load;
#pragma unroll 8
    for (int32_t index = lane / columns; index < tile_tokens; index += at_once) copy(index, 0);
    rows -= lane % columns * values_per_load;
  } else {
    for (int32_t i = lane; i < tile_tokens * columns; i += 32)
      copy(i / columns, i % columns * values_per_load);
  }
  end_copy_group();
  for (int32_t index = count; index < tile_tokens; ++index) {
    for (int32_t channel = 2 * lane; channel < head_dim; channel += 64)
      *reinterpret_cast<uint32_t*>(rows + index * stride + channel) = filler;
  }
}

/// Waits, the whole block, until a unit has its parameters.
__device__ inline void wait_for_unit(const int32_t* is_fitted) {
  if (threadIdx.x == 0) {
    while (*static_cast<const volatile int32_t*>(is_fitted) == 0) __nanosleep(100);
    __threadfence();
  }
  __syncthreads();
}

/// Group `group` of a unit's tiles, some for each warp.
template <bool Keys, int HeadDim, class Policies, class Storage>
__device__ void run_group(const store_arguments<Policies, Storage>& given, int32_t unit,
                          int32_t group, std::byte* shared) {
  using sides = store_sides<Policies>;
  using memory = encode_memory<Policies>;
  using salient = tile_record<Policies, token_class::salient>;
  using regular = tile_record<Policies, token_class::regular>;
  using granularity = std::conditional_t<Keys, typename salient::key_granularity,
                                         typename salient::value_granularity>;
  constexpr int salient_bits = Keys ? salient::key_bits : salient::value_bits;
  constexpr int regular_bits = Keys ? regular::key_bits : regular::value_bits;
  const int32_t head_dim = HeadDim == 0 ? given.layer.head_dim : HeadDim;
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
  const int32_t warp = static_cast<int32_t>(threadIdx.x) / 32;
  const int64_t row = unit / sides::units;
  const page_entry* table = given.layer.table_of(given.sequence_of(row), given.head_of(row));
  const float2* scales = given.scales + int64_t{unit} * side_scales_count * head_dim;
  auto* rows = reinterpret_cast<Storage*>(shared + warp * memory::warp_bytes(head_dim));
  staged_tile<Storage, even_rows> staged{};
  staged.rows = rows;
  staged.places.stride = staged_stride<granularity, Keys>(head_dim);
  staged.head_dim = head_dim;
  staged.lane = lane;
  staged.scales = reinterpret_cast<quantize_scale*>(shared + warp * memory::warp_bytes(head_dim) +
                                                    memory::row_bytes(head_dim));
#pragma unroll 1
  for (int32_t i = 0; i < store_tuning::tiles_of_warp; ++i) {
    const int64_t tile =
        int64_t{group} * store_tuning::tiles_of_group + i * store_tuning::num_warps + warp;
    const bool exists = tile < given.num_tiles();
    const bool is_salient = tile < given.plan.salient_tiles;
    if (exists) {
      const int64_t in_class = is_salient ? tile : tile - given.plan.salient_tiles;
      const int64_t class_tokens =
          is_salient ? given.num_salient : given.num_tokens - given.num_salient;
      const bool has_16_bits = is_salient ? salient_bits == 16 : regular_bits == 16;
      staged.count =
          static_cast<int32_t>(least<int64_t>(class_tokens - in_class * tile_tokens, tile_tokens));
      begin_tile(given, Keys, row, (is_salient ? 0 : given.num_salient) + in_class * tile_tokens,
                 staged.count, head_dim, lane, has_16_bits ? 0u : nan_pair, rows,
                 staged.places.stride);
    }
    if constexpr (Keys ? sides::of_keys : sides::of_values) {
      // The rows are on their way meanwhile.
      if (i == 0) wait_for_unit(given.is_fitted + unit);
    }
    if (!exists) continue;
    const tile_address address = given.tiles[tile];
    const tile_place at =
        given.layer.page(table[address.page].page) + tile_size{address.codes, address.pairs};
    wait_copy_groups<0>();
    __syncwarp();
    if (is_salient) {
      encode_staged_class<Keys, token_class::salient, HeadDim>(given.record(row), scales, staged,
                                                               at);
    } else {
      encode_staged_class<Keys, token_class::regular, HeadDim>(given.record(row), scales, staged,
                                                               at);
    }
    __syncwarp();
  }
}

/// What item `item` is: a chunk of a unit's statistics, or a group of its tiles.
struct store_item {
  int32_t unit;
  int32_t chunk;  ///< -1: it is a group
  int32_t group;
};

/// Order: the statistics of the first units; then of each further unit, each followed by the codes
/// of the unit that is units_ahead behind; then the last units' codes. An item waits for earlier
/// ones alone, and they are taken in order, so it never waits for one that nobody has.
template <class Policies, class Storage>
__device__ store_item item_at(const store_arguments<Policies, Storage>& given, int64_t item) {
  const int32_t chunks = given.chunks;
  const int32_t groups = given.unit_groups();
  const int32_t ahead = given.units_ahead;
  const int64_t leading = int64_t{ahead} * chunks;
  if (item < leading) {
    return {static_cast<int32_t>(item / chunks), static_cast<int32_t>(item % chunks), 0};
  }
  item -= leading;
  const int64_t both = int64_t{given.num_units() - ahead} * (chunks + groups);
  if (item < both) {
    const auto step = static_cast<int32_t>(item / (chunks + groups));
    const auto index = static_cast<int32_t>(item % (chunks + groups));
    if (index < chunks) return {step + ahead, index, 0};
    return {step, -1, index - chunks};
  }
  item -= both;
  return {given.num_units() - ahead + static_cast<int32_t>(item / groups), -1,
          static_cast<int32_t>(item % groups)};
}

namespace {

// Grid: as many blocks as run at once; each takes items until none is left.
// Warp: a tile of codes; or some rows of a chunk. Lane: the words of its tile that are its own in
// the layout; or eight channels of every n-th row of a chunk.
// Memory: 32 padded rows a warp in shared memory. k and v are read twice, the second time from the
// L2 cache where it keeps what the statistics are ahead; every byte of a tile is written once.
template <int HeadDim, class Policies, class Storage>
__global__ void __launch_bounds__(store_tuning::threads, HeadDim == 0 ? 1 : store_tuning::blocks)
    store_kernel(store_arguments<Policies, Storage> given) {
  extern __shared__ __align__(16) unsigned char store_shared[];
  __shared__ int32_t taken;
  using sides = store_sides<Policies>;
  auto* shared = reinterpret_cast<std::byte*>(store_shared);
  const auto num_items = static_cast<int32_t>(given.num_items());
  int32_t next = 0;
  if (threadIdx.x == 0) taken = atomicAdd(given.next_item, 1);
  __syncthreads();
  for (int32_t number = taken; number < num_items; number = taken) {
    if (threadIdx.x == 0) next = atomicAdd(given.next_item, 1);
    const store_item item = item_at(given, number);
    if (item.chunk >= 0) {
      if constexpr (sides::count > 0)
        run_chunk(given, item.unit, item.chunk, reinterpret_cast<uint32_t*>(shared));
    } else {
      const bool keys = sides::units == 2 ? item.unit % 2 == 0 : item.group < given.tile_groups;
      const int32_t group = item.group % given.tile_groups;
      if (keys) {
        run_group<true, HeadDim>(given, item.unit, group, shared);
      } else {
        run_group<false, HeadDim>(given, item.unit, group, shared);
      }
    }
    __syncthreads();
    if (threadIdx.x == 0) taken = next;
    __syncthreads();
  }
}

}  // namespace

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
  given.is_fitted = cursor.take<int32_t>(units);
  given.next_item = cursor.take<int32_t>(1);
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
void launch_store_kernel(cudaStream_t stream, const store_arguments<Policies, Storage>& given) {
  const int32_t shared_bytes =
      most(store_tuning::num_warps * encode_memory<Policies>::warp_bytes(given.layer.head_dim),
           3 * 16 * store_tuning::threads);
  if (shared_bytes > 48 * 1024) {
    check_cuda("cudaFuncSetAttribute",
               cudaFuncSetAttribute(store_kernel<HeadDim, Policies, Storage>,
                                    cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
  }
  const auto blocks = static_cast<unsigned>(
      least<int64_t>(given.num_items(), int64_t{store_tuning::blocks} * num_multiprocessors()));
  store_kernel<HeadDim>
      <<<blocks, store_tuning::threads, static_cast<size_t>(shared_bytes), stream>>>(given);
  check_launch("store: store_kernel");
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
    launch_store_kernel<128>(stream, given);
  } else if (given.layer.head_dim == 64) {
    launch_store_kernel<64>(stream, given);
  } else {
    launch_store_kernel<0>(stream, given);
  }
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
  using sides = store_sides<Policies>;
  const auto chunks_of = [](int64_t tokens) {
    return static_cast<int32_t>(ceil_div<int64_t>(tokens, store_tuning::chunk_tokens));
  };
  if constexpr (sides::count > 0) {
    given.salient_chunks = chunks_of(num_salient);
    // A segment without tokens has parameters too.
    given.chunks = most(1, given.salient_chunks + chunks_of(num_tokens - num_salient));
  }
  given.tile_groups =
      static_cast<int32_t>(ceil_div<int64_t>(given.num_tiles(), store_tuning::tiles_of_group));
  if (given.chunks > 0) {
    given.units_ahead = static_cast<int32_t>(least<int64_t>(
        given.num_units(),
        ceil_div<int64_t>(store_tuning::items_ahead, given.chunks + given.unit_groups())));
  }
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

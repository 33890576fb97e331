// Storing on the device: keys, values and the salient set of prompts become pages, segment records,
// bitmaps and page table entries of a device_layer. Three launches: class lists and tables; channel
// statistics and what the segment keeps of them, of policies that have such; codes. In: k, v
// [num_kv_heads, num_tokens, head_dim], salient bitmap. Twin: store.hpp.
// @equality same_bytes
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>

#include <zipcache/core/batch.hpp>
#include <zipcache/core/cuda.cuh>
#include <zipcache/core/divisor.hpp>
#include <zipcache/core/view.hpp>
#include <zipcache/core/workspace.cuh>
#include <zipcache/detail/tensor_core.cuh>
#include <zipcache/detail/warp.cuh>
#include <zipcache/store/device_layer.cuh>
#include <zipcache/store/encode.cuh>
#include <zipcache/store/regular_tile.cuh>
#include <zipcache/store/segment.hpp>
#include <zipcache/store/tile_encoder.cuh>

namespace zipcache {
namespace detail {

struct store_tuning {
  static constexpr int32_t prepare_threads = 256;
  static constexpr int32_t prepare_words = 128;  ///< of a bitmap, by one block
  static constexpr int32_t num_warps = 4;
  static constexpr int32_t threads = 32 * num_warps;
  static constexpr int32_t tile_blocks = 5;  ///< of a multiprocessor, at 128 channels
  /// Likewise, of those that gather statistics. At 8 x 4096 tokens every warp then has one chunk;
  /// with 7 blocks some had two, and all took 108 us instead of 102 (H200).
  static constexpr int32_t chunk_blocks = 8;
  /// Tokens whose statistics a warp gathers at once; 64: 110 us.
  static constexpr int32_t chunk_tokens = 128;
};

/// Values that a thread reads at once.
inline constexpr int32_t values_per_load = 8;

/// `rows` and so many of the strides further. One instruction, which 64-bit factors would not be.
template <class Storage>
__device__ __forceinline__ const Storage* row_at(const Storage* rows, int32_t token,
                                                 uint32_t token_bytes) {
  return reinterpret_cast<const Storage*>(reinterpret_cast<const std::byte*>(rows) +
                                          uint64_t{static_cast<uint32_t>(token)} * token_bytes);
}

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
/// same order. [statistic_count, 8, head_dim / 8]: the eight channels that a lane reads together
/// lie apart, so that lanes write next to each other.
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
__device__ __forceinline__ int32_t statistic_place(int32_t channel, int32_t head_dim) {
  return channel % values_per_load * (head_dim / values_per_load) + channel / values_per_load;
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
  divisor by_head;         ///< divides a row by the number of heads,
  divisor by_chunks;       ///< a chunk by those of a unit,
  divisor by_tiles;        ///< and a tile by those of a unit

  int32_t* lists;        ///< [rows, num_tokens]: salient tokens, then regular ones, each ascending
  tile_address* tiles;   ///< [salient tiles, regular tiles]
  int32_t* statistics;   ///< [rows, units, statistic_count, head_dim]
  float2* scales;        ///< [rows, units, side_scales_count, head_dim]
  int32_t* chunks_done;  ///< [rows, units]: the last one also makes the unit's parameters
  int32_t* non_finite;   ///< [rows, units]: not 0 where a value is not finite
  int32_t* is_regular;   ///< [rows, units]: not 0 where no value of the channels needs a clamp
  int32_t* next_tile;    ///< [1]

  __host__ __device__ int64_t num_rows() const {
    return static_cast<int64_t>(batch.count) * layer.num_kv_heads;
  }
  __host__ __device__ int32_t num_units() const {
    return static_cast<int32_t>(num_rows()) * store_sides<Policies>::units;
  }
  /// Tiles of a unit, of one side or of both.
  __host__ __device__ int64_t unit_tiles() const {
    return num_tiles() * store_sides<Policies>::sides_of_unit;
  }
  __host__ __device__ int64_t num_items() const { return num_units() * (chunks + unit_tiles()); }
  __host__ __device__ int32_t num_chunks() const { return num_units() * chunks; }
  __host__ __device__ int32_t all_tiles() const {
    return static_cast<int32_t>(num_units() * unit_tiles());
  }
  __host__ __device__ int64_t num_tiles() const { return plan.salient_tiles + plan.regular_tiles; }
  __device__ int32_t index_of(int64_t row) const {
    return by_head.quotient(static_cast<int32_t>(row));
  }
  __device__ int32_t head_of(int64_t row) const {
    return static_cast<int32_t>(row) - index_of(row) * layer.num_kv_heads;
  }
  __device__ int32_t sequence_of(int64_t row) const { return batch.first + index_of(row); }
  /// Token 0 of one side of a row, and the distance from one token to the next.
  __device__ const Storage* tokens_of(bool keys, int64_t row) const {
    return keys ? k.row(head_of(row), 0) + index_of(row) * k_stride
                : v.row(head_of(row), 0) + index_of(row) * v_stride;
  }
  /// In bytes; the host has seen that it fits.
  __device__ uint32_t token_bytes(bool keys) const {
    return static_cast<uint32_t>(keys ? k.token_stride : v.token_stride) * 2u;
  }
  __device__ record_view<Policies, Storage> record(int64_t row) const {
    return {layer.record_of(sequence_of(row), 0, head_of(row)), layer.head_dim};
  }
  /// A token of the row's list. A bitmap with other than num_salient bits leaves holes in it, which
  /// must not be read as addresses: they are `checked` before use.
  __device__ int32_t listed(int64_t row, int64_t index) const {
    return checked(lists[row * num_tokens + index]);
  }
  __device__ int32_t checked(int32_t entry) const {
    return static_cast<int32_t>(
        least(static_cast<uint32_t>(entry), static_cast<uint32_t>(num_tokens) - 1u));
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
template <class Quantizer, class Storage>
struct lane_statistics {
  using needed = needed_statistics<Quantizer>;
  static constexpr bool ranges = needed::salient || needed::regular;
  static constexpr int32_t numbers = (ranges ? 2 : 0) + (needed::largest ? 1 : 0);

  unchecked_pair_range<Storage> range[4];
  uint32_t largest[4] = {};

  /// Whatever is not finite stays and shows at the end.
  __device__ __forceinline__ void add(int32_t j, uint32_t pair) {
    if constexpr (ranges) range[j].include(pair);
    if constexpr (needed::largest) largest[j] = higher_magnitude_or_nan<Storage>(largest[j], pair);
  }
  __device__ __forceinline__ bool is_finite() const {
    bool finite = true;
    ZIPCACHE_UNROLL
    for (int32_t j = 0; j < 4; ++j) {
      if constexpr (ranges) finite = finite && range[j].is_finite();
      if constexpr (needed::largest)
        finite = finite && magnitude_pair(add_zero_times<Storage>(largest[j], 0u)) == 0u;
    }
    return finite;
  }
  /// NaN, or zero for a magnitude: no value yet.
  __device__ __forceinline__ void clear() {
    ZIPCACHE_UNROLL
    for (int32_t j = 0; j < 4; ++j) {
      range[j].lowest = range[j].highest = nan_pair;
      largest[j] = 0;
    }
  }
  __device__ __forceinline__ void add_finite(int32_t j, uint32_t pair) {
    const uint32_t finite = finite_pair<Storage>(pair);
    range[j].lowest = lower_pair<Storage>(range[j].lowest, finite);
    range[j].highest = higher_pair<Storage>(range[j].highest, finite);
    largest[j] = higher_pair<Storage>(largest[j], magnitude_pair(finite));
  }
};

/// Tokens [first, last) of a row's list, as a warp reads their channels: a lane 16 bytes of some of
/// them. Past the last token comes the last one again: it changes nothing.
template <class Policies, class Storage>
struct chunk_reader {
  const store_arguments<Policies, Storage>& given;
  int64_t row;
  int64_t first;
  int64_t last;
  row_lanes grid;
  const Storage* tokens;
  uint32_t token_bytes;

  __device__ __forceinline__ chunk_reader(const store_arguments<Policies, Storage>& arguments,
                                          bool keys, int64_t of_row, int64_t begin, int64_t end,
                                          int32_t head_dim, int32_t lane)
      : given(arguments),
        row(of_row),
        first(begin),
        last(end),
        grid(lane, head_dim),
        tokens(arguments.tokens_of(keys, of_row) + grid.column * values_per_load),
        token_bytes(arguments.token_bytes(keys)) {}

  /// The token of this lane among the 32 from `start` on.
  __device__ __forceinline__ int32_t listed(int64_t start, int32_t lane) const {
    return given.listed(row, least<int64_t>(start + lane, last - 1));
  }
  __device__ __forceinline__ uint4 load(int32_t own, int32_t index) const {
    const int32_t token = __shfl_sync(whole_warp, own, index);
    return *reinterpret_cast<const uint4*>(row_at(tokens, token, token_bytes));
  }
  /// Calls add(uint4) for this lane's part of all tokens, `AtOnce` loads under way. `own`: the
  /// lane's token among the first 32.
  template <int32_t AtOnce, class Add>
  __device__ __forceinline__ void for_each(int32_t own, int32_t lane, const Add& add) const {
#pragma unroll 1
    for (int64_t start = first; start < last; start += 32) {
      const int32_t next = listed(start + 32, lane);
#pragma unroll 1
      for (int32_t step = 0; step < 32; step += AtOnce * grid.rows) {
        uint4 values[AtOnce];
        ZIPCACHE_UNROLL
        for (int32_t j = 0; j < AtOnce; ++j)
          values[j] = load(own, 32 % grid.rows == 0 ? step + grid.row + j * grid.rows
                                                    : least(step + grid.row + j * grid.rows, 31));
        ZIPCACHE_UNROLL
        for (int32_t j = 0; j < AtOnce; ++j) add(values[j]);
      }
      own = next;
    }
  }
};

/// Adds a lane's statistics, and those of the lanes of the same channels, to those in memory.
/// `first`: the statistic that the first number goes to
template <class Quantizer, class Storage>
__device__ __forceinline__ void merge_statistics(
    const lane_statistics<Quantizer, Storage>& statistics, const row_lanes& grid, int32_t lane,
    int32_t head_dim, int32_t first, int32_t* memory) {
  using lanes = lane_statistics<Quantizer, Storage>;
  ZIPCACHE_UNROLL
  for (int32_t number = 0; number < lanes::numbers; ++number) {
    const bool is_lowest = lanes::ranges && number == 0;
    const bool is_largest = !lanes::ranges || number == 2;
    int32_t* place = memory + (is_largest ? largest_magnitude : first + number) * head_dim;
    // The numbers are dealt out to the rows of lanes.
    const bool is_own = number % grid.rows == lane / grid.columns;
    ZIPCACHE_UNROLL
    for (int32_t j = 0; j < 4; ++j) {
      const uint32_t own = is_largest  ? statistics.largest[j]
                           : is_lowest ? statistics.range[j].lowest
                                       : statistics.range[j].highest;
      uint32_t all = own;
      for (int32_t other = 0; other < grid.rows; ++other) {
        const uint32_t pair = __shfl_sync(whole_warp, own, other * grid.columns + grid.column);
        all = is_lowest ? lower_pair<Storage>(all, pair) : higher_pair<Storage>(all, pair);
      }
      const float values[2] = {first_of<Storage>(all), second_of<Storage>(all)};
      ZIPCACHE_UNROLL
      for (int32_t i = 0; i < 2; ++i) {
        // NaN: there was no value. Zeros are +0, as `include` makes them.
        if (!is_own || !(values[i] == values[i])) continue;
        const int32_t ordered = ordered_bits(values[i] + 0.0f);
        int32_t* to = place + (2 * j + i) * grid.columns + grid.column;
        if (is_lowest) {
          atomicMin(to, ordered);
        } else {
          atomicMax(to, ordered);
        }
      }
    }
  }
}

/// Tokens of a row's list: those of a chunk.
struct token_span {
  int64_t first;
  int64_t last;
};
template <class Policies, class Storage>
__device__ __forceinline__ token_span chunk_span(const store_arguments<Policies, Storage>& given,
                                                 int32_t chunk) {
  const bool is_salient = chunk < given.salient_chunks;
  const int64_t first = is_salient ? int64_t{chunk} * store_tuning::chunk_tokens
                                   : given.num_salient + int64_t{chunk - given.salient_chunks} *
                                                             store_tuning::chunk_tokens;
  return {first, least<int64_t>(first + store_tuning::chunk_tokens,
                                is_salient ? given.num_salient : given.num_tokens)};
}

/// Chunk `chunk` of a unit: its statistics into memory. `own`: the lane's token among the first 32.
template <class Quantizer, int HeadDim, class Policies, class Storage>
__device__ __forceinline__ void add_chunk(const store_arguments<Policies, Storage>& given,
                                          bool keys, int64_t row, int32_t unit, int32_t chunk,
                                          int32_t own, int32_t lane, int32_t* memory) {
  const int32_t head_dim = HeadDim == 0 ? given.layer.head_dim : HeadDim;
  const bool is_salient = chunk < given.salient_chunks;
  const token_span span = chunk_span(given, chunk);
  if (span.first >= span.last) return;
  const chunk_reader<Policies, Storage> reader(given, keys, row, span.first, span.last, head_dim,
                                               lane);
  lane_statistics<Quantizer, Storage> statistics;
  reader.template for_each<8>(own, lane, [&](uint4 values) {
    statistics.add(0, values.x);
    statistics.add(1, values.y);
    statistics.add(2, values.z);
    statistics.add(3, values.w);
  });
  if (__any_sync(whole_warp, !statistics.is_finite())) {
    statistics.clear();
    reader.template for_each<1>(own, lane, [&](uint4 values) {
      statistics.add_finite(0, values.x);
      statistics.add_finite(1, values.y);
      statistics.add_finite(2, values.z);
      statistics.add_finite(3, values.w);
    });
    if (lane == 0) atomicOr(given.non_finite + unit, 1);
  }
  merge_statistics(statistics, reader.grid, lane, head_dim,
                   is_salient ? salient_lowest : regular_lowest, memory);
}

/// From a side's statistics to what the record keeps and codes need. True if no value of this
/// lane's channels needs a clamp.
template <class Quantizer, bool Keys, class Policies, class Storage>
__device__ __forceinline__ bool fit_unit(const store_arguments<Policies, Storage>& given,
                                         int64_t row, int32_t lane, const int32_t* memory,
                                         float2* scales) {
  using needed = needed_statistics<Quantizer>;
  const int32_t head_dim = given.layer.head_dim;
  const record_view<Policies, Storage> record = given.record(row);
  bool regular = true;
  const auto check = [&]<int Bits>(value_range range, float2 scale) {
    regular = regular && (range.empty() ||
                          needs_no_clamp<Bits>(range.lowest, range.highest, {scale.x, scale.y}));
  };
  const auto load = [&](int32_t channel) {
    const int32_t place = statistic_place(least(channel, head_dim - 1), head_dim);
    const auto read = [&](int32_t which) {
      return float_of_ordered(__ldcg(memory + which * head_dim + place));
    };
    return channel_statistics{{read(salient_lowest), read(salient_highest)},
                              {read(regular_lowest), read(regular_highest)},
                              read(largest_magnitude)};
  };
  channel_statistics next = load(lane);
#pragma unroll 1
  for (int32_t channel = lane; channel < head_dim; channel += 32) {
    const channel_statistics statistics = next;
    next = load(channel + 32);
    save_channel<Quantizer, Keys>(statistics, channel, record, scales);
    if constexpr (needed::salient)
      check.template operator()<needed::salient_bits>(statistics.salient,
                                                      scales[salient_scales * head_dim + channel]);
    if constexpr (needed::regular)
      check.template operator()<needed::regular_bits>(statistics.regular,
                                                      scales[regular_scales * head_dim + channel]);
  }
  return regular;
}

/// A chunk of a unit's statistics, and the unit's parameters if it was the last one.
template <int HeadDim, class Policies, class Storage>
__device__ __forceinline__ void run_chunk(const store_arguments<Policies, Storage>& given,
                                          int32_t unit, int32_t chunk, int32_t own, int32_t lane) {
  using sides = store_sides<Policies>;
  const int64_t row = unit / sides::units;
  const bool keys = sides::gathers_keys(unit % sides::units);
  const int32_t head_dim = given.layer.head_dim;
  int32_t* memory = given.statistics + int64_t{unit} * statistic_count * head_dim;
  float2* scales = given.scales + int64_t{unit} * side_scales_count * head_dim;
  if constexpr (sides::of_keys) {
    if (keys)
      add_chunk<typename sides::keys, HeadDim>(given, true, row, unit, chunk, own, lane, memory);
  }
  if constexpr (sides::of_values) {
    if (!keys)
      add_chunk<typename sides::values, HeadDim>(given, false, row, unit, chunk, own, lane, memory);
  }
  __syncwarp();
  int32_t num_before = 0;
  if (lane == 0) {
    asm volatile("atom.add.acq_rel.gpu.global.s32 %0, [%1], 1;"
                 : "=r"(num_before)
                 : "l"(given.chunks_done + unit)
                 : "memory");
  }
  if (__shfl_sync(whole_warp, num_before, 0) != given.chunks - 1) return;
  bool regular = __ldcg(given.non_finite + unit) == 0;
  if constexpr (sides::of_keys) {
    if (keys) {
      const bool fits = fit_unit<typename sides::keys, true>(given, row, lane, memory, scales);
      regular = regular && fits;
    }
  }
  if constexpr (sides::of_values) {
    if (!keys) {
      const bool fits = fit_unit<typename sides::values, false>(given, row, lane, memory, scales);
      regular = regular && fits;
    }
  }
  regular = __all_sync(whole_warp, regular);
  if (lane == 0) given.is_regular[unit] = regular ? 1 : 0;
}

namespace {

// Grid: as many blocks as run at once.
// Warp: some tokens of one side of a row at a time; the one that finishes a row's side also makes
// its parameters. Lane: eight channels of every n-th token.
// Memory: registers. k and v are read once, eight loads of a lane under way.
template <int HeadDim, class Policies, class Storage>
__global__ void __launch_bounds__(store_tuning::threads,
                                  HeadDim == 0 ? 1 : store_tuning::chunk_blocks)
    statistics_kernel(const __grid_constant__ store_arguments<Policies, Storage> given) {
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
  const int32_t warp = static_cast<int32_t>(threadIdx.x) / 32;
  const int32_t num_chunks = given.num_chunks();
  const int32_t warps = static_cast<int32_t>(gridDim.x) * store_tuning::num_warps;
#pragma unroll 1
  for (int32_t number = static_cast<int32_t>(blockIdx.x) * store_tuning::num_warps + warp;
       number < num_chunks; number += warps) {
    const int32_t unit = given.by_chunks.quotient(number);
    const int32_t chunk = number - unit * given.chunks;
    const token_span span = chunk_span(given, chunk);
    int32_t own = 0;
    if (span.first < span.last)
      own = given.listed(unit / store_sides<Policies>::units,
                         least<int64_t>(span.first + lane, span.last - 1));
    run_chunk<HeadDim>(given, unit, chunk, own, lane);
  }
}

}  // namespace

// --- codes
// ----------------------------------------------------------------------------------------

/// Begins to copy a tile's rows of one side into a warp's shared memory. `own`: the token of each
/// lane. Rows without a token get `filler`.
template <int HeadDim, class Storage>
__device__ __forceinline__ void begin_tile(const Storage* tokens, uint32_t token_bytes, int32_t own,
                                           int32_t count, int32_t run_head_dim, int32_t lane,
                                           uint32_t filler, Storage* rows, int32_t stride) {
  const int32_t head_dim = HeadDim == 0 ? run_head_dim : HeadDim;
  const int32_t columns = head_dim / values_per_load;
  const auto copy = [&](int32_t index, int32_t column) {
    const int32_t token = __shfl_sync(whole_warp, own, index);
    begin_copy(rows + index * stride + column, row_at(tokens, token, token_bytes) + column, true);
  };
  if constexpr (HeadDim != 0) {
    constexpr int32_t at_once = 32 * values_per_load / most(HeadDim, 1);
    // A lane stays in its column.
    tokens += lane % columns * values_per_load;
    rows += lane % columns * values_per_load;
    ZIPCACHE_UNROLL
    for (int32_t index = 0; index < tile_tokens; index += at_once) copy(index + lane / columns, 0);
    rows -= lane % columns * values_per_load;
  } else {
    for (int32_t i = lane; i < tile_tokens * columns; i += 32)
      copy(i / columns, i % columns * values_per_load);
  }
  if (count == tile_tokens) return;
  // What is on its way there is the row of the last token.
  wait_all_copies();
  __syncwarp();
  for (int32_t index = count; index < tile_tokens; ++index) {
    for (int32_t channel = 2 * lane; channel < head_dim; channel += 64)
      *reinterpret_cast<uint32_t*>(rows + index * stride + channel) = filler;
  }
}

/// Begins to copy what a segment's channels share into a warp's shared memory, [head_dim].
__device__ __forceinline__ void begin_shares(const float2* from, int32_t head_dim, int32_t lane,
                                             float2* to) {
  for (int32_t i = 2 * lane; i < head_dim; i += 64) begin_copy(to + i, from + i, true);
}

/// What a warp has in shared memory: rows and scales of a tile, then [head_dim] shares and
/// [head_dim] of 16 bits to work in.
template <class Policies>
struct store_memory {
  using memory = encode_memory<Policies>;
  ZIPCACHE_HOST_DEVICE static constexpr int32_t shares_offset(int32_t head_dim) {
    return round_up(memory::warp_bytes(head_dim), 16);
  }
  ZIPCACHE_HOST_DEVICE static constexpr int32_t bytes(int32_t head_dim) {
    return shares_offset(head_dim) + (store_sides<Policies>::count > 0 ? 10 * head_dim : 0);
  }
};

/// One side of one tile of `Class` whose rows and shares are there.
template <bool Keys, token_class Class, int HeadDim, class Policies, class Storage>
__device__ __forceinline__ void encode_tile(const record_view<Policies, Storage>& record,
                                            const float2* scales, float2* shares,
                                            bool may_be_regular,
                                            const staged_tile<Storage, even_rows>& staged,
                                            tile_place at) {
  using tile = tile_record<Policies, Class>;
  using granularity =
      std::conditional_t<Keys, typename tile::key_granularity, typename tile::value_granularity>;
  constexpr int bits = Keys ? tile::key_bits : tile::value_bits;
  if constexpr (has_regular_tiles<Keys, granularity, bits, HeadDim>) {
    const tile_place side = Keys ? at
                                 : tile_place{at.codes + tile::value_codes_offset(HeadDim),
                                              at.pairs + tile::value_pairs_offset(HeadDim)};
    if (may_be_regular &&
        write_regular_side<Keys, granularity, bits, HeadDim>(
            staged,
            {reinterpret_cast<const quantize_scale*>(shares),
             reinterpret_cast<const float*>(shares), reinterpret_cast<uint32_t*>(shares + HeadDim)},
            reinterpret_cast<uint32_t*>(side.codes),
            reinterpret_cast<affine_params<Storage>*>(side.pairs)))
      return;
    __syncwarp();
    encode_staged_class<Keys, Class, 0>(record, scales, staged, at);
  } else {
    encode_staged_class<Keys, Class, HeadDim>(record, scales, staged, at);
  }
}

/// One side of tile `tile` of a unit.
template <bool Keys, int HeadDim, class Policies, class Storage>
__device__ __forceinline__ void run_tile(const store_arguments<Policies, Storage>& given,
                                         int32_t unit, int32_t tile, int32_t own,
                                         tile_address address, int32_t lane, std::byte* shared) {
  using sides = store_sides<Policies>;
  using memory = encode_memory<Policies>;
  using salient = tile_record<Policies, token_class::salient>;
  using regular = tile_record<Policies, token_class::regular>;
  using granularity = std::conditional_t<Keys, typename salient::key_granularity,
                                         typename salient::value_granularity>;
  constexpr int salient_bits = Keys ? salient::key_bits : salient::value_bits;
  constexpr int regular_bits = Keys ? regular::key_bits : regular::value_bits;
  constexpr bool has_statistics = Keys ? sides::of_keys : sides::of_values;
  const int32_t head_dim = HeadDim == 0 ? given.layer.head_dim : HeadDim;
  const int64_t row = unit / sides::units;
  const bool is_salient = tile < given.plan.salient_tiles;
  const int64_t in_class = is_salient ? tile : tile - given.plan.salient_tiles;
  const int64_t class_tokens =
      is_salient ? given.num_salient : given.num_tokens - given.num_salient;
  const float2* scales = given.scales + int64_t{unit} * side_scales_count * head_dim;
  staged_tile<Storage, even_rows> staged{};
  auto* rows = reinterpret_cast<Storage*>(shared);
  staged.rows = rows;
  staged.places.stride = staged_stride<granularity, Keys>(head_dim);
  staged.head_dim = head_dim;
  staged.lane = lane;
  staged.scales = reinterpret_cast<quantize_scale*>(shared + memory::row_bytes(head_dim));
  staged.count =
      static_cast<int32_t>(least<int64_t>(class_tokens - in_class * tile_tokens, tile_tokens));
  const bool has_16_bits = is_salient ? salient_bits == 16 : regular_bits == 16;
  begin_tile<HeadDim>(given.tokens_of(Keys, row), given.token_bytes(Keys), given.checked(own),
                      staged.count, head_dim, lane, has_16_bits ? 0u : nan_pair, rows,
                      staged.places.stride);
  const page_entry* table = given.layer.table_of(given.sequence_of(row), given.head_of(row));
  const uint32_t page = table[address.page].page;
  bool regular_unit = true;
  auto* shares =
      reinterpret_cast<float2*>(shared + store_memory<Policies>::shares_offset(head_dim));
  if constexpr (has_statistics) {
    regular_unit = given.is_regular[unit] != 0;
    const int32_t which =
        needed_statistics<
            std::conditional_t<Keys, typename sides::keys, typename sides::values>>::largest
            ? side_divisors
            : (is_salient ? salient_scales : regular_scales);
    begin_shares(scales + which * head_dim, head_dim, lane, shares);
  }
  end_copy_group();
  const tile_place at = given.layer.page(page) + tile_size{address.codes, address.pairs};
  wait_copy_groups<0>();
  __syncwarp();
  const bool may_be_regular =
      staged.count == tile_tokens && (granularity::has_channel_magnitudes || regular_unit);
  if (is_salient) {
    encode_tile<Keys, token_class::salient, HeadDim>(given.record(row), scales, shares,
                                                     may_be_regular, staged, at);
  } else {
    encode_tile<Keys, token_class::regular, HeadDim>(given.record(row), scales, shares,
                                                     may_be_regular, staged, at);
  }
  __syncwarp();
}

/// A tile of a unit with what has to be read before it can begin.
struct prepared_tile {
  int32_t unit;
  int32_t tile;
  int32_t entry;  ///< of the row's list: the lane's token, not checked yet
  tile_address address;
};

/// Begins to read it; there may be no such tile. Tiles come from the last unit's end, which the L2
/// cache has seen last.
template <class Policies, class Storage>
__device__ __forceinline__ prepared_tile
prepare_tile(const store_arguments<Policies, Storage>& given, int32_t number, int32_t lane) {
  prepared_tile next{};
  if (number >= given.all_tiles()) return next;
  const auto num_tiles = static_cast<int32_t>(given.num_tiles());
  const auto unit_tiles = static_cast<int32_t>(given.unit_tiles());
  const int32_t index = given.all_tiles() - 1 - number;
  next.unit = given.by_tiles.quotient(index);
  next.tile = index - next.unit * unit_tiles;
  const int32_t tile = next.tile < num_tiles ? next.tile : next.tile - num_tiles;
  next.address = given.tiles[tile];
  const bool is_salient = tile < given.plan.salient_tiles;
  const int64_t first = is_salient
                            ? int64_t{tile} * tile_tokens
                            : given.num_salient + (tile - given.plan.salient_tiles) * tile_tokens;
  const int64_t last = is_salient ? given.num_salient : given.num_tokens;
  const int64_t row = next.unit / store_sides<Policies>::units;
  next.entry = given.lists[row * given.num_tokens + least<int64_t>(first + lane, last - 1)];
  return next;
}

namespace {

// Grid: as many blocks as run at once.
// Warp: one side of a tile at a time. Most tiles are dealt out, so that a warp knows its next one
// early; the last ones are taken by whoever is free. Lane: the words that are its own in the
// layout. Memory: 32 padded rows a warp in shared memory. k and v are read once, every byte of a
// tile is written once.
template <int HeadDim, class Policies, class Storage>
__global__ void __launch_bounds__(store_tuning::threads,
                                  HeadDim == 0 ? 1 : store_tuning::tile_blocks)
    store_kernel(const __grid_constant__ store_arguments<Policies, Storage> given) {
  extern __shared__ __align__(16) unsigned char store_shared[];
  using sides = store_sides<Policies>;
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
  const int32_t warp = static_cast<int32_t>(threadIdx.x) / 32;
  const int32_t head_dim = HeadDim == 0 ? given.layer.head_dim : HeadDim;
  auto* shared =
      reinterpret_cast<std::byte*>(store_shared) + warp * store_memory<Policies>::bytes(head_dim);
  const int32_t all_tiles = given.all_tiles();
  const auto num_tiles = static_cast<int32_t>(given.num_tiles());
  const int32_t warps = static_cast<int32_t>(gridDim.x) * store_tuning::num_warps;
  const int32_t dealt = all_tiles / warps * 3 / 4 * warps;
  int32_t next = static_cast<int32_t>(blockIdx.x) * store_tuning::num_warps + warp;
  const auto take = [&] {
    if (next < dealt) {
      next += warps;
      return next - warps;
    }
    int32_t taken = 0;
    if (lane == 0) taken = dealt + atomicAdd(given.next_tile, 1);
    return __shfl_sync(whole_warp, taken, 0);
  };
  int32_t number = take();
  prepared_tile prepared = prepare_tile(given, number, lane);
#pragma unroll 1
  while (number < all_tiles) {
    const prepared_tile now = prepared;
    number = take();
    prepared = prepare_tile(given, number, lane);
    const bool keys = sides::units == 2 ? now.unit % 2 == 0 : now.tile < num_tiles;
    const int32_t tile = now.tile < num_tiles ? now.tile : now.tile - num_tiles;
    if (keys) {
      run_tile<true, HeadDim>(given, now.unit, tile, now.entry, now.address, lane, shared);
    } else {
      run_tile<false, HeadDim>(given, now.unit, tile, now.entry, now.address, lane, shared);
    }
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
  const auto blocks_of = [](int64_t items, int32_t at_once) {
    return static_cast<unsigned>(least<int64_t>(ceil_div<int64_t>(items, store_tuning::num_warps),
                                                int64_t{at_once} * num_multiprocessors()));
  };
  if constexpr (store_sides<Policies>::count > 0) {
    statistics_kernel<HeadDim><<<blocks_of(given.num_chunks(), store_tuning::chunk_blocks),
                                 store_tuning::threads, 0, stream>>>(given);
    check_launch("store: statistics_kernel");
  }
  if (given.all_tiles() == 0) return;
  store_kernel<HeadDim>
      <<<blocks_of(given.all_tiles(), store_tuning::tile_blocks), store_tuning::threads,
         static_cast<size_t>(shared_bytes), stream>>>(given);
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
    launch_store_kernels<128>(stream, given);
  } else if (given.layer.head_dim == 64) {
    launch_store_kernels<64>(stream, given);
  } else {
    launch_store_kernels<0>(stream, given);
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

// The second step of storing prompts on the device, of policies whose segments have parameters:
// statistics of every channel over the tokens of a class, and what the segment's record keeps of
// them.
// In: k, v, class lists. Out: records; in the workspace, what codes need of them.
#pragma once

#include <cstddef>
#include <cstdint>

#include <zipcache/core/numerics.hpp>
#include <zipcache/detail/warp.cuh>
#include <zipcache/store/pair_arithmetic.cuh>
#include <zipcache/store/regular_codes.cuh>
#include <zipcache/store/store_arguments.cuh>
#include <zipcache/store/tile_encoder.cuh>

namespace zipcache {
namespace detail {

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
  __syncwarp();  // what the first lane acquired is there for all of them
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

}  // namespace detail
}  // namespace zipcache

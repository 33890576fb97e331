// The second step of storing prompts on the device, of policies whose segments have parameters:
// statistics of every channel over the tokens of a class, and what the segment's record keeps of
// them.
// In: k, v, salient bitmap. Out: records; in the workspace, what codes need of them.
#pragma once

#include <cstddef>
#include <cstdint>

#include <zipcache/core/launch.cuh>
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

/// Statistics of eight channels over some tokens of both classes.
template <class Quantizer, class Storage>
struct lane_statistics {
  using needed = needed_statistics<Quantizer>;

  unchecked_pair_range<Storage> salient[4];
  unchecked_pair_range<Storage> regular[4];
  uint32_t largest[4] = {};

  /// Whatever is not finite stays and shows at the end.
  __device__ __forceinline__ void add(uint4 values, bool is_salient) {
    const uint32_t pairs[4] = {values.x, values.y, values.z, values.w};
    ZIPCACHE_UNROLL
    for (int32_t j = 0; j < 4; ++j) {
      if constexpr (needed::salient) {
        if (is_salient) salient[j].include(pairs[j]);
      }
      if constexpr (needed::regular) {
        if (!is_salient) regular[j].include(pairs[j]);
      }
      if constexpr (needed::largest)
        largest[j] = higher_magnitude_or_nan<Storage>(largest[j], pairs[j]);
    }
  }
  __device__ __forceinline__ bool is_finite() const {
    bool finite = true;
    ZIPCACHE_UNROLL
    for (int32_t j = 0; j < 4; ++j) {
      if constexpr (needed::salient) finite = finite && salient[j].is_finite();
      if constexpr (needed::regular) finite = finite && regular[j].is_finite();
      if constexpr (needed::largest)
        finite = finite && magnitude_pair(add_zero_times<Storage>(largest[j], 0u)) == 0u;
    }
    return finite;
  }
  /// NaN, or zero for a magnitude: no value yet.
  __device__ __forceinline__ void clear() {
    ZIPCACHE_UNROLL
    for (int32_t j = 0; j < 4; ++j) {
      salient[j].lowest = salient[j].highest = nan_pair;
      regular[j].lowest = regular[j].highest = nan_pair;
      largest[j] = 0;
    }
  }
  /// What is not finite counts as no value.
  __device__ __forceinline__ void add_finite(uint4 values, bool is_salient) {
    const uint32_t pairs[4] = {values.x, values.y, values.z, values.w};
    const auto include = [](unchecked_pair_range<Storage>& range, uint32_t finite) {
      range.lowest = lower_pair<Storage>(range.lowest, finite);
      range.highest = higher_pair<Storage>(range.highest, finite);
    };
    ZIPCACHE_UNROLL
    for (int32_t j = 0; j < 4; ++j) {
      const uint32_t finite = finite_pair<Storage>(pairs[j]);
      if (is_salient) {
        include(salient[j], finite);
      } else {
        include(regular[j], finite);
      }
      largest[j] = higher_pair<Storage>(largest[j], magnitude_pair(finite));
    }
  }
};

/// Adds a warp's lowest or highest values to a statistic in memory, `place`. Of the lanes of the
/// same channels that of row `own_row` writes, modulo the rows.
template <bool Lowest, class Storage>
__device__ __forceinline__ void merge_extreme(const uint32_t (&extremes)[4], const row_lanes& grid,
                                              int32_t lane, int32_t own_row, int32_t* place) {
  const bool is_own = own_row % grid.rows == lane / grid.columns;
  ZIPCACHE_UNROLL
  for (int32_t j = 0; j < 4; ++j) {
    uint32_t all = extremes[j];
    for (int32_t other = 0; other < grid.rows; ++other) {
      const uint32_t pair =
          __shfl_sync(whole_warp, extremes[j], other * grid.columns + grid.column);
      all = Lowest ? lower_pair<Storage>(all, pair) : higher_pair<Storage>(all, pair);
    }
    const float values[2] = {first_of<Storage>(all), second_of<Storage>(all)};
    ZIPCACHE_UNROLL
    for (int32_t i = 0; i < 2; ++i) {
      // NaN: there was no value. Zeros are +0, as `include` makes them.
      if (!is_own || !(values[i] == values[i])) continue;
      const int32_t ordered = ordered_bits(values[i] + 0.0f);
      int32_t* to = place + (2 * j + i) * grid.columns + grid.column;
      if (Lowest) {
        atomicMin(to, ordered);
      } else {
        atomicMax(to, ordered);
      }
    }
  }
}

/// Adds the range of a class, whose first statistic is `first`.
template <class Storage>
__device__ __forceinline__ void merge_ranges(const unchecked_pair_range<Storage> (&ranges)[4],
                                             const row_lanes& grid, int32_t lane, int32_t head_dim,
                                             int32_t first, int32_t* memory) {
  const uint32_t lowest[4] = {ranges[0].lowest, ranges[1].lowest, ranges[2].lowest,
                              ranges[3].lowest};
  const uint32_t highest[4] = {ranges[0].highest, ranges[1].highest, ranges[2].highest,
                               ranges[3].highest};
  merge_extreme<true, Storage>(lowest, grid, lane, first, memory + first * head_dim);
  merge_extreme<false, Storage>(highest, grid, lane, first + 1, memory + (first + 1) * head_dim);
}

/// Neighbouring tokens of one side of a row, as the lanes of a warp read them.
template <class Storage>
struct token_chunk {
  int32_t count;          ///< of tokens; none where it is not positive
  const Storage* tokens;  ///< the lane's column of the first one
  uint32_t token_bytes;
  uint32_t salient;  ///< lane i: which of the i-th 32 tokens are

  /// Whether there is a salient or a regular token, whatever the lane.
  __device__ __forceinline__ bool has_salient() const {
    return __any_sync(whole_warp, salient != 0);
  }
  __device__ __forceinline__ bool has_regular(int32_t lane) const {
    const int32_t left = count - lane * 32;
    const uint32_t all = left >= 32 ? whole_warp : (left > 0 ? (1u << left) - 1u : 0u);
    return __any_sync(whole_warp, salient != all);
  }
};

/// Tokens [first, first + given.warp_tokens) of a row, as far as it has such.
template <class Policies, class Storage>
__device__ __forceinline__ token_chunk<Storage> chunk_at(
    const store_arguments<Policies, Storage>& given, bool keys, int64_t row, int64_t first,
    const row_lanes& grid, int32_t lane) {
  token_chunk<Storage> chunk{};
  chunk.count = static_cast<int32_t>(least<int64_t>(given.warp_tokens, given.num_tokens - first));
  if (chunk.count <= 0) return chunk;
  if (lane * 32 < chunk.count) chunk.salient = given.bitmap_word(row, first / 32 + lane);
  chunk.token_bytes = given.token_bytes(keys);
  chunk.tokens = row_at(given.tokens_of(keys, row) + grid.column * values_per_load,
                        static_cast<int32_t>(first), chunk.token_bytes);
  return chunk;
}

/// Calls add(the lane's part of a token, whether that one is salient) for its tokens, `AtOnce`
/// loads under way. Past the last token comes the last one again: it changes nothing.
template <int AtOnce, class Storage, class Add>
__device__ __forceinline__ void for_each_token(const token_chunk<Storage>& chunk,
                                               const row_lanes& grid, const Add& add) {
#pragma unroll 1
  for (int32_t first = 0; first < chunk.count; first += 32) {
    const Storage* tokens = row_at(chunk.tokens, first, chunk.token_bytes);
    const int32_t last = least(chunk.count - first, 32) - 1;
#pragma unroll 1
    for (int32_t start = grid.row; start <= last + grid.row; start += AtOnce * grid.rows) {
      const auto token = [&](int32_t load) { return least(start + load * grid.rows, last); };
      uint4 values[AtOnce];
      ZIPCACHE_UNROLL
      for (int32_t j = 0; j < AtOnce; ++j)
        values[j] = *reinterpret_cast<const uint4*>(row_at(tokens, token(j), chunk.token_bytes));
      const uint32_t salient = __shfl_sync(whole_warp, chunk.salient, first / 32);
      ZIPCACHE_UNROLL
      for (int32_t j = 0; j < AtOnce; ++j) add(values[j], (salient >> token(j) & 1u) != 0);
    }
  }
}

/// A warp's statistics of a chunk. finite: set to whether all values are
template <class Quantizer, class Storage>
__device__ __forceinline__ lane_statistics<Quantizer, Storage> gather_chunk(
    const token_chunk<Storage>& chunk, const row_lanes& grid, bool& finite) {
  lane_statistics<Quantizer, Storage> statistics;
  for_each_token<store_tuning::loads_at_once>(
      chunk, grid, [&](uint4 values, bool is_salient) { statistics.add(values, is_salient); });
  finite = !__any_sync(whole_warp, !statistics.is_finite());
  if (finite) return statistics;
  statistics.clear();
  for_each_token<1>(chunk, grid, [&](uint4 values, bool is_salient) {
    statistics.add_finite(values, is_salient);
  });
  return statistics;
}

/// Adds a warp's statistics of a chunk to those in memory.
template <class Quantizer, class Storage>
__device__ __forceinline__ void merge_statistics(
    const lane_statistics<Quantizer, Storage>& statistics, const token_chunk<Storage>& chunk,
    const row_lanes& grid, int32_t lane, int32_t head_dim, int32_t* memory) {
  using needed = needed_statistics<Quantizer>;
  if (chunk.count <= 0) return;
  if constexpr (needed::salient) {
    if (chunk.has_salient())
      merge_ranges(statistics.salient, grid, lane, head_dim, salient_lowest, memory);
  }
  if constexpr (needed::regular) {
    if (chunk.has_regular(lane))
      merge_ranges(statistics.regular, grid, lane, head_dim, regular_lowest, memory);
  }
  if constexpr (needed::largest) {
    merge_extreme<false, Storage>(statistics.largest, grid, lane, 0,
                                  memory + largest_magnitude * head_dim);
  }
}

/// From a side's statistics to what the record keeps and codes need, a channel a thread. True if no
/// value of this thread's channels needs a clamp.
template <class Quantizer, bool Keys, class Policies, class Storage>
__device__ __forceinline__ bool fit_unit(const store_arguments<Policies, Storage>& given,
                                         int64_t row, int32_t thread, const int32_t* memory,
                                         float2* scales) {
  using needed = needed_statistics<Quantizer>;
  const int32_t head_dim = given.layer.head_dim;
  const record_view<Policies, Storage> record = given.record(row);
  bool regular = true;
  const auto check = [&]<int Bits>(value_range range, float2 scale) {
    regular = regular && (range.empty() ||
                          needs_no_clamp<Bits>(range.lowest, range.highest, {scale.x, scale.y}));
  };
#pragma unroll 1
  for (int32_t channel = thread; channel < head_dim; channel += store_tuning::threads) {
    const int32_t place = statistic_place(channel, head_dim);
    const auto read = [&](int32_t which) {
      return float_of_ordered(__ldcg(memory + which * head_dim + place));
    };
    const channel_statistics statistics{{read(salient_lowest), read(salient_highest)},
                                        {read(regular_lowest), read(regular_highest)},
                                        read(largest_magnitude)};
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

/// Counts a block's chunk of a unit once all its threads came here. True in all threads if it was
/// the unit's last one; the statistics of the others can be read then.
__device__ __forceinline__ bool is_last_chunk(int32_t* chunks_done, int32_t chunks) {
  __shared__ bool is_last;
  __syncthreads();
  if (threadIdx.x == 0) {
    int32_t num_before;
    asm volatile("atom.add.acq_rel.gpu.global.s32 %0, [%1], 1;"
                 : "=r"(num_before)
                 : "l"(chunks_done)
                 : "memory");
    is_last = num_before == chunks - 1;
  }
  __syncthreads();
  return is_last;
}

/// Chunk `chunk` of a unit, by a block: its statistics into memory, and the unit's parameters if it
/// was the last one.
template <class Quantizer, bool Keys, int HeadDim, class Policies, class Storage>
__device__ __forceinline__ void run_chunk(const store_arguments<Policies, Storage>& given,
                                          int32_t unit, int32_t chunk) {
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  const int32_t lane = thread % 32;
  const int32_t head_dim = HeadDim == 0 ? given.layer.head_dim : HeadDim;
  const int64_t row = unit / store_sides<Policies>::units;
  const row_lanes grid(lane, head_dim);
  const int64_t first =
      (int64_t{chunk} * store_tuning::num_warps + thread / 32) * given.warp_tokens;
  const token_chunk<Storage> tokens = chunk_at(given, Keys, row, first, grid, lane);
  bool finite = true;
  const lane_statistics<Quantizer, Storage> statistics =
      gather_chunk<Quantizer>(tokens, grid, finite);
  // k, v and the bitmap are as they were before prepare_kernel, which was launched behind whatever
  // made them. What it writes is used from here on, and by the next kernel, which begins behind
  // this wait.
  wait_for_earlier_kernels();
  let_next_kernel_begin();
  int32_t* memory = given.statistics + int64_t{unit} * statistic_count * head_dim;
  merge_statistics(statistics, tokens, grid, lane, head_dim, memory);
  if (!finite && lane == 0) atomicOr(given.non_finite + unit, 1);
  if (!is_last_chunk(given.chunks_done + unit, given.chunks)) return;
  float2* scales = given.scales + int64_t{unit} * side_scales_count * head_dim;
  const bool all_finite = __ldcg(given.non_finite + unit) == 0;
  const bool fits = fit_unit<Quantizer, Keys>(given, row, thread, memory, scales);
  const bool regular = __syncthreads_and(all_finite && fits) != 0;
  if (thread == 0) given.is_regular[unit] = regular ? 1 : 0;
}

namespace {

// Grid: x = chunk of a unit, all units one after the other.
// Block: some neighbouring tokens of one side of a row; the one that finishes a row's side also
// makes its parameters. Warp: a part of these tokens. Lane: eight channels of every n-th token.
// Memory: registers. k, v and the bitmap are read once, eight loads of a lane under way.
template <int HeadDim, class Policies, class Storage>
__global__ void __launch_bounds__(store_tuning::threads,
                                  HeadDim == 0 ? 1 : store_tuning::chunk_blocks)
    statistics_kernel(const __grid_constant__ store_arguments<Policies, Storage> given) {
  using sides = store_sides<Policies>;
  const auto number = static_cast<int32_t>(blockIdx.x);
  const int32_t unit = given.by_chunks.quotient(number);
  const int32_t chunk = number - unit * given.chunks;
  const bool keys = sides::gathers_keys(unit % sides::units);
  if constexpr (sides::of_keys) {
    if (keys) run_chunk<typename sides::keys, true, HeadDim>(given, unit, chunk);
  }
  if constexpr (sides::of_values) {
    if (!keys) run_chunk<typename sides::values, false, HeadDim>(given, unit, chunk);
  }
}

}  // namespace

}  // namespace detail
}  // namespace zipcache

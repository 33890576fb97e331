// What the kernels that store prompts know of a call, and what they leave each other in the
// workspace.
#pragma once

#include <cstddef>
#include <cstdint>

#include <zipcache/core/batch.hpp>
#include <zipcache/core/cuda.cuh>
#include <zipcache/core/divisor.hpp>
#include <zipcache/core/view.hpp>
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
  static constexpr int32_t tile_blocks = 5;   ///< of a multiprocessor, at 128 channels
  static constexpr int32_t chunk_blocks = 7;  ///< likewise, of those that gather statistics
  /// Tokens whose statistics a warp gathers, where all multiprocessors have enough to do then.
  /// 8 x 4096 tokens take 90 us with 256, 92 with 128 (H200).
  static constexpr int32_t most_warp_tokens = 256;
  /// Loads of a lane under way at once while it does.
  static constexpr int32_t loads_at_once = 8;
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
  int32_t warp_tokens;  ///< tokens of a chunk that each of its warps has, a multiple of 32
  int32_t chunks;       ///< of statistics
  divisor by_head;      ///< divides a row by the number of heads,
  divisor by_chunks;    ///< a chunk by those of a unit,
  divisor by_tiles;     ///< and a tile by those of a unit

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

}  // namespace detail
}  // namespace zipcache

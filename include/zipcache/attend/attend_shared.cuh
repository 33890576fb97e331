// The shared memory of the tensor core kernel, and the numbers that it follows from.
#pragma once

#include <cstddef>
#include <cstdint>

#include <zipcache/attend/attend_merge.cuh>
#include <zipcache/attend/attend_schedule.cuh>
#include <zipcache/attend/attend_tasks.cuh>
#include <zipcache/attend/folded_query.cuh>
#include <zipcache/attend/tile_stream.cuh>
#include <zipcache/store/tile.hpp>

namespace zipcache::detail {

/// Numbers of the kernel for one head dimension and sets of query heads.
template <int32_t HeadDim, int32_t Sets>
struct attend_tuning {
  static constexpr int32_t channels = HeadDim * Sets;  // of output that a lane has a share of
  static constexpr int32_t warps_per_multiprocessor =  // by registers
      HeadDim > 160 ? 8 : (channels > 160 ? 12 : 16);
  /// A block of more warps has less to prepare and to merge for its tiles; one alone on a
  /// multiprocessor would leave it idle meanwhile.
  static constexpr int32_t most_warps =
      warps_per_multiprocessor >= 2 * most_attend_warps ? most_attend_warps : least_attend_warps;
  static constexpr int32_t blocks_of_most_warps = warps_per_multiprocessor / most_warps;
  static constexpr int32_t stages = 3;      // tiles in a warp's ring
  static constexpr int32_t own_stages = 2;  // beside what a warp keeps
  static constexpr int32_t slots = stages + own_stages;
};
inline constexpr int32_t most_attend_blocks = 4;  // on a multiprocessor

/// Whether a pass can serve two sets of query heads: where registers hold their output.
template <int32_t HeadDim>
inline constexpr bool fits_two_sets = HeadDim <= 128;

template <class Policies, class Storage, int32_t HeadDim, int32_t Sets>
struct alignas(128) attend_shared {
  static constexpr int32_t heads = Sets * set_heads;
  using salient = tile_record<Policies, token_class::salient>;
  using regular = tile_record<Policies, token_class::regular>;
  template <class Tile>
  static constexpr tile_size ring_tile_size() {
    // 16-bit tiles are read from global memory.
    if (!has_pairs(Tile::key_bits)) return {0, 0};
    return {Tile::code_bytes(HeadDim), Tile::pair_bytes(HeadDim)};
  }
  using tuning = attend_tuning<HeadDim, Sets>;
  static constexpr tile_size salient_copy = ring_tile_size<salient>();
  static constexpr tile_size regular_copy = ring_tile_size<regular>();
  /// Bulk copies are fast to and from multiples of 128.
  static constexpr int64_t slot_bytes =
      most<int64_t>(round_up<int64_t>(most(salient_copy.bytes(), regular_copy.bytes()), 128), 16);

  /// What a warp keeps once the prompt's tiles are through its ring: the output of earlier
  /// segments, and the queries for the segment and class that it works on. It takes the place of
  /// the ring's last slots.
  struct kept_state {
    float out[heads][HeadDim];
    folded_query<HeadDim, Sets> folded;
  };
  union alignas(128) warp_memory {
    std::byte ring[tuning::stages][slot_bytes];
    struct {
      std::byte own_ring[tuning::own_stages][slot_bytes];
      alignas(16) kept_state kept;
    };
    __device__ warp_memory() {}
  };

  pass_queries<Storage, HeadDim, heads> queries;
  alignas(16) Storage value_magnitudes[HeadDim];  // of the prompt's segment
  union {
    folded_query<HeadDim, Sets> folded[num_token_classes];  // for the prompt's segment, used first
    alignas(16) uint32_t row_query[Sets][HeadDim / 16 * 2 * 32];  // operands for 16-bit tiles
  };
  float row_scale[heads];
  float inverse_row_scale[heads];
  block_states<heads> states;
  ring_slot slots[tuning::most_warps][tuning::slots];
  attend_tasks tasks;
  uint32_t arrival;

  __device__ attend_shared() {}
  /// Lies behind this, for as many warps as the block has.
  __device__ warp_memory& warp(int32_t index) {
    return reinterpret_cast<warp_memory*>(this + 1)[index];
  }
  ZIPCACHE_HOST_DEVICE static constexpr size_t bytes(int32_t warps) {
    return sizeof(attend_shared) + static_cast<size_t>(warps) * sizeof(warp_memory);
  }
  __device__ float* out_of(int32_t index) { return &warp(index).kept.out[0][0]; }
  /// The prompt's record lies in a slot that is not used until queries are folded with it.
  static_assert(segment_record<Policies>::bytes(HeadDim) <= slot_bytes || slot_bytes == 16);
  __device__ std::byte* prompt_record() { return warp(0).ring[tuning::stages - 1]; }
};

/// Where a warp's ring goes on. The ring of the warp's own tiles has slots after the other's and
/// lies over its first ones in memory, since only one of them is in use.
template <class Tuning, bool Own>
struct ring_place {
  static constexpr int32_t first = Own ? Tuning::stages : 0;
  static constexpr int32_t size = Own ? Tuning::own_stages : Tuning::stages;
  int32_t slot = first;
  uint32_t parities = 0;  // one bit a slot: flips with every use

  /// Every piece begins with the first slot, so that it is known which ones are free.
  __device__ __forceinline__ void restart() { slot = first; }
  __device__ __forceinline__ uint32_t parity() const { return parities >> slot & 1u; }
  /// The slot `count` places ahead, at most all.
  __device__ __forceinline__ int32_t ahead(int32_t count) const {
    const int32_t target = slot + count;
    return target < first + size ? target : target - size;
  }
  __device__ __forceinline__ void advance() {
    parities ^= 1u << slot;
    ++slot;
    if (slot == first + size) slot = first;
  }
};

}  // namespace zipcache::detail

// The last step of storing prompts on the device: the codes and pairs of all tiles.
// In: k, v, class lists, tile addresses, what codes need of the segment. Out: pages.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include <zipcache/core/launch.cuh>
#include <zipcache/core/numerics.hpp>
#include <zipcache/detail/tensor_core.cuh>
#include <zipcache/detail/warp.cuh>
#include <zipcache/store/encode.cuh>
#include <zipcache/store/regular_tile.cuh>
#include <zipcache/store/store_arguments.cuh>
#include <zipcache/store/tile_encoder.cuh>

namespace zipcache {
namespace detail {

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
    wait_for_earlier_kernels();
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
  // statistics_kernel lets this kernel begin when the lists are there: rows may be asked for before
  // it ends.
  if constexpr (sides::count == 0) wait_for_earlier_kernels();
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
  wait_for_earlier_kernels();  // all blocks do, so that what follows this kernel follows those too
}

}  // namespace

}  // namespace detail
}  // namespace zipcache

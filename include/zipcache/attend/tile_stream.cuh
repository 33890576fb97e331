// Which tiles of a piece of work a warp takes, and how they reach its ring in shared memory.
#pragma once

#include <cstddef>
#include <cstdint>

#include <zipcache/attend/attend_schedule.cuh>
#include <zipcache/attend/tensor_core_tile.cuh>
#include <zipcache/detail/tensor_core.cuh>
#include <zipcache/store/device_layer.cuh>

/// Whether tiles come by bulk copies (TMA). 0 gives newer GPUs the way of sm_80; the same in a
/// whole program.
#ifndef ZIPCACHE_BULK_COPIES
#define ZIPCACHE_BULK_COPIES (__CUDA_ARCH__ >= 900)
#endif

namespace zipcache::detail {

__device__ inline uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

/// A tile in one word: its tokens, class and segment.
struct tile_mark {
  static constexpr int32_t none = -1;
  int32_t word = none;

  __device__ static tile_mark make(int32_t tokens, token_class which, int32_t segment) {
    return {tokens | (which == token_class::regular ? 64 : 0) | segment << 7};
  }
  __device__ int32_t tokens() const { return word & 63; }
  __device__ token_class which() const {
    return (word & 64) == 0 ? token_class::salient : token_class::regular;
  }
  /// Negative if there is no tile.
  __device__ int32_t segment() const { return word >> 7; }
};

/// One slot of a warp's ring: what was asked for into it and whether it is there. Slots are used in
/// turn. From sm_90 on a tile is two bulk copies that one lane starts, of its codes and of its
/// pairs, and a barrier in shared memory counts their bytes; before that, every lane copies its
/// share and the hardware counts groups.
struct alignas(16) ring_slot {
  uint64_t barrier;
  tile_mark mark;

  /// One lane, before the first use.
  __device__ void init() {
#if ZIPCACHE_BULK_COPIES
    asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(shared_address(&barrier)) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
  }
  /// What was written to the ring by ordinary stores comes before the copies that follow.
  __device__ static void order_after_stores() {
#if ZIPCACHE_BULK_COPIES
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
  }
  /// Whether one lane alone starts a copy.
  __device__ static constexpr bool by_one_lane() {
#if ZIPCACHE_BULK_COPIES
    return true;
#else
    return false;
#endif
  }
  /// Copies codes to `target` and pairs behind them. One lane if `by_one_lane`, else all lanes of
  /// the warp.
  __device__ __forceinline__ void start(std::byte* target, const tile_place& source,
                                        int32_t code_bytes, int32_t pair_bytes) {
#if ZIPCACHE_BULK_COPIES
    asm volatile(
        "mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(shared_address(&barrier)),
        "r"(code_bytes + pair_bytes)
        : "memory");
#endif
    copy(target, source.codes, code_bytes);
    if (pair_bytes > 0) copy(target + code_bytes, source.pairs, pair_bytes);
  }
  __device__ __forceinline__ void copy(std::byte* target, const std::byte* source, int32_t bytes) {
#if ZIPCACHE_BULK_COPIES
    const uint32_t address = shared_address(&barrier);
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
            "r"(shared_address(target)),
        "l"(source), "r"(bytes), "r"(address)
        : "memory");
#else
    for (int32_t offset = static_cast<int32_t>(threadIdx.x) % 32 * 16; offset < bytes;
         offset += 512) {
      begin_copy(target + offset, source + offset, true);
    }
#endif
  }
  /// Marks the end of one `start`, so that `wait` may count.
  __device__ __forceinline__ static void commit() {
#if !ZIPCACHE_BULK_COPIES
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
  }
  /// Waits until the tile is there. `younger` tiles (0 to 2) were asked for after it; `parity`
  /// flips with every use of the slot.
  __device__ __forceinline__ void wait(uint32_t parity, int32_t younger) {
#if ZIPCACHE_BULK_COPIES
    asm volatile(
        "{\n.reg .pred done;\nretry:\nmbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n@!done "
        "bra retry;\n}" ::"r"(shared_address(&barrier)),
        "r"(parity)
        : "memory");
#else
    if (younger == 0)
      asm volatile("cp.async.wait_group 0;" ::: "memory");
    else if (younger == 1)
      asm volatile("cp.async.wait_group 1;" ::: "memory");
    else
      asm volatile("cp.async.wait_group 2;" ::: "memory");
#endif
    __syncwarp();
  }
};

/// Lists the tiles of some pages for a warp, which works together on the list: every lane holds
/// what there is to know of one tile. In one of two orders:
///   shared  a warp's share of the tiles of one segment, every so manieth as there are warps, so
///           that the warps of a block together read memory in its order; of 32 pages the salient
///           tiles, then the regular ones, since going from one class to the other costs something
///   own     all tiles, page by page as they lie in memory, of any number of segments
template <class Policies, class Storage, int32_t HeadDim, bool Own>
class tile_list {
 public:
  /// The warp's tiles of pages [first, last): its share (one of the block's) of those of one
  /// segment, or all of them, which must lie behind the prompt's.
  __device__ tile_list(const device_layer<Policies, Storage>& layer, const sequence_counts& count,
                       const page_entry* table, int32_t first, int32_t last, int32_t share = 0)
      : layer_(layer),
        count_(count),
        table_(table),
        first_(first - 32),
        last_(last),
        share_(share) {}

  /// Whether the next tile is described; if it is not, either `refill` describes it or there is
  /// none.
  __device__ bool ready() const { return taken_ < described_; }
  /// Describes up to 32 tiles more. All lanes.
  __device__ void refill() {
    if (taken_ == total()) {
      first_ += 32;
      taken_ = salient_ = regular_ = 0;
    }
    described_ = taken_;
    if (first_ >= last_) return;
    const lane_page page = load_pages();
    const uint32_t ends = __shfl_sync(whole_warp, page.ends, 31);
    salient_ = static_cast<int32_t>(ends & 0xffffu);
    regular_ = static_cast<int32_t>(ends >> 16);
    if constexpr (!Own) {
      // Whoever gets one salient tile more gets no regular one more.
      salient_ = (salient_ + block_warps() - 1 - share_) >> warps_log2();
      regular_ = (regular_ + share_) >> warps_log2();
    }
    describe_tiles(page);
    described_ = least(total(), taken_ + 32);
  }

  /// Whether this lane is the one that holds the next tile, and what it holds.
  __device__ bool is_lanes_own() const { return ((taken_ ^ lane()) & 31) == 0; }
  __device__ tile_place own_place() const { return place_; }
  __device__ tile_mark own_mark() const { return mark_; }
  /// The next tile for all lanes. (A lane's number counts modulo 32.)
  __device__ tile_place place() const {
    return {shuffled(place_.codes), has_tile_pairs ? shuffled(place_.pairs) : nullptr};
  }
  __device__ tile_mark mark() const { return {__shfl_sync(whole_warp, mark_.word, taken_)}; }
  __device__ void advance() { ++taken_; }

 private:
  using salient_tile = tile_record<Policies, token_class::salient>;
  using regular_tile = tile_record<Policies, token_class::regular>;
  static constexpr bool has_tile_pairs =
      salient_tile::pair_bytes(HeadDim) + regular_tile::pair_bytes(HeadDim) > 0;

  /// The lane's page of the 32 at hand, and tiles up to and with it: salient ones in the low half
  /// of the word and regular ones in the high half, or all in the low one where classes stay
  /// together (a page has less than 2^11 tiles).
  struct lane_page {
    page_entry entry;
    uint32_t ends;
  };

  /// A block has four or eight warps.
  __device__ static int32_t warps_log2() { return block_warps() == 8 ? 3 : 2; }
  __device__ int32_t lane() const { return static_cast<int32_t>(threadIdx.x) % 32; }
  __device__ std::byte* shuffled(std::byte* pointer) const {
    return reinterpret_cast<std::byte*>(
        __shfl_sync(whole_warp, reinterpret_cast<unsigned long long>(pointer), taken_));
  }
  __device__ int32_t total() const { return salient_ + regular_; }
  __device__ static int32_t salient_tiles(int32_t tokens) {
    return salient_tile::bytes(HeadDim) > 0 ? ceil_div(tokens, tile_tokens) : 0;
  }
  __device__ static int32_t regular_tiles(int32_t tokens) {
    return regular_tile::bytes(HeadDim) > 0 ? ceil_div(tokens, tile_tokens) : 0;
  }

  __device__ lane_page load_pages() const {
    lane_page page{};
    if (first_ + lane() < last_) page.entry = table_[first_ + lane()];
    const auto salient = static_cast<uint32_t>(salient_tiles(page.entry.salient_tokens));
    const auto regular = static_cast<uint32_t>(regular_tiles(page.entry.regular_tokens));
    page.ends = Own ? salient + regular : salient | regular << 16;
#pragma unroll
    for (int32_t step = 1; step < 32; step *= 2) {
      const uint32_t below = __shfl_up_sync(whole_warp, page.ends, step);
      if (lane() >= step) page.ends += below;
    }
    return page;
  }

  /// Lane i finds out about tile taken_ + i.
  __device__ void describe_tiles(const lane_page& pages) {
    const int32_t index = taken_ + lane();
    const bool in_low_half = index < salient_;
    uint32_t tile = static_cast<uint32_t>(index);
    if constexpr (!Own) {
      const int32_t turn = in_low_half ? index : index - salient_;
      const int32_t place = in_low_half ? share_ : block_warps() - 1 - share_;
      tile = static_cast<uint32_t>((turn << warps_log2()) + place);
    }
    // The first page whose count goes beyond the tile.
    const auto end_of = [&](int32_t page) {
      const uint32_t ends = __shfl_sync(whole_warp, pages.ends, page);
      return in_low_half ? ends & 0xffffu : ends >> 16;
    };
    int32_t page = 0;
#pragma unroll
    for (int32_t step = 16; step > 0; step /= 2) {
      if (end_of(page + step - 1) <= tile) page += step;
    }
    const uint32_t begin_of_page = end_of(most(page - 1, 0));
    int32_t in_page = static_cast<int32_t>(tile - (page > 0 ? begin_of_page : 0u));
    const uint32_t number = __shfl_sync(whole_warp, pages.entry.page, page);
    const int32_t salient_tokens =
        __shfl_sync(whole_warp, static_cast<int32_t>(pages.entry.salient_tokens), page);
    const int32_t regular_tokens =
        __shfl_sync(whole_warp, static_cast<int32_t>(pages.entry.regular_tokens), page);
    const int32_t salient_here = salient_tiles(salient_tokens);
    bool salient = in_low_half;
    if constexpr (Own) {
      salient = in_page < salient_here;
      if (!salient) in_page -= salient_here;
    }
    constexpr page_layout layout = page_layout_of<Policies>(HeadDim);
    place_ = layer_.page(number) +
             (salient ? layout.template before<token_class::salient>(salient_here, in_page)
                      : layout.template before<token_class::regular>(salient_here, in_page));
    const int32_t tokens = (salient ? salient_tokens : regular_tokens) - in_page * tile_tokens;
    mark_ = tile_mark::make(least(tokens, tile_tokens),
                            salient ? token_class::salient : token_class::regular,
                            Own ? layer_.segment_of_page(count_, first_ + page) : 0);
  }

  const device_layer<Policies, Storage>& layer_;
  const sequence_counts& count_;
  const page_entry* table_;
  int32_t first_;  // the pages at hand are [first_, first_ + 32), up to last_
  int32_t last_;
  int32_t share_;
  int32_t taken_ = 0;      // of the tiles of the pages at hand
  int32_t described_ = 0;  // end of those that lanes hold
  int32_t salient_ = 0;    // all tiles in the order by pages
  int32_t regular_ = 0;
  // Of the lane's tile:
  tile_place place_{nullptr, nullptr};
  tile_mark mark_;
};

}  // namespace zipcache::detail

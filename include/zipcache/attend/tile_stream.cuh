// Which tiles of a piece of work a warp takes, and how they reach its ring in shared memory.
#pragma once

#include <cstddef>
#include <cstdint>

#include <zipcache/attend/tensor_core_tile.cuh>
#include <zipcache/store/device_layer.cuh>

namespace zipcache::detail {

/// Tiles on their way into one warp's ring, in the order in which they were asked for. From sm_90
/// on a tile is one bulk copy that one lane starts and a barrier in shared memory counts; before
/// that, every lane copies its share and the hardware counts groups.
template <int32_t Stages>
struct tile_copies {
  uint64_t barriers[Stages];

  __device__ void init() {
#if __CUDA_ARCH__ >= 900
    if (threadIdx.x % 32 == 0) {
      for (int32_t slot = 0; slot < Stages; ++slot)
        asm volatile("mbarrier.init.shared.b64 [%0], 1;" ::"r"(address_of(&barriers[slot]))
                     : "memory");
      asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncwarp();
#endif
  }
  /// What was written to the ring by ordinary stores comes before the copies that follow.
  __device__ static void order_after_stores() {
#if __CUDA_ARCH__ >= 900
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
  }
  /// Whether one lane alone starts a copy.
  __device__ static constexpr bool by_one_lane() {
#if __CUDA_ARCH__ >= 900
    return true;
#else
    return false;
#endif
  }
  /// One lane if `by_one_lane`, else all lanes of the warp.
  __device__ __forceinline__ void start(int32_t slot, void* target, const std::byte* source,
                                        int32_t bytes) {
#if __CUDA_ARCH__ >= 900
    const uint32_t barrier = address_of(&barriers[slot]);
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
                 : "memory");
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
            "r"(address_of(target)),
        "l"(source), "r"(bytes), "r"(barrier)
        : "memory");
#else
    for (int32_t offset = static_cast<int32_t>(threadIdx.x) % 32 * 16; offset < bytes;
         offset += 512) {
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address_of(target) +
                                                                     static_cast<uint32_t>(offset)),
                   "l"(source + offset)
                   : "memory");
    }
#endif
  }
  /// Marks the end of one `start`, or of none, so that `wait` may count.
  __device__ __forceinline__ static void commit() {
#if __CUDA_ARCH__ < 900
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
  }
  /// Waits until the tile of `slot` is there. `Pending` commits may be younger; `phase` flips with
  /// every use of the slot.
  template <int32_t Pending>
  __device__ __forceinline__ void wait(int32_t slot, uint32_t phase) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "{\n.reg .pred done;\nretry:\nmbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n@!done "
        "bra retry;\n}" ::"r"(address_of(&barriers[slot])),
        "r"(phase)
        : "memory");
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
#endif
    __syncwarp();
  }

 private:
  __device__ static uint32_t address_of(const void* shared) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  }
};

/// Lists tiles of both classes of some pages of one segment, and hands them out one by one: the
/// salient tiles of up to 32 pages, then their regular ones, then the next pages. A warp works
/// together on the list; every lane holds what there is to know of one tile. Of `Shares` warps each
/// takes every Shares-th tile, so that together they read memory in its order.
template <class Policies, class Storage, int32_t HeadDim, int32_t Shares>
class tile_list {
 public:
  /// A warp's share of the tiles of pages [first, last).
  __device__ tile_list(const device_layer<Policies, Storage>& layer, const page_entry* table,
                       int32_t first, int32_t last, int32_t share)
      : layer_(layer), table_(table), first_(first), last_(last), share_(share) {
    begin_pages();
  }

  __device__ bool empty() const { return taken_ == total(); }
  __device__ bool is_salient() const { return taken_ < salient_; }
  /// Byte offset of the next tile in the pool, and its number of tokens.
  __device__ int64_t offset() const {
    return static_cast<int64_t>(__shfl_sync(full_warp, tile_offset_, taken_ % 32)) * unit_bytes;
  }
  __device__ int32_t tokens() const { return __shfl_sync(full_warp, tile_tokens_, taken_ % 32); }
  /// Whether this lane is the one that holds the next tile, and what it holds.
  __device__ bool is_lanes_own() const { return ((taken_ ^ lane()) & 31) == 0; }
  __device__ int64_t own_offset() const { return static_cast<int64_t>(tile_offset_) * unit_bytes; }
  __device__ int32_t own_tokens() const { return tile_tokens_; }
  __device__ void advance() {
    ++taken_;
    if (empty()) {
      first_ += 32;
      begin_pages();
    } else if (taken_ % 32 == 0) {
      describe_tiles(load_pages());
    }
  }

 private:
  static constexpr int32_t unit_bytes = 64;  // pages and tiles are multiples of it
  static constexpr int32_t salient_bytes =
      static_cast<int32_t>(tile_record<Policies, token_class::salient>::bytes(HeadDim));
  static constexpr int32_t regular_bytes =
      static_cast<int32_t>(tile_record<Policies, token_class::regular>::bytes(HeadDim));

  /// The lane's page of the 32 at hand, and tiles of both classes up to and with it, packed in one
  /// word (a page has less than 2^11 tiles).
  struct lane_page {
    page_entry entry;
    uint32_t ends;
  };

  __device__ int32_t lane() const { return static_cast<int32_t>(threadIdx.x) % 32; }
  __device__ int32_t total() const { return salient_ + regular_; }

  __device__ lane_page load_pages() const {
    lane_page page{};
    if (first_ + lane() < last_) page.entry = table_[first_ + lane()];
    page.ends = (salient_bytes > 0 ? static_cast<uint32_t>(page.entry.salient_tiles()) : 0u) |
                (regular_bytes > 0 ? static_cast<uint32_t>(page.entry.regular_tiles()) : 0u) << 16;
#pragma unroll
    for (int32_t step = 1; step < 32; step *= 2) {
      const uint32_t below = __shfl_up_sync(full_warp, page.ends, step);
      if (lane() >= step) page.ends += below;
    }
    return page;
  }

  /// Begins with the 32 pages from first_ on, or with later ones if those have no tile.
  __device__ void begin_pages() {
    taken_ = 0;
    salient_ = 0;
    regular_ = 0;
    for (; first_ < last_; first_ += 32) {
      const lane_page page = load_pages();
      const uint32_t ends = __shfl_sync(full_warp, page.ends, 31);
      // Whoever gets one salient tile more gets no regular one more.
      salient_ = (static_cast<int32_t>(ends & 0xffffu) + Shares - 1 - share_) / Shares;
      regular_ = (static_cast<int32_t>(ends >> 16) + share_) / Shares;
      if (total() == 0) continue;
      describe_tiles(page);
      break;
    }
  }

  /// Lane i finds out about tile taken_ + i.
  __device__ void describe_tiles(const lane_page& pages) {
    const int32_t index = taken_ + lane();
    const bool salient = index < salient_;
    const uint32_t tile = static_cast<uint32_t>(
        salient ? index * Shares + share_ : (index - salient_) * Shares + Shares - 1 - share_);
    // The first page whose count goes beyond the tile.
    const auto end_of = [&](int32_t page) {
      const uint32_t ends = __shfl_sync(full_warp, pages.ends, page);
      return salient ? ends & 0xffffu : ends >> 16;
    };
    int32_t page = 0;
#pragma unroll
    for (int32_t step = 16; step > 0; step /= 2) {
      if (end_of(page + step - 1) <= tile) page += step;
    }
    const uint32_t begin_of_page = end_of(most(page - 1, 0));
    const int32_t in_page = static_cast<int32_t>(tile - (page > 0 ? begin_of_page : 0u));
    const uint32_t number = __shfl_sync(full_warp, pages.entry.page, page);
    const int32_t salient_tokens =
        __shfl_sync(full_warp, static_cast<int32_t>(pages.entry.salient_tokens), page);
    const int32_t regular_tokens =
        __shfl_sync(full_warp, static_cast<int32_t>(pages.entry.regular_tokens), page);
    const int32_t skipped = salient ? 0 : ceil_div(salient_tokens, tile_tokens) * salient_bytes;
    const int32_t in_bytes = skipped + in_page * (salient ? salient_bytes : regular_bytes);
    tile_offset_ = static_cast<uint32_t>(
        (number * static_cast<uint64_t>(layer_.page_bytes) + static_cast<uint64_t>(in_bytes)) /
        unit_bytes);
    tile_tokens_ = (salient ? salient_tokens : regular_tokens) - in_page * tile_tokens;
  }

  const device_layer<Policies, Storage>& layer_;
  const page_entry* table_;
  int32_t first_;  // the pages at hand are [first_, first_ + 32), up to last_
  int32_t last_;
  int32_t share_;
  int32_t taken_ = 0;
  int32_t salient_ = 0;
  int32_t regular_ = 0;
  // Of the lane's tile:
  uint32_t tile_offset_ = 0;
  int32_t tile_tokens_ = 0;
};

}  // namespace zipcache::detail

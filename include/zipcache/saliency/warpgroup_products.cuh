// Products of keys with probe rows by warpgroups (sm_90a): four of them hold 256 rows of one side
// in registers, and the other side's rows come through a ring in shared memory. A block goes from
// one piece of work to the next without emptying the ring. While the products of one half of a
// chunk are under way, the exponentials of the other half are added up.
#pragma once

#include <cstddef>
#include <cstdint>

#include <zipcache/core/numerics.hpp>
#include <zipcache/core/types.hpp>
#include <zipcache/detail/shared_barrier.cuh>
#include <zipcache/detail/tensor_core.cuh>
#include <zipcache/detail/warp.cuh>
#include <zipcache/detail/warpgroup.cuh>
#include <zipcache/saliency/stationary_rows.cuh>
#include <zipcache/saliency/warpgroup_work.cuh>

namespace zipcache::detail {

#if ZIPCACHE_HAS_WARPGROUPS

/// Copies rows [first, last), a chunk at most, to where the products read them. `thread` is one of
/// those that feed.
template <int HeadDim, class Work, class Element>
__device__ __forceinline__ void begin_rows(const Work& work, const Element* rows, int32_t first,
                                           int32_t last, int32_t thread, std::byte* to) {
  using tuning = warpgroup_tuning<HeadDim>;
  constexpr int32_t columns = HeadDim / 8;
  constexpr int32_t rows_at_once = 32 * tuning::feeding_warps / columns;
  const int32_t own = thread / columns;
  const int32_t column = thread % columns;
  if (own >= rows_at_once) return;
  std::byte* panel = to + column / 8 * tuning::panel_bytes;
  const int32_t end = least(last - first, tuning::chunk_rows);
  const bool is_whole = end == tuning::chunk_rows && HeadDim == work.given.head_dim;
  const int32_t period = work.period();
  const int64_t distance = work.period_distance();
  if (is_whole && period <= 8 && 8 % period == 0) {
    // Eight rows further, the place in the panel follows by an addition, too.
    const int64_t step = 8 / period * distance;
#pragma unroll 1
    for (int32_t start = own; start < 8; start += rows_at_once) {
      const Element* from = work.passing_row(rows, first + start) + 8 * column;
      std::byte* place = panel + swizzled_panel::offset(start, column % 8);
#pragma unroll
      for (int32_t i = 0; i < tuning::chunk_rows / 8; ++i) {
        begin_copy(place + i * 8 * swizzled_panel::row_bytes, from, true);
        from += step;
      }
    }
    return;
  }
  const int32_t step = period * ceil_div(rows_at_once, period);
#pragma unroll 1
  for (int32_t start = own; start < step; start += rows_at_once) {
    const Element* from = work.passing_row(rows, first + start) + 8 * column;
#pragma unroll 4
    for (int32_t row = start; row < tuning::chunk_rows; row += step) {
      const bool used = row < end && 8 * column < work.given.head_dim;
      begin_copy(panel + swizzled_panel::offset(row, column % 8), used ? from : rows, used);
      from += step / period * distance;
    }
  }
}

/// Waits for a chunk's copies, all but the `Younger` last groups, and tells those who multiply.
template <int Younger>
__device__ __forceinline__ void publish_copies(shared_barrier& filled) {
  wait_copy_groups<Younger>();
  let_products_read();
  filled.arrive();
}

/// The warps that feed the ring: all chunks of all pieces of the block's work. A piece without
/// chunks takes a stage, too.
template <int HeadDim, class Element, class Work>
__device__ __forceinline__ void feed_products(const Work& work, warpgroup_memory<HeadDim>& shared,
                                              int32_t thread) {
  using tuning = warpgroup_tuning<HeadDim>;
  static_assert(tuning::chunk_rows <= 32 * tuning::feeding_warps);
  int32_t count = 0;
  for (int64_t number = blockIdx.x; number < work.num_spans(); number += gridDim.x) {
    const product_span span = work.span(number, thread % 32);
    const Element* rows = work.passing_rows(span);
    int32_t index = 0;
    do {
      const int32_t stage = count % tuning::stages;
      const int32_t first = span.first + index * tuning::chunk_rows;
      const int32_t own = least(thread, tuning::chunk_rows - 1);
      // On its way while the warp waits.
      const auto note = work.load_note(span, first + own);
      if (count >= tuning::stages) shared.emptied[stage].wait(count / tuning::stages - 1);
      if (index < span.num_chunks) {
        begin_rows<HeadDim>(work, rows, first, span.last, thread, shared.chunks[stage].rows);
        work.save_note(note, own, shared.notes[stage]);
      }
      end_copy_group();
      if (thread == 0) shared.spans[stage] = span;
      if (count > 0) publish_copies<1>(shared.filled[(count - 1) % tuning::stages]);
      ++count;
      ++index;
    } while (index < span.num_chunks);
  }
  if (count > 0) publish_copies<0>(shared.filled[(count - 1) % tuning::stages]);
}

/// Starts the products of the rows that stay with those at `address`, in shared memory.
template <int HeadDim, class Element>
__device__ __forceinline__ void start_products(float (&sums)[warpgroup_tuning<HeadDim>::num_sums],
                                               const stationary_rows<Element, HeadDim, 1>& staying,
                                               uint32_t address) {
  const uint64_t rows = swizzled_panel::describe(address);
  begin_products();
  ZIPCACHE_UNROLL
  for (int32_t step = 0; step < HeadDim / 16; ++step) {
    const int32_t offset = step / 4 * warpgroup_tuning<HeadDim>::panel_bytes + step % 4 * 32;
    multiply_async<Element>(sums, staying.words[0][step], rows + (offset >> 4), step > 0);
  }
  end_product_group();
}

/// The same value, which the compiler does not compute anew wherever it is needed.
__device__ __forceinline__ uint32_t kept(uint32_t value) {
  asm volatile("" : "+r"(value));
  return value;
}

/// The warps that multiply.
template <int HeadDim, class Element, class Work>
__device__ __forceinline__ void take_products(const Work& work, warpgroup_memory<HeadDim>& shared,
                                              int32_t warp, int32_t lane) {
  using tuning = warpgroup_tuning<HeadDim>;
  const uint32_t chunks = kept(static_cast<uint32_t>(__cvta_generic_to_shared(shared.chunks)));
  shared_barrier& own_turn = shared.turns[warp / 4];
  shared_barrier& next_turn = shared.turns[(warp / 4 + 1) % tuning::num_warpgroups];
  if (warp / 4 + 1 == tuning::num_warpgroups && lane == 0) next_turn.arrive();
  int32_t turn = 0;
  int32_t stage = 0;
  int32_t round = 0;
  const auto release = [&] {
    __syncwarp();
    if (lane == 0) shared.emptied[stage].arrive();
    if (++stage == tuning::stages) {
      stage = 0;
      ++round;
    }
  };
  for (int64_t number = blockIdx.x; number < work.num_spans(); number += gridDim.x) {
    shared.filled[stage].wait(round);
    const product_span span = shared.spans[stage];
    typename Work::state state = work.begin(span, warp, lane);
    if (span.num_chunks == 0) release();
    stationary_rows<Element, HeadDim, 1> staying;
    staying.load(work.given.head_dim, lane, work.staying_rows(span, warp));
    if (work.negates()) staying.negate();
#pragma unroll 1
    for (int32_t index = 0; index < span.num_chunks; ++index) {
      shared.filled[stage].wait(round);
      ZIPCACHE_UNROLL
      for (int32_t half = 0; half < 2; ++half) {
        const int32_t first = half * tuning::product_rows;
        const auto next = work.expect(span, index, shared.notes[stage], first, warp, lane, state);
        float sums[tuning::num_sums];
        own_turn.wait(turn++);
        start_products<HeadDim>(
            sums, staying,
            chunks + stage * tuning::chunk_bytes + first * swizzled_panel::row_bytes);
        if (lane == 0) next_turn.arrive();
        wait_products<0>(sums);
        work.add(sums, next, span, shared.notes[stage], first, warp, lane, state);
      }
      release();
    }
    work.finish(span, warp, lane, state);
  }
}

/// All of a block's pieces of work.
template <int HeadDim, class Element, class Work>
__device__ __forceinline__ void run_products(const Work& work) {
  using tuning = warpgroup_tuning<HeadDim>;
  extern __shared__ __align__(1024) unsigned char products_shared[];
  auto& shared = *reinterpret_cast<warpgroup_memory<HeadDim>*>(products_shared);
  const auto thread = static_cast<int32_t>(threadIdx.x);
  // The same for all lanes, and known to be.
  const int32_t warp = __shfl_sync(whole_warp, thread / 32, 0);
  if (thread == 0) {
    for (int32_t stage = 0; stage < tuning::stages; ++stage) {
      shared.filled[stage].init(32 * tuning::feeding_warps);
      shared.emptied[stage].init(tuning::num_warps);
    }
    for (shared_barrier& turn : shared.turns) turn.init(4);
    publish_barriers();
  }
  __syncthreads();
  if (warp >= tuning::num_warps) {
    give_registers<tuning::feeding_registers>();
    feed_products<HeadDim, Element>(work, shared, thread - 32 * tuning::num_warps);
  } else {
    take_registers<tuning::multiplying_registers>();
    take_products<HeadDim, Element>(work, shared, warp, thread % 32);
  }
}

#endif

}  // namespace zipcache::detail

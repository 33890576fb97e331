// Products of keys with probe rows by warpgroups (sm_90a): four of them hold 256 rows of one side
// in registers, and the other side's rows come through a ring in shared memory, as do those that
// stay, before them. A block goes from one piece of work to the next without emptying the ring.
// While one warpgroup's products are under way, others add up exponentials.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include <zipcache/core/numerics.hpp>
#include <zipcache/core/types.hpp>
#include <zipcache/detail/shared_barrier.cuh>
#include <zipcache/detail/tensor_core.cuh>
#include <zipcache/detail/warp.cuh>
#include <zipcache/detail/warpgroup.cuh>
#include <zipcache/saliency/stationary_rows.cuh>
#include <zipcache/saliency/warpgroup_rows.cuh>
#include <zipcache/saliency/warpgroup_work.cuh>

namespace zipcache::detail {

#if ZIPCACHE_HAS_WARPGROUPS

/// A thread's share of the copies of rows that follow each other, a chunk at a time, to where the
/// products read them: 16 bytes of every `step_rows`-th row.
template <int HeadDim, class Rows>
class row_copies {
 public:
  using tuning = warpgroup_tuning<HeadDim>;
  /// `thread` is one of those that feed.
  __device__ row_copies(const Rows& rows, int32_t first, int32_t thread)
      : rows_(rows), own_(thread / columns), column_(thread % columns), first_(first) {
    const int32_t period = rows.period();
    is_regular_ = rows.given.head_dim == HeadDim && period <= step_rows && step_rows % period == 0;
    if (!is_regular_) return;
    from_ = rows.row(first + own_) + 8 * column_;
    step_ = step_rows / period * rows.period_distance();
  }

  /// Begins to copy the next `count` rows, all of a chunk or the last of all. The rest of the
  /// product that they end in becomes zeros.
  __device__ __forceinline__ void begin(int32_t count, std::byte* to) {
    if (own_ >= step_rows) return;
    std::byte* panel = to + column_ / 8 * tuning::panel_bytes;
    if (is_regular_ && count % tuning::product_rows == 0) {
      begin_regular(count, panel);
    } else {
      begin_any(count, panel);
    }
    first_ += tuning::chunk_rows;
  }

 private:
  static constexpr int32_t columns = HeadDim / 8;
  static constexpr int32_t step_rows = least(32 * tuning::feeding_warps / columns, 8);
  static_assert(8 % step_rows == 0);

  /// Rows at a fixed distance, addresses by additions.
  __device__ __forceinline__ void begin_regular(int32_t count, std::byte* panel) {
    std::byte* places[8 / step_rows];  // of the first eight rows
    for (int32_t i = 0; i < 8 / step_rows; ++i)
      places[i] = panel + swizzled_panel::offset(own_ + i * step_rows, column_ % 8);
#pragma unroll 1
    for (int32_t product = 0; product < count; product += tuning::product_rows) {
#pragma unroll
      for (int32_t row = 0; row < tuning::product_rows; row += step_rows) {
        begin_copy(places[row % 8 / step_rows] + row / 8 * 8 * swizzled_panel::row_bytes, from_,
                   true);
        from_ += step_;
      }
#pragma unroll
      for (std::byte*& place : places) place += tuning::product_rows * swizzled_panel::row_bytes;
    }
  }
  __device__ __forceinline__ void begin_any(int32_t count, std::byte* panel) {
#pragma unroll 1
    for (int32_t row = own_; row < round_up(count, tuning::product_rows); row += step_rows) {
      const bool used = row < count && 8 * column_ < rows_.given.head_dim;
      begin_copy(panel + swizzled_panel::offset(row, column_ % 8),
                 used ? rows_.row(first_ + row) + 8 * column_ : rows_.row(0), used);
    }
  }

  using pointer = decltype(std::declval<Rows>().row(0));
  Rows rows_;
  int32_t own_;     ///< the first row of a chunk that the thread copies
  int32_t column_;  ///< of 8 channels
  int32_t first_;   ///< row of the next chunk
  bool is_regular_;
  pointer from_ = nullptr;
  int64_t step_ = 0;
};

/// A thread's part in feeding the ring: chunk after chunk, of all pieces of the block's work.
template <int HeadDim>
class ring_feeder {
 public:
  using tuning = warpgroup_tuning<HeadDim>;
  __device__ ring_feeder(warpgroup_memory<HeadDim>& shared, int32_t thread)
      : shared_(shared), thread_(thread) {}

  /// `num_chunks` of rows from row `first` on, and what goes with them.
  template <class Rows>
  __device__ __forceinline__ void feed(const product_span& span, const Rows& rows, int32_t first,
                                       int32_t num_chunks) {
    static_assert(tuning::chunk_rows <= 32 * tuning::feeding_warps);
    const int32_t own = least(thread_, tuning::chunk_rows - 1);
    row_copies<HeadDim, Rows> copies(rows, first, thread_);
    auto note = rows.load_note(first + own);
#pragma unroll 1
    for (int32_t index = 0; index < num_chunks; ++index) {
      const int32_t stage = begun_ % tuning::stages;
      if (begun_ >= tuning::stages) wait_until_emptied(stage, begun_ / tuning::stages - 1);
      copies.begin(most(0, least(rows.end - first, tuning::chunk_rows)),
                   shared_.chunks[stage].rows);
      end_copy_group();
      rows.save_note(note, first + own, own, shared_.notes[stage]);
      first += tuning::chunk_rows;
      // On its way while the copies are.
      note = rows.load_note(first + own);
      if (index == 0 && thread_ == 0) shared_.spans[stage] = span;
      ++begun_;
      publish<1>();
    }
  }
  /// Behind the last chunk.
  __device__ __forceinline__ void finish() { publish<0>(); }

 private:
  /// The chunk that was begun last is not held back meanwhile.
  __device__ __forceinline__ void wait_until_emptied(int32_t stage, int32_t round) {
    if (__all_sync(whole_warp, shared_.emptied[stage].has_ended(round))) return;
    publish<0>();
    shared_.emptied[stage].wait(round);
  }
  /// Tells those who multiply of all chunks but the `Younger` last ones, when they are there.
  template <int Younger>
  __device__ __forceinline__ void publish() {
    if (published_ + Younger >= begun_) return;
    wait_copy_groups<Younger>();
    let_products_read();
    shared_.filled[published_ % tuning::stages].arrive();
    ++published_;
  }

  warpgroup_memory<HeadDim>& shared_;
  int32_t thread_;
  int32_t begun_ = 0;
  int32_t published_ = 0;  ///< at most one chunk fewer
};

/// The pieces of a block's work, by their numbers: forth and back over the blocks, so that none has
/// always the larger ones.
template <class Action>
__device__ __forceinline__ void for_spans_of_block(int64_t num_spans, const Action& action) {
  const int64_t num_blocks = gridDim.x;
  bool is_back = false;
  for (int64_t first = 0; first < num_spans; first += num_blocks) {
    const int64_t number = first + (is_back ? num_blocks - 1 - blockIdx.x : blockIdx.x);
    if (number < num_spans) action(number);
    is_back = !is_back;
  }
}

/// The warps that feed the ring. For each piece, the rows that stay come first, as do those that
/// pass: so they are there before they are needed.
template <int HeadDim, class Work>
__device__ __forceinline__ void feed_products(const Work& work, warpgroup_memory<HeadDim>& shared,
                                              int32_t thread) {
  using tuning = warpgroup_tuning<HeadDim>;
  ring_feeder<HeadDim> ring(shared, thread);
  for_spans_of_block(work.num_spans(), [&](int64_t number) {
    const product_span span = work.span(number, thread % 32);
    ring.feed(span, work.staying(span), work.first_staying(span), tuning::staying_chunks);
    ring.feed(span, work.passing(span), span.first, ceil_div(span.num_products, 2));
  });
  ring.finish();
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

/// The rows of a warp, from a chunk of those that stay.
template <int HeadDim, class Element>
__device__ __forceinline__ void load_staying(stationary_rows<Element, HeadDim, 1>& staying,
                                             const std::byte* chunk, int32_t warp, int32_t lane) {
  using tuning = warpgroup_tuning<HeadDim>;
  const int32_t row = 16 * warp % tuning::chunk_rows + lane % 16;
  ZIPCACHE_UNROLL
  for (int32_t step = 0; step < HeadDim / 16; ++step) {
    const int32_t piece = step % 4 * 2 + lane / 16;
    load_matrices(staying.words[0][step],
                  chunk + step / 4 * tuning::panel_bytes + swizzled_panel::offset(row, piece));
  }
}

/// The chunk that comes next to those who multiply.
template <int HeadDim>
class ring_reader {
 public:
  using tuning = warpgroup_tuning<HeadDim>;
  __device__ explicit ring_reader(warpgroup_memory<HeadDim>& shared) : shared_(shared) {}

  __device__ __forceinline__ int32_t stage() const { return stage_; }
  __device__ __forceinline__ void wait() { shared_.filled[stage_].wait(round_); }
  /// The warp needs it no more.
  __device__ __forceinline__ void release(int32_t lane) {
    __syncwarp();
    if (lane == 0) shared_.emptied[stage_].arrive();
    if (++stage_ == tuning::stages) {
      stage_ = 0;
      ++round_;
    }
  }

 private:
  warpgroup_memory<HeadDim>& shared_;
  int32_t stage_ = 0;
  int32_t round_ = 0;
};

/// The warps that multiply.
template <int HeadDim, class Element, class Work>
__device__ __forceinline__ void take_products(const Work& work, warpgroup_memory<HeadDim>& shared,
                                              int32_t warp, int32_t lane) {
  using tuning = warpgroup_tuning<HeadDim>;
  const uint32_t chunks = kept(static_cast<uint32_t>(__cvta_generic_to_shared(shared.chunks)));
  ring_reader<HeadDim> ring(shared);
  for_spans_of_block(work.num_spans(), [&](int64_t) {
    ring.wait();
    product_span span = shared.spans[ring.stage()];
    span.num_products = __shfl_sync(whole_warp, span.num_products, 0);  // known to be uniform
    stationary_rows<Element, HeadDim, 1> staying;
    typename Work::state state;
#pragma unroll 1
    for (int32_t index = 0; index < tuning::staying_chunks; ++index) {
      ring.wait();
      if (16 * warp / tuning::chunk_rows == index) {
        load_staying<HeadDim>(staying, shared.chunks[ring.stage()].rows, warp, lane);
        state = work.begin(span, shared.notes[ring.stage()], warp, lane);
      }
      ring.release(lane);
    }
    if (work.negates()) staying.negate();
#pragma unroll 1
    for (int32_t product = 0; product < span.num_products; product += 2) {
      ring.wait();
      const auto& notes = shared.notes[ring.stage()];
      bool is_needed[2];
      ZIPCACHE_UNROLL
      for (int32_t half = 0; half < 2; ++half) {
        is_needed[half] =
            work.is_needed(span, product + half, notes, half * tuning::product_rows, warp, state);
      }
      ZIPCACHE_UNROLL
      for (int32_t half = 0; half < 2; ++half) {
        if (product + half == span.num_products) break;
        const int32_t first = half * tuning::product_rows;
        if (!is_needed[half]) {
          work.skip(state);
          continue;
        }
        const auto next = work.expect(span, product + half, notes, first, warp, lane, state);
        float sums[tuning::num_sums];
        start_products<HeadDim>(
            sums, staying,
            chunks + ring.stage() * tuning::chunk_bytes + first * swizzled_panel::row_bytes);
        wait_products<0>(sums);
        work.add(sums, next, span, notes, first, warp, lane, state);
      }
      ring.release(lane);
    }
    work.finish(span, warp, lane, state);
  });
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
    publish_barriers();
  }
  __syncthreads();
  if (warp >= tuning::num_warps) {
    give_registers<tuning::feeding_registers>();
    feed_products(work, shared, thread - 32 * tuning::num_warps);
  } else {
    take_registers<tuning::multiplying_registers>();
    take_products<HeadDim, Element>(work, shared, warp, thread % 32);
  }
}

#endif

}  // namespace zipcache::detail

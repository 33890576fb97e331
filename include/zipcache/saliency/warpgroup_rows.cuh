// Rows that saliency's warpgroups multiply: how many at a time, which piece of work they belong to,
// where they come from and what goes with them, and where a block has them in shared memory. What
// is multiplied with what: warpgroup_work.cuh.
#pragma once

#include <cstddef>
#include <cstdint>

#include <zipcache/core/numerics.hpp>
#include <zipcache/detail/shared_barrier.cuh>
#include <zipcache/detail/warpgroup.cuh>
#include <zipcache/saliency/saliency_arguments.cuh>

namespace zipcache::detail {

template <int HeadDim>
struct warpgroup_tuning {
  static constexpr int32_t num_warpgroups = 4;  ///< that multiply; one block a multiprocessor
  static constexpr int32_t num_warps = 4 * num_warpgroups;
  static constexpr int32_t feeding_warps = 4;
  static constexpr int32_t threads = 32 * (num_warps + feeding_warps);
  /// Of a lane. What the feeding warps give back of what all were launched with is all that the
  /// others can get; if that were too little, they would wait for ever.
  static constexpr int32_t launch_registers = 96;
  static constexpr int32_t feeding_registers = 32;
  static constexpr int32_t multiplying_registers = 112;
  static_assert(feeding_warps * feeding_registers + num_warps * multiplying_registers <=
                (feeding_warps + num_warps) * launch_registers);
  static constexpr int32_t block_rows = 16 * num_warps;
  /// Of one product. Its sums and the rows that stay must fit a lane's registers.
  static constexpr int32_t product_rows = HeadDim <= 128 ? 64 : 32;
  static constexpr int32_t num_sums = product_rows / 2;
  static constexpr int32_t chunk_rows = 2 * product_rows;
  static constexpr int32_t staying_chunks = block_rows / chunk_rows;
  static_assert(chunk_rows >= 64, "a warpgroup's rows must lie in one chunk");
  /// Of the ring. Six let the rows that stay come while the piece before goes on; four cost 2 us of
  /// 148 (H200, 8 x 4096 tokens).
  static constexpr int32_t stages = 6;
  /// Pieces of work that a call should have: three for each of the H200's 132 multiprocessors.
  static constexpr int64_t target_spans = 400;
  static constexpr int32_t panels = ceil_div(HeadDim, 64);
  static constexpr int32_t panel_bytes = chunk_rows * swizzled_panel::row_bytes;
  static constexpr int32_t chunk_bytes = panels * panel_bytes;
};

/// A piece of a block's work: rows of one item that stay, and the stretch of rows that pass.
struct product_span {
  int32_t item = 0;
  int32_t block = 0;  ///< of the rows that stay
  int32_t split = 0;  ///< of the context
  int32_t first = 0;  ///< of the rows that pass
  int32_t last = 0;   ///< behind them
  int32_t num_products = 0;
};

/// What goes with a chunk's rows that are probes.
template <int HeadDim>
struct probe_notes {
  /// To base 2. As the lanes read them: a lane's two columns of 8, then those of the 8 that follow.
  float minus_lse[warpgroup_tuning<HeadDim>::chunk_rows];
  int32_t last_keys[warpgroup_tuning<HeadDim>::chunk_rows];  ///< that they see

  __device__ static int32_t place_of(int32_t row) {
    return (row & ~15) | (row >> 1 & 3) << 2 | (row >> 3 & 1) << 1 | (row & 1);
  }
};

/// What a block has in shared memory.
template <int HeadDim>
struct warpgroup_memory {
  using tuning = warpgroup_tuning<HeadDim>;
  struct chunk {
    std::byte rows[tuning::chunk_bytes];
  };
  chunk chunks[tuning::stages];
  probe_notes<HeadDim> notes[tuning::stages];
  product_span spans[tuning::stages];      ///< what the chunk is of
  shared_barrier filled[tuning::stages];   ///< by all threads that feed
  shared_barrier emptied[tuning::stages];  ///< by all warps that multiply
};

/// Keys of an item as rows to multiply. Nothing goes with them.
template <class Element>
struct key_stream {
  const saliency_arguments<Element>& given;
  const Element* keys;
  int32_t end;  ///< of the rows that are looked at

  __device__ const Element* row(int32_t i) const { return keys + i * given.k.token_stride; }
  /// Every n-th row is so far from the one before.
  __device__ int32_t period() const { return 1; }
  __device__ int64_t period_distance() const { return given.k.token_stride; }

  struct note {};
  __device__ note load_note(int32_t) const { return {}; }
  template <class Notes>
  __device__ static void save_note(note, int32_t, int32_t, Notes&) {}
};

/// Probe rows of an item, with the last keys that they see and, if `Weighed`, their log-sum-exp.
template <bool Weighed, class Element>
struct probe_stream {
  const saliency_arguments<Element>& given;
  const Element* queries;
  int32_t item;
  int32_t end;

  __device__ const Element* row(int32_t i) const { return given.query(queries, i); }
  __device__ int32_t period() const { return given.group; }
  __device__ int64_t period_distance() const { return given.probes.q.token_stride; }

  /// As loaded, so that nobody waits for it before it is saved.
  struct note {
    float lse = 0.0f;
    int64_t position = 0;
  };
  __device__ note load_note(int32_t row) const {
    row = least(row, end - 1);
    note loaded;
    if constexpr (Weighed) loaded.lse = given.lse[given.lse_index(item, row)];
    loaded.position = given.positions(item)[given.probe_of(row)];
    return loaded;
  }
  /// A row that is not there weighs nothing, and sees every key where rows are weighed, so that
  /// rows stay ascending; elsewhere it sees none.
  template <class Notes>
  __device__ void save_note(const note& loaded, int32_t row, int32_t index, Notes& notes) const {
    const bool is_there = row < end;
    if constexpr (Weighed) {
      notes.minus_lse[notes.place_of(index)] =
          is_there ? -given.lse_factor * loaded.lse : -__builtin_huge_valf();
    }
    const auto last_key = static_cast<int32_t>(least<int64_t>(loaded.position, given.kv_len - 1));
    notes.last_keys[index] = is_there ? last_key : Weighed ? 2147483647 : -1;
  }
};

}  // namespace zipcache::detail

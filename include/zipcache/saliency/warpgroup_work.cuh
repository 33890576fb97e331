// What saliency's warpgroups multiply: keys with the probe rows that see them, for the columns'
// sums, and probe rows with the keys that they see, for the rows' log-sum-exp; what becomes of the
// products; and what a block has in shared memory for it. How they multiply:
// warpgroup_products.cuh.
#pragma once

#include <cstddef>
#include <cstdint>

#include <zipcache/core/numerics.hpp>
#include <zipcache/detail/shared_barrier.cuh>
#include <zipcache/detail/tensor_core.cuh>
#include <zipcache/detail/warp.cuh>
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
  /// Of one product. Two products' sums and the rows that stay must fit a lane's registers.
  static constexpr int32_t product_rows = HeadDim <= 128 ? 64 : 32;
  static constexpr int32_t num_sums = product_rows / 2;
  static constexpr int32_t chunk_rows = 2 * product_rows;
  static constexpr int32_t stages = 4;
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
  int32_t num_chunks = 0;
};

/// What a block has in shared memory.
template <int HeadDim>
struct warpgroup_memory {
  using tuning = warpgroup_tuning<HeadDim>;
  struct chunk {
    std::byte rows[tuning::chunk_bytes];
  };
  /// What goes with rows that are probes.
  struct probe_notes {
    /// To base 2. As the lanes read them: a lane's two columns of 8, then those of the 8 that
    /// follow.
    float minus_lse[tuning::chunk_rows];
    int32_t last_keys[tuning::chunk_rows];  ///< that they see

    __device__ static int32_t place_of(int32_t row) {
      return (row & ~15) | (row >> 1 & 3) << 2 | (row >> 3 & 1) << 1 | (row & 1);
    }
  };
  chunk chunks[tuning::stages];
  probe_notes notes[tuning::stages];
  product_span spans[tuning::stages];      ///< what the chunk is of
  shared_barrier filled[tuning::stages];   ///< by all threads that feed
  shared_barrier emptied[tuning::stages];  ///< by all warps that multiply
  /// Whose products come next: each warpgroup waits for its turn, and gives it on when its products
  /// are asked for. Left alone, all would multiply at once, slowly, and then all add exponentials.
  shared_barrier turns[tuning::num_warpgroups];
};

/// Keys stay, and the probe rows that see any of them pass.
template <class Metric, class Scope, int HeadDim, class Element>
struct column_work {
  using tuning = warpgroup_tuning<HeadDim>;
  using memory = warpgroup_memory<HeadDim>;
  struct state {
    float sums[2][2] = {};  ///< of keys g and g + 8, in two parts
  };
  const saliency_arguments<Element>& given;

  /// The first keys, which most rows see, come first, so that blocks end together.
  __host__ __device__ int64_t num_spans() const {
    return ceil_div<int64_t>(given.kv_len, tuning::block_rows) * given.num_items();
  }
  __device__ product_span span(int64_t number, int32_t lane) const {
    product_span span;
    span.block = static_cast<int32_t>(number / given.num_items());
    span.item = static_cast<int32_t>(number - int64_t{span.block} * given.num_items());
    const int32_t first = positions_below(given.positions(span.item), given.num_probes(),
                                          int64_t{span.block} * tuning::block_rows, lane) *
                          given.group;
    span.last = given.num_rows;
    span.num_chunks = ceil_div(span.last - first, tuning::chunk_rows);
    // Rather rows in front of the first, which do not see the keys, than a last chunk with gaps.
    span.first = most(0, span.last - span.num_chunks * tuning::chunk_rows);
    return span;
  }
  __device__ int32_t warp_key(const product_span& span, int32_t warp) const {
    return span.block * tuning::block_rows + 16 * warp;
  }
  __device__ auto staying_rows(const product_span& span, int32_t warp) const {
    const Element* keys = given.keys_of(span.item);
    const int32_t first = warp_key(span, warp);
    return [this, keys, first](int32_t i) -> const Element* {
      return first + i < given.kv_len ? keys + (first + i) * given.k.token_stride : nullptr;
    };
  }
  __device__ const Element* passing_rows(const product_span& span) const {
    return given.queries_of(span.item);
  }
  __device__ const Element* passing_row(const Element* queries, int32_t row) const {
    return given.query(queries, row);
  }
  /// Every n-th row is of the same head, and so far from the one before.
  __device__ int32_t period() const { return given.group; }
  __device__ int64_t period_distance() const { return given.probes.q.token_stride; }
  /// What goes with a row, and where it is written. A row that is not there weighs nothing.
  struct note {
    float minus_lse = -__builtin_huge_valf();
    int32_t last_key = 2147483647;
  };
  __device__ note load_note(const product_span& span, int32_t row) const {
    if (row >= span.last) return {};
    return {-given.lse_factor * given.lse[given.lse_index(span.item, row)],
            given.last_key(span.item, row)};
  }
  __device__ static void save_note(const note& row, int32_t index,
                                   typename memory::probe_notes& notes) {
    notes.minus_lse[notes.place_of(index)] = row.minus_lse;
    notes.last_keys[index] = row.last_key;
  }
  __device__ state begin(const product_span&, int32_t, int32_t) const { return {}; }
  __device__ bool negates() const { return false; }

  /// What is known of a product's rows, from row `first` of the chunk on, before it is there.
  struct prospect {
    float minus_lse[tuning::product_rows / 4];  ///< of the lane's columns, in their order
    bool some_see;                              ///< any of the warp's keys
    bool all_see;                               ///< all of them
  };
  __device__ __forceinline__ prospect expect(const product_span& span, int32_t,
                                             const typename memory::probe_notes& notes,
                                             int32_t first, int32_t warp, int32_t lane,
                                             const state&) const {
    prospect next;
    const int32_t key = warp_key(span, warp);
    const int32_t last = first + tuning::product_rows - 1;
    next.some_see = __any_sync(whole_warp, notes.last_keys[last] >= key);
    next.all_see = __all_sync(whole_warp, notes.last_keys[first] >= key + 15);
    ZIPCACHE_UNROLL
    for (int32_t sixteen = 0; sixteen < tuning::product_rows / 16; ++sixteen) {
      const float* place = notes.minus_lse + first + 16 * sixteen + lane % 4 * 4;
      const float4 four = *reinterpret_cast<const float4*>(place);
      next.minus_lse[4 * sixteen] = four.x;
      next.minus_lse[4 * sixteen + 1] = four.y;
      next.minus_lse[4 * sixteen + 2] = four.z;
      next.minus_lse[4 * sixteen + 3] = four.w;
    }
    return next;
  }
  /// Adds the probabilities of a product's rows.
  __device__ __forceinline__ void add(float (&scores)[tuning::num_sums], const prospect& next,
                                      const product_span& span,
                                      const typename memory::probe_notes& notes, int32_t first,
                                      int32_t warp, int32_t lane, state& state) const {
    if (next.all_see) {
      add<false>(scores, next, {}, lane, state);
    } else if (next.some_see) {
      const int32_t key = warp_key(span, warp) + lane / 4;
      const int32_t first_seeing[2] = {num_below(notes.last_keys + first, key),
                                       num_below(notes.last_keys + first, key + 8)};
      add<true>(scores, next, first_seeing, lane, state);
    }
  }
  /// How many of a product's rows do not see a key; they come first.
  __device__ static int32_t num_below(const int32_t* last_keys, int32_t key) {
    int32_t below = 0;
    ZIPCACHE_UNROLL
    for (int32_t step = tuning::product_rows / 2; step > 0; step /= 2)
      below += last_keys[below + step - 1] < key ? step : 0;
    return below + (last_keys[below] < key ? 1 : 0);
  }
  template <bool Masked>
  __device__ __forceinline__ void add(float (&scores)[tuning::num_sums], const prospect& next,
                                      const int32_t (&first_seeing)[2], int32_t lane,
                                      state& state) const {
    ZIPCACHE_UNROLL
    for (int32_t i = 0; i < tuning::num_sums; ++i) {
      const int32_t upper = i / 2 % 2;
      const int32_t side = i % 2;
      float above = fmaf(scores[i], given.scale, next.minus_lse[i / 4 * 2 + side]);
      if constexpr (Masked) {
        const int32_t row = i / 4 * 8 + lane % 4 * 2 + side;
        above = row >= first_seeing[upper] ? above : -__builtin_huge_valf();
      }
      state.sums[upper][side] += exp2_approximate(above);
    }
  }
  __device__ void finish(const product_span& span, int32_t warp, int32_t lane,
                         const state& state) const {
    ZIPCACHE_UNROLL
    for (int32_t upper = 0; upper < 2; ++upper) {
      write_column<Metric, Scope>(given, span.item, warp_key(span, warp) + 8 * upper + lane / 4,
                                  lane, state.sums[upper][0] + state.sums[upper][1]);
    }
  }
};

/// Probe rows stay, and the keys of a split that any of them sees pass.
template <int HeadDim, class Element>
struct row_work {
  using tuning = warpgroup_tuning<HeadDim>;
  using memory = warpgroup_memory<HeadDim>;
  struct state {
    row_sum rows[2];          ///< g and g + 8
    int32_t last_key[2];      ///< that they see
    int32_t warp_first_seen;  ///< the last key that all of the warp's see
  };
  const saliency_arguments<Element>& given;

  __host__ __device__ int32_t num_blocks() const {
    return ceil_div(given.num_rows, tuning::block_rows);
  }
  /// Early keys and late rows come first: there is most to do.
  __host__ __device__ int64_t num_spans() const {
    return int64_t{given.num_splits} * num_blocks() * given.num_items();
  }
  __device__ product_span span(int64_t number, int32_t) const {
    const int64_t of_split = int64_t{num_blocks()} * given.num_items();
    product_span span;
    span.split = static_cast<int32_t>(number / of_split);
    const int64_t rest = number - span.split * of_split;
    const auto blocks_behind = static_cast<int32_t>(rest / given.num_items());
    span.block = num_blocks() - 1 - blocks_behind;
    span.item = static_cast<int32_t>(rest - int64_t{blocks_behind} * given.num_items());
    const int32_t last_row = least((span.block + 1) * tuning::block_rows, given.num_rows) - 1;
    const int64_t first = int64_t{span.split} * given.keys_per_split;
    const int64_t last = least<int64_t>(first + given.keys_per_split,
                                        given.last_key(span.item, last_row) + int64_t{1});
    span.first = static_cast<int32_t>(first);
    span.last = static_cast<int32_t>(most(first, last));
    span.num_chunks = ceil_div(span.last - span.first, tuning::chunk_rows);
    return span;
  }
  __device__ int32_t warp_row(const product_span& span, int32_t warp) const {
    return span.block * tuning::block_rows + 16 * warp;
  }
  __device__ auto staying_rows(const product_span& span, int32_t warp) const {
    const Element* queries = given.queries_of(span.item);
    const int32_t first = warp_row(span, warp);
    return [this, queries, first](int32_t i) -> const Element* {
      return first + i < given.num_rows ? given.query(queries, first + i) : nullptr;
    };
  }
  __device__ const Element* passing_rows(const product_span& span) const {
    return given.keys_of(span.item);
  }
  __device__ const Element* passing_row(const Element* keys, int32_t row) const {
    return keys + row * given.k.token_stride;
  }
  __device__ int32_t period() const { return 1; }
  __device__ int64_t period_distance() const { return given.k.token_stride; }
  struct note {};  // keys have none
  __device__ static note load_note(const product_span&, int32_t) { return {}; }
  __device__ static void save_note(note, int32_t, typename memory::probe_notes&) {}
  __device__ state begin(const product_span& span, int32_t warp, int32_t lane) const {
    const auto seen = [&](int32_t i) {
      return given.last_key(span.item, least(warp_row(span, warp) + i, given.num_rows - 1));
    };
    state state;
    state.last_key[0] = seen(lane / 4);
    state.last_key[1] = seen(lane / 4 + 8);
    state.warp_first_seen = seen(0);
    return state;
  }

  /// The rows that stay are negated where the scale is negative, so that the highest product is the
  /// highest score; and no score is so low that 0 times it would not be a number.
  __device__ bool negates() const { return given.scale < 0.0f; }
  __device__ float scale() const { return fmaxf(fabsf(given.scale), 1e-37f); }

  /// As in column_work.
  struct prospect {
    bool all_seen;  ///< by all of the warp's rows
    int32_t key;    ///< the lane's first one
  };
  __device__ __forceinline__ prospect expect(const product_span& span, int32_t chunk,
                                             const typename memory::probe_notes&, int32_t first,
                                             int32_t, int32_t lane, const state& state) const {
    const int32_t key = span.first + chunk * tuning::chunk_rows + first;
    return {bool(__all_sync(whole_warp, key + tuning::product_rows - 1 <= state.warp_first_seen)),
            key + lane % 4 * 2};
  }
  /// Adds the exponentials of a product's keys.
  __device__ __forceinline__ void add(float (&scores)[tuning::num_sums], const prospect& next,
                                      const product_span&, const typename memory::probe_notes&,
                                      int32_t, int32_t, int32_t, state& state) const {
    if (next.all_seen) {
      add<false>(scores, next.key, state);
    } else {
      add<true>(scores, next.key, state);
    }
  }
  template <bool Masked>
  __device__ __forceinline__ void add(float (&scores)[tuning::num_sums], int32_t key,
                                      state& state) const {
    constexpr float nothing = -__builtin_huge_valf();
    float highest[2] = {nothing, nothing};
    ZIPCACHE_UNROLL
    for (int32_t i = 0; i < tuning::num_sums; ++i) {
      const int32_t upper = i / 2 % 2;
      if constexpr (Masked) {
        const bool is_seen = key + i / 4 * 8 + i % 2 <= state.last_key[upper];
        scores[i] = is_seen ? scores[i] : nothing;
      }
      highest[upper] = fmaxf(highest[upper], scores[i]);
    }
    const auto above = [&](float score, int32_t upper) {
      return fmaf(score, scale(), -state.rows[upper].reference);
    };
    const bool is_far =
        above(highest[0], 0) > reference_margin || above(highest[1], 1) > reference_margin;
    if (__any_sync(whole_warp, is_far)) {
      ZIPCACHE_UNROLL
      for (int32_t upper = 0; upper < 2; ++upper) {
        row_sum& row = state.rows[upper];
        const float reference = most(row.reference, highest[upper] * scale());
        row.sum *= exp2_approximate(row.reference - reference);
        row.reference = reference;
      }
    }
    float sums[2][2] = {};
    ZIPCACHE_UNROLL
    for (int32_t i = 0; i < tuning::num_sums; ++i)
      sums[i / 2 % 2][i % 2] += exp2_approximate(above(scores[i], i / 2 % 2));
    ZIPCACHE_UNROLL
    for (int32_t upper = 0; upper < 2; ++upper)
      state.rows[upper].sum += sums[upper][0] + sums[upper][1];
  }
  __device__ void finish(const product_span& span, int32_t warp, int32_t lane,
                         const state& state) const {
    ZIPCACHE_UNROLL
    for (int32_t upper = 0; upper < 2; ++upper) {
      write_row_sum(given, span.item, span.split, warp_row(span, warp) + 8 * upper + lane / 4, lane,
                    state.rows[upper]);
    }
  }
};

}  // namespace zipcache::detail

// What saliency's warpgroups multiply: keys with the probe rows that see them, for the columns'
// sums, and probe rows with the keys that they see, for the rows' log-sum-exp; and what becomes of
// the products. Where the rows come from: warpgroup_rows.cuh. How they are multiplied:
// warpgroup_products.cuh.
#pragma once

#include <cstdint>

#include <zipcache/core/numerics.hpp>
#include <zipcache/detail/tensor_core.cuh>
#include <zipcache/detail/warp.cuh>
#include <zipcache/saliency/metric.hpp>
#include <zipcache/saliency/saliency_arguments.cuh>
#include <zipcache/saliency/warpgroup_rows.cuh>

namespace zipcache::detail {

/// Keys stay, and the probe rows that see any of them pass.
template <class Metric, class Scope, int HeadDim, class Element>
struct column_work {
  using tuning = warpgroup_tuning<HeadDim>;
  using notes_type = probe_notes<HeadDim>;
  struct state {
    float sums[2][2] = {};  ///< of keys g and g + 8, in two parts
    int32_t unseeing[2];    ///< rows that do not see them, which come first
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
    span.num_products = ceil_div(span.last - first, tuning::product_rows);
    // Rather rows in front of the first, which do not see the keys, than a last product with gaps.
    span.first = most(0, span.last - span.num_products * tuning::product_rows);
    return span;
  }
  __device__ int32_t first_staying(const product_span& span) const {
    return span.block * tuning::block_rows;
  }
  __device__ key_stream<Element> staying(const product_span& span) const {
    return {given, given.keys_of(span.item), given.kv_len};
  }
  __device__ probe_stream<true, Element> passing(const product_span& span) const {
    return {given, given.queries_of(span.item), span.item, span.last};
  }
  __device__ int32_t warp_key(const product_span& span, int32_t warp) const {
    return first_staying(span) + 16 * warp;
  }
  __device__ state begin(const product_span& span, const notes_type&, int32_t, int32_t) const {
    state state;
    state.unseeing[0] = state.unseeing[1] = span.first;
    return state;
  }
  __device__ bool negates() const { return false; }

  /// Whether any row of a product, from row `first` of the chunk on, sees any of the warpgroup's
  /// keys.
  __device__ __forceinline__ bool is_needed(const product_span& span, int32_t,
                                            const notes_type& notes, int32_t first, int32_t warp,
                                            const state&) const {
    const int32_t last_seen = notes.last_keys[first + tuning::product_rows - 1];
    return __any_sync(whole_warp, last_seen >= warp_key(span, warp & ~3));
  }
  /// What is known of a product's rows before it is there.
  struct prospect {
    float minus_lse[tuning::product_rows / 4];  ///< of the lane's columns, in their order
    bool some_see;                              ///< any of the warp's keys
    bool all_see;                               ///< all of them
  };
  __device__ __forceinline__ prospect expect(const product_span& span, int32_t,
                                             const notes_type& notes, int32_t first, int32_t warp,
                                             int32_t lane, const state&) const {
    prospect next;
    const int32_t key = warp_key(span, warp);
    const int32_t last_seen = notes.last_keys[first + tuning::product_rows - 1];
    next.some_see = __any_sync(whole_warp, last_seen >= key);
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
  /// Leaves out a product that is not needed.
  __device__ __forceinline__ void skip(state& state) const {
    ZIPCACHE_UNROLL
    for (int32_t upper = 0; upper < 2; ++upper) state.unseeing[upper] += tuning::product_rows;
  }
  /// Adds the probabilities of a product's rows.
  __device__ __forceinline__ void add(float (&scores)[tuning::num_sums], const prospect& next,
                                      const product_span& span, const notes_type& notes,
                                      int32_t first, int32_t warp, int32_t lane,
                                      state& state) const {
    if (next.all_see) {
      add<false>(scores, next, {}, lane, state);
    } else if (next.some_see) {
      const int32_t key = warp_key(span, warp) + lane / 4;
      const int32_t first_seeing[2] = {num_below(notes.last_keys + first, key),
                                       num_below(notes.last_keys + first, key + 8)};
      add<true>(scores, next, first_seeing, lane, state);
      ZIPCACHE_UNROLL
      for (int32_t upper = 0; upper < 2; ++upper) state.unseeing[upper] += first_seeing[upper];
    } else {
      skip(state);
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
      const int32_t key = warp_key(span, warp) + 8 * upper + lane / 4;
      // Rows that fill the last product up do not count.
      const int32_t unseeing = least(state.unseeing[upper], given.num_rows);
      write_column<Metric, Scope>(
          given, span.item, key, lane, state.sums[upper][0] + state.sums[upper][1], [&] {
            return token_visibility{given.num_probes() - given.probe_of(unseeing),
                                    int64_t{given.kv_len} - key};
          });
    }
  }
};

/// Probe rows stay, and the keys of a split that any of them sees pass.
template <int HeadDim, class Element>
struct row_work {
  using tuning = warpgroup_tuning<HeadDim>;
  using notes_type = probe_notes<HeadDim>;
  struct state {
    row_sum rows[2];         ///< g and g + 8
    int32_t last_key[2];     ///< that they see
    int32_t first_last_key;  ///< the last key that all of the warp's rows see
    int32_t last_last_key;   ///< the last one that any of them sees
    int32_t group_last_key;  ///< any of the warpgroup's
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
    const int64_t first = int64_t{span.split} * given.keys_per_split;
    const int64_t last =
        least<int64_t>(first + given.keys_per_split,
                       given.last_key(span.item, end_staying(span) - 1) + int64_t{1});
    span.first = static_cast<int32_t>(first);
    span.last = static_cast<int32_t>(most(first, last));
    span.num_products = ceil_div(span.last - span.first, tuning::product_rows);
    return span;
  }
  /// Blocks of rows end with the last row, so that it is the first rows, which see the fewest keys,
  /// that do not fill theirs.
  __device__ int32_t end_staying(const product_span& span) const {
    return given.num_rows - (num_blocks() - 1 - span.block) * tuning::block_rows;
  }
  __device__ int32_t first_staying(const product_span& span) const {
    return most(0, end_staying(span) - tuning::block_rows);
  }
  __device__ probe_stream<false, Element> staying(const product_span& span) const {
    return {given, given.queries_of(span.item), span.item, end_staying(span)};
  }
  __device__ key_stream<Element> passing(const product_span& span) const {
    return {given, given.keys_of(span.item), span.last};
  }
  /// `notes` are of the chunk with the warp's rows.
  __device__ state begin(const product_span&, const notes_type& notes, int32_t warp,
                         int32_t lane) const {
    const int32_t* own = notes.last_keys + 16 * warp % tuning::chunk_rows;
    const int32_t* group = notes.last_keys + 64 * (warp / 4) % tuning::chunk_rows;
    state state;
    state.last_key[0] = own[lane / 4];
    state.last_key[1] = own[lane / 4 + 8];
    state.first_last_key = own[0];
    state.last_last_key = __reduce_max_sync(whole_warp, own[lane % 16]);
    state.group_last_key = __reduce_max_sync(whole_warp, most(group[lane], group[lane + 32]));
    return state;
  }

  /// The rows that stay are negated where the scale is negative, so that the highest product is the
  /// highest score; and no score is so low that 0 times it would not be a number.
  __device__ bool negates() const { return given.scale < 0.0f; }
  __device__ float scale() const { return fmaxf(fabsf(given.scale), 1e-37f); }

  /// As in column_work.
  __device__ __forceinline__ bool is_needed(const product_span& span, int32_t product,
                                            const notes_type&, int32_t, int32_t,
                                            const state& state) const {
    const int32_t key = span.first + product * tuning::product_rows;
    return __any_sync(whole_warp, key <= state.group_last_key);
  }
  struct prospect {
    bool some_seen;  ///< any of the warp's
    bool all_seen;   ///< all keys by all of the warp's rows
    int32_t key;     ///< the lane's first one
  };
  __device__ __forceinline__ prospect expect(const product_span& span, int32_t product,
                                             const notes_type&, int32_t, int32_t, int32_t lane,
                                             const state& state) const {
    const int32_t key = span.first + product * tuning::product_rows;
    const int32_t last = key + tuning::product_rows - 1;
    return {bool(__any_sync(whole_warp, key <= state.last_last_key)),
            bool(__all_sync(whole_warp, last <= state.first_last_key)), key + lane % 4 * 2};
  }
  __device__ __forceinline__ void skip(state&) const {}
  /// Adds the exponentials of a product's keys.
  __device__ __forceinline__ void add(float (&scores)[tuning::num_sums], const prospect& next,
                                      const product_span&, const notes_type&, int32_t, int32_t,
                                      int32_t, state& state) const {
    if (next.all_seen) {
      add<false>(scores, next.key, state);
    } else if (next.some_seen) {
      add<true>(scores, next.key, state);
    }
  }
  template <bool Masked>
  __device__ __forceinline__ void add(float (&scores)[tuning::num_sums], int32_t key,
                                      state& state) const {
    if constexpr (Masked) {
      ZIPCACHE_UNROLL
      for (int32_t i = 0; i < tuning::num_sums; ++i) {
        const bool is_seen = key + i / 4 * 8 + i % 2 <= state.last_key[i / 2 % 2];
        scores[i] = is_seen ? scores[i] : -__builtin_huge_valf();
      }
    }
    // Scores far above the reference are seldom, and the sum of their exponentials tells, infinite
    // or not: a maximum would be a third more instructions.
    float2 sums = exponentials(scores, state);
    const float limit = exp2f(reference_margin);
    if (__any_sync(whole_warp, sums.x > limit || sums.y > limit)) {
      raise_references(scores, state);
      sums = exponentials(scores, state);
    }
    state.rows[0].sum += sums.x;
    state.rows[1].sum += sums.y;
  }
  /// The sums of a product's exponentials, of the lane's two rows.
  __device__ __forceinline__ float2 exponentials(const float (&scores)[tuning::num_sums],
                                                 const state& state) const {
    float sums[2][2] = {};
    ZIPCACHE_UNROLL
    for (int32_t i = 0; i < tuning::num_sums; ++i) {
      const int32_t upper = i / 2 % 2;
      const float above = fmaf(scores[i], scale(), -state.rows[upper].reference);
      sums[upper][i % 2] += exp2_approximate(above);
    }
    return make_float2(sums[0][0] + sums[0][1], sums[1][0] + sums[1][1]);
  }
  /// No score is above its row's reference after this.
  __device__ __forceinline__ void raise_references(const float (&scores)[tuning::num_sums],
                                                   state& state) const {
    ZIPCACHE_UNROLL
    for (int32_t upper = 0; upper < 2; ++upper) {
      row_sum& row = state.rows[upper];
      float highest = -__builtin_huge_valf();
      ZIPCACHE_UNROLL
      for (int32_t i = 0; i < tuning::num_sums; ++i)
        if (i / 2 % 2 == upper) highest = fmaxf(highest, scores[i]);
      const float reference = most(row.reference, highest * scale());
      row.sum *= exp2_approximate(row.reference - reference);
      row.reference = reference;
    }
  }
  __device__ void finish(const product_span& span, int32_t warp, int32_t lane,
                         const state& state) const {
    ZIPCACHE_UNROLL
    for (int32_t upper = 0; upper < 2; ++upper) {
      const int32_t row = first_staying(span) + 16 * warp + 8 * upper + lane / 4;
      write_row_sum(given, span.item, span.split, row, row < end_staying(span), lane,
                    state.rows[upper]);
    }
  }
};

}  // namespace zipcache::detail

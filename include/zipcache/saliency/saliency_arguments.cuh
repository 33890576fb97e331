// What the kernels of saliency know of a call: probe rows, keys and where results go; who sees
// whom. A row is one query head of one probe; the rows of a KV head are its probes, ascending, each
// with the group's query heads.
#pragma once

#include <cstdint>

#include <zipcache/core/cuda.cuh>
#include <zipcache/core/numerics.hpp>
#include <zipcache/core/shape.hpp>
#include <zipcache/core/types.hpp>
#include <zipcache/core/view.hpp>
#include <zipcache/detail/tensor_core.cuh>
#include <zipcache/detail/warp.cuh>
#include <zipcache/saliency/metric.hpp>

namespace zipcache {

/// Query rows that are looked at, in device memory. As probe_queries.
template <class Element>
struct device_probe_queries {
  tensor_view<const Element> q;        ///< [num_qo_heads, num_probes, head_dim]
  const int64_t* positions = nullptr;  ///< [num_probes], ascending
  const float* lse = nullptr;  ///< [num_qo_heads, num_probes], natural logarithm; null if unknown
};

/// Several sequences of the same shape, as distances in elements from one to the next. Their lse,
/// and their scores, lie one behind the other.
struct saliency_batch {
  int32_t num_sequences = 1;
  int64_t q_stride = 0;
  int64_t k_stride = 0;
  int64_t positions_stride = 0;  ///< 0: all sequences have the same probes
};

namespace detail {

template <class Element>
struct saliency_arguments {
  device_probe_queries<Element> probes;
  tensor_view<const Element> k;
  saliency_batch batch;
  float scale;  ///< sm_scale * log2(e)
  int32_t head_dim;
  int32_t group;
  int32_t group_shift;  ///< its logarithm, or -1 if it has none
  int32_t num_rows;     ///< probe rows of one KV head: probes ascending, then its query heads
  int32_t kv_len;
  int32_t num_splits;
  int32_t keys_per_split;
  float lse_factor;  ///< from `lse` to base 2
  const float* lse;  ///< [sequences, num_qo_heads, num_probes]
  /// [sequences * num_kv_heads, num_splits, num_rows]: reference, sum; null for one split
  float2* partials;
  float* found_lse;  ///< like `lse`, in base 2
  float* sums;       ///< [sequences, num_kv_heads, kv_len] for per_layer
  float* scores;     ///< [sequences, num_kv_heads, kv_len]

  __host__ __device__ int32_t num_probes() const {
    return static_cast<int32_t>(probes.q.num_tokens);
  }
  /// KV heads of all sequences.
  __host__ __device__ int32_t num_items() const { return batch.num_sequences * k.num_heads; }
  /// The probe of a row of one KV head.
  __device__ int32_t probe_of(int32_t row) const {
    return group_shift >= 0 ? row >> group_shift : row / group;
  }
  __device__ int32_t head_in_group(int32_t row) const { return row - probe_of(row) * group; }
  /// Row 0 of an item, and any other one from it.
  __device__ const Element* queries_of(int32_t item) const {
    return probes.q.row(item % k.num_heads * group, 0) + item / k.num_heads * batch.q_stride;
  }
  __device__ const Element* query(const Element* queries, int32_t row) const {
    return queries + head_in_group(row) * probes.q.head_stride +
           probe_of(row) * probes.q.token_stride;
  }
  __device__ const Element* keys_of(int32_t item) const {
    return k.row(item % k.num_heads, 0) + item / k.num_heads * batch.k_stride;
  }
  __device__ const int64_t* positions(int32_t item) const {
    return probes.positions + item / k.num_heads * batch.positions_stride;
  }
  /// The last key that a row sees.
  __device__ int32_t last_key(int32_t item, int32_t row) const {
    return static_cast<int32_t>(least<int64_t>(positions(item)[probe_of(row)], kv_len - 1));
  }
  /// Where the row's log-sum-exp lies.
  __device__ int64_t lse_index(int32_t item, int32_t row) const {
    const int64_t head = int64_t{item} * group + head_in_group(row);
    return head * num_probes() + probe_of(row);
  }
};

/// Number of positions below `token`, found by a warp in steps of 32.
__device__ inline int32_t positions_below(const int64_t* positions, int32_t count, int64_t token,
                                          int32_t lane) {
  int32_t first = 0;  // positions before it are below
  int32_t last = count;
  while (first < last) {
    const int32_t step = ceil_div(last - first, 32);
    const int32_t index = first + (lane + 1) * step - 1;
    const bool is_below = index < last && positions[index] < token;
    const int32_t steps = __popc(__ballot_sync(whole_warp, is_below));
    first += steps * step;
    last = least(last, first + step - 1);
  }
  return first;
}

/// Who sees a token.
__device__ inline token_visibility visibility_of(const int64_t* positions, int32_t num_probes,
                                                 int32_t token, int32_t kv_len) {
  int32_t first = 0;
  int32_t last = num_probes;
  while (first < last) {
    const int32_t middle = first + (last - first) / 2;
    if (positions[middle] < token) {
      first = middle + 1;
    } else {
      last = middle;
    }
  }
  return {num_probes - first, int64_t{kv_len} - token};
}

/// A score that is above a row's reference by more than 2^this moves the reference.
inline constexpr float reference_margin = 16.0f;
inline constexpr float no_reference = -1e30f;

/// Sum of 2^(score - reference) over what a lane, or more, has seen of a row. The reference need
/// not be the maximum, only not far below it.
struct row_sum {
  float reference = no_reference;
  float sum = 0.0f;
};

__device__ inline row_sum merge(row_sum a, row_sum b) {
  const float reference = most(a.reference, b.reference);
  return {reference, a.sum * exp2_approximate(a.reference - reference) +
                         b.sum * exp2_approximate(b.reference - reference)};
}

/// Writes what a key got, whose sum four neighbouring lanes share: its score, or the sum where
/// heads share it. Keys behind the last are left out. `visible()` says who sees the key.
template <class Metric, class Scope, class Element, class Visible>
__device__ void write_column(const saliency_arguments<Element>& given, int32_t item, int32_t token,
                             int32_t lane, float sum, const Visible& visible) {
  sum += __shfl_xor_sync(whole_warp, sum, 1);
  sum += __shfl_xor_sync(whole_warp, sum, 2);
  if (lane % 4 != 0 || token >= given.kv_len) return;
  float* out = (Scope::shared_by_heads ? given.sums : given.scores) + int64_t{item} * given.kv_len;
  if constexpr (!Scope::shared_by_heads) sum = Metric::score(sum, visible());
  out[token] = sum;
}

/// The row's log-sum-exp, to base 2.
__device__ inline float lse_of(row_sum total) { return total.reference + log2f(total.sum); }

/// Writes what a split of the context adds to a row, which four neighbouring lanes share; the row's
/// log-sum-exp where there is one split.
template <class Element>
__device__ void write_row_sum(const saliency_arguments<Element>& given, int32_t item, int32_t split,
                              int32_t row, bool is_there, int32_t lane, row_sum sum) {
  ZIPCACHE_UNROLL
  for (int32_t distance = 1; distance < 4; distance *= 2) {
    sum = merge(sum, row_sum{__shfl_xor_sync(whole_warp, sum.reference, distance),
                             __shfl_xor_sync(whole_warp, sum.sum, distance)});
  }
  if (lane % 4 != 0 || !is_there) return;
  if (given.num_splits == 1) {
    given.found_lse[given.lse_index(item, row)] = lse_of(sum);
    return;
  }
  given.partials[(int64_t{item} * given.num_splits + split) * given.num_rows + row] =
      make_float2(sum.reference, sum.sum);
}

}  // namespace detail
}  // namespace zipcache

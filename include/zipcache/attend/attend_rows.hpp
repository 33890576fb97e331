// The query rows of one KV head while attention goes over the cache: their softmax states, what is
// accumulated, and the scratch of one part of the cache. In: q. Out: output and log-sum-exp.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include <zipcache/attend/softmax_state.hpp>
#include <zipcache/core/numerics.hpp>
#include <zipcache/core/types.hpp>
#include <zipcache/core/view.hpp>
#include <zipcache/detail/block_math.hpp>
#include <zipcache/quantize/rotation.hpp>
#include <zipcache/store/decoded_rows.hpp>
#include <zipcache/store/encode.hpp>
#include <zipcache/store/layout.hpp>
#if ZIPCACHE_X86_VECTORS
#include <zipcache/attend/attend_amx.hpp>
#include <zipcache/attend/packed_scratch.hpp>
#endif

namespace zipcache {

/// Query rows that share one KV head, their states and scratch; reused from call to call.
struct attend_rows {
  int32_t rows = 0;  ///< query heads of the group x query tokens
  int32_t head_dim = 0;
  std::vector<float> q;               ///< [rows, head_dim], times sm_scale * log2(e)
  std::vector<softmax_state> states;  ///< [rows]
  std::vector<float> out;             ///< [rows, head_dim], not yet divided by the sum

  /// q as keys of this layout are met with: rotated if they are.
  template <class Granularity>
  const std::vector<float>& query() {
    if constexpr (!is_rotated<Granularity>) return q;
    if (rotated_q.empty()) {
      rotated_q = q;
      for (int32_t row = 0; row < rows; ++row)
        rotate_channels(rotated_q.data() + row * head_dim, head_dim);
    }
    return rotated_q;
  }
  std::vector<float> rotated_q;  ///< [rows, head_dim], or empty until it is needed

  // Scratch of one class or one run of rows.
  std::vector<softmax_state> part_states;
  std::vector<float> part_out, folded_q, bias, scores, weights, zeros, group_sums, key_block,
      value_block, tile_out;
  detail::decoded_scratch decoded;
#if ZIPCACHE_X86_VECTORS
  detail::packed_scratch packed;
  detail::matrix_scratch matrix;
#endif

  void reset(int32_t num_rows, int32_t dim) {
    rows = num_rows;
    head_dim = dim;
    const size_t size = static_cast<size_t>(num_rows) * static_cast<size_t>(dim);
    q.resize(size);
    rotated_q.clear();
    states.assign(static_cast<size_t>(num_rows), softmax_state{});
    out.assign(size, 0.0f);
    part_out.resize(size);
    folded_q.resize(size);
    bias.resize(static_cast<size_t>(num_rows));
    scores.resize(static_cast<size_t>(num_rows) * tile_tokens);
    weights.resize(static_cast<size_t>(num_rows) * tile_tokens);
    zeros.resize(static_cast<size_t>(num_rows) * detail::max_head_dim / 16);
    group_sums.resize(static_cast<size_t>(num_rows) * detail::max_head_dim / 16);
    key_block.resize(static_cast<size_t>(dim) * tile_tokens);
    value_block.resize(static_cast<size_t>(dim) * tile_tokens);
    tile_out.resize(size);
  }

  void begin_part() {
    part_states.assign(static_cast<size_t>(rows), softmax_state{});
    std::fill(part_out.begin(), part_out.end(), 0.0f);
    std::fill(zeros.begin(), zeros.end(), 0.0f);
  }
  void end_part() {
    for (int32_t row = 0; row < rows; ++row) {
      merge(states[static_cast<size_t>(row)], out.data() + row * head_dim,
            part_states[static_cast<size_t>(row)], part_out.data() + row * head_dim, head_dim);
    }
  }
};

/// @brief Loads the query rows of one KV head: row = query token * group + query head of the group.
/// @param[in] q  [num_qo_heads, qo_len, head_dim]
template <cache_element Element>
void load_queries(tensor_view<const Element> q, int32_t kv_head, int32_t group, float sm_scale,
                  attend_rows& rows) {
  rows.reset(group * static_cast<int32_t>(q.num_tokens), q.head_dim);
  for (int32_t row = 0; row < rows.rows; ++row) {
    float* target = rows.q.data() + row * q.head_dim;
    detail::widen(q.row(kv_head * group + row % group, row / group), q.head_dim, target);
    for (int32_t channel = 0; channel < q.head_dim; ++channel) target[channel] *= sm_scale * log2_e;
  }
}

/// @brief Divides by the sums and writes the result of one KV head. A row that saw no token gets
/// zeros and lse -inf.
/// @param[out] out  [num_qo_heads, qo_len, head_dim]
/// @param[out] lse  natural log-sum-exp of query head h and token t at lse[t * lse_stride + h]; may
/// be null
template <cache_element Element>
void store_output(const attend_rows& rows, int32_t kv_head, int32_t group, tensor_view<Element> out,
                  float* lse, int64_t lse_stride) {
  for (int32_t row = 0; row < rows.rows; ++row) {
    const int32_t qo_head = kv_head * group + row % group;
    const softmax_state& state = rows.states[static_cast<size_t>(row)];
    const float inverse = state.sum > 0.0f ? 1.0f / state.sum : 0.0f;
    Element* target = out.row(qo_head, row / group);
    for (int32_t channel = 0; channel < rows.head_dim; ++channel) {
      target[channel] = from_float<Element>(
          rows.out[static_cast<size_t>(row * rows.head_dim + channel)] * inverse);
    }
    if (lse != nullptr) lse[row / group * lse_stride + qo_head] = state.lse();
  }
}

}  // namespace zipcache

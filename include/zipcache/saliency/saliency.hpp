// Saliency on the CPU: attention mass that probe rows give to every token. In: probe queries, keys.
// Out: score [num_kv_heads, kv_len]. Only probe rows are computed (ZipCache, section 4.3), in
// blocks of 32 keys, so no score matrix is kept: one pass when the rows' log-sum-exp is given, two
// otherwise. Twin: saliency.cuh.
// @equality within a bound: sums run over probes, then query heads, in ascending order on both
// backends.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include <zipcache/core/backend.hpp>
#include <zipcache/core/error.hpp>
#include <zipcache/core/shape.hpp>
#include <zipcache/core/view.hpp>
#include <zipcache/detail/block_math.hpp>
#include <zipcache/detail/thread_pool.hpp>
#include <zipcache/saliency/metric.hpp>

namespace zipcache {

/// Query rows that are looked at. Row r has the position `positions[r]` among the keys and sees
/// keys [0, positions[r]]; a position beyond the last key sees them all.
template <class Element>
struct probe_queries {
  tensor_view<const Element> q;        ///< [num_qo_heads, num_probes, head_dim]
  std::span<const int64_t> positions;  ///< [num_probes], ascending
  std::span<const float> lse =
      {};  ///< [num_qo_heads, num_probes], natural logarithm; empty if unknown
};

namespace detail {

/// Transposes the 32 keys from `first` on (fewer at the end; the rest are zeros) into block
/// [head_dim, 32].
template <class Element>
void load_key_block(tensor_view<const Element> k, int32_t head, int64_t first, float* block) {
  const int64_t count = std::min<int64_t>(block_tokens, k.num_tokens - first);
  const Element* rows[block_tokens] = {};
  for (int64_t token = 0; token < count; ++token) rows[token] = k.row(head, first + token);
  transpose_rows(rows, static_cast<int32_t>(count), k.head_dim, block);
}

/// Attention mass of one KV head's tokens. sums [kv_len]
template <class Element, class KeyElement>
void sum_probe_attention(const probe_queries<Element>& probes, tensor_view<const KeyElement> k,
                         int32_t kv_head, float sm_scale, float* sums) {
  const int32_t group = probes.q.num_heads / k.num_heads;
  const int32_t head_dim = k.head_dim;
  const int64_t num_probes = probes.q.num_tokens;
  const int32_t rows = static_cast<int32_t>(num_probes) * group;
  // Rows in the order of the sum: probes ascending, then heads.  q [rows, head_dim], in base-2
  // units.
  std::vector<float> q(static_cast<size_t>(rows) * static_cast<size_t>(head_dim));
  for (int32_t row = 0; row < rows; ++row) {
    float* target = q.data() + row * head_dim;
    widen(probes.q.row(kv_head * group + row % group, row / group), head_dim, target);
    for (int32_t channel = 0; channel < head_dim; ++channel) target[channel] *= sm_scale * log2_e;
  }
  std::vector<float> block(static_cast<size_t>(head_dim) * block_tokens);
  std::vector<float> scores(static_cast<size_t>(rows) * block_tokens);
  std::vector<float> lse(static_cast<size_t>(rows));
  std::vector<float> maximum(static_cast<size_t>(rows), -std::numeric_limits<float>::infinity());
  std::vector<float> total(static_cast<size_t>(rows), 0.0f);

  // Calls visit(row, scores of the block, its first token, number of its tokens that the row sees)
  // for every block of keys; the scores of the others are -inf.
  const auto for_each_block = [&](auto&& visit) {
    for (int64_t first = 0; first < k.num_tokens; first += block_tokens) {
      // Probes are ascending, so those that see nothing of this block are the first ones.
      const auto first_probe =
          std::lower_bound(probes.positions.begin(), probes.positions.end(), first) -
          probes.positions.begin();
      const int32_t first_row = static_cast<int32_t>(first_probe) * group;
      if (first_row == rows) continue;
      load_key_block(k, kv_head, first, block.data());
      std::fill(scores.begin() + first_row * block_tokens, scores.end(), 0.0f);
      add_scores(q.data() + first_row * head_dim, block.data(), rows - first_row, head_dim, 0,
                 head_dim, scores.data() + first_row * block_tokens);
      for (int32_t row = first_row; row < rows; ++row) {
        const int64_t seen =
            std::min<int64_t>({block_tokens, k.num_tokens - first,
                               probes.positions[static_cast<size_t>(row / group)] + 1 - first});
        float* score = scores.data() + row * block_tokens;
        std::fill(score + seen, score + block_tokens, -std::numeric_limits<float>::infinity());
        visit(row, score, first, seen);
      }
    }
  };

  if (!probes.lse.empty()) {
    for (int32_t row = 0; row < rows; ++row) {
      const int64_t index = (kv_head * group + row % group) * num_probes + row / group;
      lse[static_cast<size_t>(row)] = probes.lse[static_cast<size_t>(index)] * log2_e;
    }
  } else {
    for_each_block([&](int32_t row, float* score, int64_t, int64_t) {
      float& peak = maximum[static_cast<size_t>(row)];
      float& sum = total[static_cast<size_t>(row)];
      const float block_peak = most(peak, largest_score(score));
      sum = sum * exp2_poly(peak - block_peak) + exponentiate(score, block_peak);
      peak = block_peak;
    });
    for (size_t row = 0; row < lse.size(); ++row) lse[row] = maximum[row] + std::log2(total[row]);
  }
  for_each_block([&](int32_t row, float* score, int64_t first, int64_t seen) {
    exponentiate(score, lse[static_cast<size_t>(row)]);
    for (int64_t token = 0; token < seen; ++token) sums[first + token] += score[token];
  });
}

}  // namespace detail

/// @brief Scores every token of every KV head from the attention that the probe rows give it.
/// @param[in] probes  query rows with their positions among the keys of `k`; their lse must be over
/// all keys that the
///   row saw, including keys that are not in `k`
/// @param[in] k  [num_kv_heads, kv_len, head_dim]
/// @param[out] scores  [num_kv_heads, kv_len]; under `per_layer` every head gets the sum over the
/// heads
/// @throws argument_error  shapes that do not fit, positions negative or not ascending
template <class Metric, class Scope, cache_element Element, cache_element KeyElement>
void saliency(cpu_backend backend, const probe_queries<Element>& probes,
              tensor_view<const KeyElement> k, float sm_scale, std::span<float> scores) {
  const int64_t kv_len = k.num_tokens;
  const int64_t num_probes = static_cast<int64_t>(probes.positions.size());
  detail::check_head_dim(k.head_dim);
  detail::require_between("k.num_heads", k.num_heads, 1, 65536);
  detail::require_equal("scores.size()", static_cast<int64_t>(scores.size()), k.num_heads * kv_len);
  if (Metric::needs_probes) {
    detail::require_equal("q.head_dim", probes.q.head_dim, k.head_dim);
    detail::require_equal("q.num_tokens", probes.q.num_tokens, num_probes);
    detail::require(probes.q.num_heads % k.num_heads == 0,
                    "q.num_heads must be a multiple of k.num_heads");
    if (!probes.lse.empty()) {
      detail::require_equal("lse.size()", static_cast<int64_t>(probes.lse.size()),
                            probes.q.num_heads * num_probes);
    }
    for (int64_t i = 0; i < num_probes; ++i) {
      const int64_t position = probes.positions[static_cast<size_t>(i)];
      detail::require(position >= 0, "a probe position is negative: " + std::to_string(position));
      detail::require(i == 0 || probes.positions[static_cast<size_t>(i - 1)] < position,
                      "probe positions must be ascending and differ");
    }
  }
  std::fill(scores.begin(), scores.end(), 0.0f);
  if (Metric::needs_probes && num_probes > 0) {
    detail::parallel_for(backend.num_threads, k.num_heads, [&](int64_t head) {
      detail::sum_probe_attention(probes, k, static_cast<int32_t>(head), sm_scale,
                                  scores.data() + head * kv_len);
    });
  }
  if constexpr (Scope::shared_by_heads) {
    for (int64_t token = 0; token < kv_len; ++token) {
      float sum = 0.0f;
      for (int32_t head = 0; head < k.num_heads; ++head)
        sum += scores[static_cast<size_t>(head * kv_len + token)];
      for (int32_t head = 0; head < k.num_heads; ++head)
        scores[static_cast<size_t>(head * kv_len + token)] = sum;
    }
  }
  int64_t unseen_probes = 0;  // probes before the token
  for (int64_t token = 0; token < kv_len; ++token) {
    while (unseen_probes < num_probes &&
           probes.positions[static_cast<size_t>(unseen_probes)] < token)
      ++unseen_probes;
    const token_visibility visible{num_probes - unseen_probes, kv_len - token};
    for (int32_t head = 0; head < k.num_heads; ++head) {
      float& score = scores[static_cast<size_t>(head * kv_len + token)];
      score = Metric::score(score, visible);
    }
  }
}

}  // namespace zipcache

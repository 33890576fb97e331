// Attention on packed codes against attention in double over the values that the codes stand for.
//
// Tolerance, with u = 2^-24, d = head_dim and n tokens. All products and sums are in float.
// 1. Scores. Scales are folded, so a score is a sum of codes times folded steps plus a bias, and
// its
//    terms are larger than the products that they stand for: |step * code| <= 2 W and |min| <= W, W
//    being the largest value of the group. With S = sum_c |q_c| * 3 W_c, in base 2, the score is
//    off by at most (d + 8) u S. W_c is the channel's largest value where pairs vary by channel,
//    the token group's (here: the head's) where they vary by token; with channel magnitudes m_c
//    (roots of largest values) the largest normalized value is max m, and W_c = m_c * max m.
//    Under a rotated layout all this is about rotated queries and values, and a channel of the
//    output gathers the errors of its block, each times 1 / sqrt(block).
// 2. A weight is off by a factor of 1 + e, e = 2 ln2 (d + 8) u S + 2e-7 for every exponential that
// it
//    went through: itself and one for every tile that raised the maximum, and for two merges.
// 3. The output is a weighted mean of terms of at most 3 W_c (as above, for values), summed over n
//    tokens: off by (2 e + (n + 16) u) 3 W_c. lse is off by e + (n + 16) u + 2^-23 |lse|.
// Output in 16 bits adds half of its spacing.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include <zipcache/attend/attend.hpp>

#include "support/catch.hpp"
#include "support/oracle.hpp"
#include "support/sealed_tokens.hpp"

namespace zipcache_test {

struct attended {
  std::vector<float> out;  // [num_qo_heads, qo_len, head_dim]
  std::vector<float> lse;  // [qo_len, num_qo_heads]
  bool operator==(const attended&) const = default;
};

/// Queries of `qo_len` rows of each of `group` query heads over the whole segment.
template <class Policies, class Storage>
attended attend_segment(const sealed_tokens<Policies, Storage>& tokens, const std::vector<float>& q,
                        int32_t group, int64_t qo_len, float sm_scale) {
  const token_shape& shape = tokens.shape;
  const int32_t num_qo_heads = shape.num_kv_heads * group;
  attended result{std::vector<float>(q.size(), -9.0f),
                  std::vector<float>(static_cast<size_t>(num_qo_heads * qo_len), -9.0f)};
  zipcache::attend_rows rows;
  for (int32_t head = 0; head < shape.num_kv_heads; ++head) {
    zipcache::load_queries<float>(zipcache::hnd(q.data(), num_qo_heads, qo_len, shape.head_dim),
                                  head, group, sm_scale, rows);
    zipcache::attend<Policies, Storage>(zipcache::cpu_backend{}, *tokens.sealed, head, rows);
    zipcache::store_output(rows, head, group,
                           zipcache::hnd(result.out.data(), num_qo_heads, qo_len, shape.head_dim),
                           result.lse.data(), num_qo_heads);
  }
  return result;
}

/// W_c of the bound above for one side of one head. values [num_tokens, head_dim]
template <class Granularity>
std::vector<double> largest_terms(const double* plain, int64_t num_tokens, int32_t head_dim) {
  std::vector<double> values(plain, plain + num_tokens * head_dim);
  if (zipcache::is_rotated<Granularity>)
    values = oracle::hadamard(values, head_dim, zipcache::rotation_block(head_dim));
  std::vector<double> by_channel(static_cast<size_t>(head_dim), 0.0);
  double largest = 0.0;
  for (int64_t token = 0; token < num_tokens; ++token) {
    for (int32_t channel = 0; channel < head_dim; ++channel) {
      const double x = std::fabs(values[static_cast<size_t>(token * head_dim + channel)]);
      double& entry = by_channel[static_cast<size_t>(channel)];
      entry = std::fmax(entry, x);
      largest = std::fmax(largest, x);
    }
  }
  if constexpr (!zipcache::block_codec<Granularity>) {
    if (Granularity::axis == zipcache::parameter_axis::channel) return by_channel;
    for (double& entry : by_channel)
      entry = Granularity::has_channel_magnitudes ? std::sqrt(entry * largest) : largest;
  }
  return by_channel;  // values that are decoded first have no larger terms than themselves
}

/// Bounds of channels after the rotation back, from bounds before it.
inline std::vector<double> gathered_by_rotation(std::vector<double> terms, int32_t head_dim) {
  const int32_t block = zipcache::rotation_block(head_dim);
  for (auto first = terms.begin(); first != terms.end(); first += block) {
    const double sum = std::accumulate(first, first + block, 0.0) / std::sqrt(block);
    std::fill(first, first + block, sum);
  }
  return terms;
}

/// Checks one segment with `group` query heads for each KV head and `qo_len` rows of each.
template <class Policies, class Storage = zipcache::half>
void check_attention(const token_shape& shape, int32_t group = 1, int64_t qo_len = 1) {
  INFO(Policies::name() << ": " << shape.num_salient << " of " << shape.num_tokens << " tokens of "
                        << shape.head_dim << " channels, " << name_of(shape.keys) << ", "
                        << name_of(shape.values) << ", group " << group << ", qo_len " << qo_len);
  sealed_tokens<Policies, Storage> tokens(shape, 17);
  const int32_t dim = shape.head_dim;
  const int32_t num_qo_heads = shape.num_kv_heads * group;
  const float sm_scale = 1.0f / std::sqrt(static_cast<float>(dim));
  const std::vector<float> q = make_values(content::gaussian, num_qo_heads, qo_len, dim, 23);
  const attended result = attend_segment(tokens, q, group, qo_len, sm_scale);

  const auto float_values = tokens.dequantized();
  const auto same = [](float x) { return x; };
  const std::vector<double> wide_q = oracle::widen(q, same);
  const std::vector<double> k = oracle::widen(float_values.k, same);
  const std::vector<double> v = oracle::widen(float_values.v, same);
  const double n = static_cast<double>(shape.num_tokens);
  for (int32_t qo_head = 0; qo_head < num_qo_heads; ++qo_head) {
    const int32_t head = qo_head / group;
    const double* head_k = k.data() + head * shape.num_tokens * dim;
    const double* head_v = v.data() + head * shape.num_tokens * dim;
    const auto key_terms = largest_terms<typename Policies::key_quantizer_policy::granularity>(
        head_k, shape.num_tokens, dim);
    auto value_terms = largest_terms<typename Policies::value_quantizer_policy::granularity>(
        head_v, shape.num_tokens, dim);
    if (zipcache::is_rotated<typename Policies::value_quantizer_policy::granularity>)
      value_terms = gathered_by_rotation(value_terms, dim);
    for (int64_t row = 0; row < qo_len; ++row) {
      const double* query = wide_q.data() + (qo_head * qo_len + row) * dim;
      const oracle::attention_result expected = oracle::attend(
          query, head_k, head_v, shape.num_tokens, dim, static_cast<double>(sm_scale),
          [&](int64_t token) { return !tokens.is_evicted(head, token); });
      std::vector<double> met(query, query + dim);
      if (zipcache::is_rotated<typename Policies::key_quantizer_policy::granularity>)
        met = oracle::hadamard(met, dim, zipcache::rotation_block(dim));
      double s = 0.0;
      for (int32_t channel = 0; channel < dim; ++channel)
        s += std::fabs(met[static_cast<size_t>(channel)]) * 3 *
             key_terms[static_cast<size_t>(channel)] * static_cast<double>(sm_scale) * 1.4427;
      const double e = std::expm1(2 * 0.6932 * (dim + 8) * 0x1p-24 * s + 2e-7 * (n / 32 + 4));
      const double sums = (n + 16) * 0x1p-24;
      const double lse =
          static_cast<double>(result.lse[static_cast<size_t>(row * num_qo_heads + qo_head)]);
      if (expected.lse == -oracle::infinity) {
        REQUIRE(lse == -oracle::infinity);
      } else {
        REQUIRE(e < 0.05);  // or the comparison says little
        REQUIRE(std::fabs(lse - expected.lse) <= e + sums + 0x1p-22 * std::fabs(expected.lse));
      }
      for (int32_t channel = 0; channel < dim; ++channel) {
        const double got = static_cast<double>(
            result.out[static_cast<size_t>((qo_head * qo_len + row) * dim + channel)]);
        INFO("head " << qo_head << ", row " << row << ", channel " << channel);
        REQUIRE(std::fabs(got - expected.out[static_cast<size_t>(channel)]) <=
                (2 * e + sums) * 3 * value_terms[static_cast<size_t>(channel)] + 1e-30);
      }
    }
  }

  // Whatever lies in unused tokens and bytes, no bit of the result may depend on it.
  for (const auto& [bits, byte] : {std::pair<uint16_t, uint8_t>{0x7fff, 0xff}, {0xffff, 0x7f}}) {
    tokens.poison(bits, byte);
    REQUIRE(attend_segment(tokens, q, group, qo_len, sm_scale) == result);
  }
}

}  // namespace zipcache_test

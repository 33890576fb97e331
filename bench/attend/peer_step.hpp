// What other libraries are given to attend to: one decode step of a layer in the shape of
// `attend/cpu/layer`, and the check that they computed it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>

#include <zipcache/core/types.hpp>

#include "support/tensors.hpp"

namespace zipcache_bench {

struct peer_step {
  static constexpr int32_t num_qo_heads = 32, num_kv_heads = 8, head_dim = 128;
  static constexpr int32_t group = num_qo_heads / num_kv_heads;
  static constexpr int32_t num_threads = 2;

  int64_t kv_len;
  std::vector<float> q;     // [num_qo_heads, head_dim]
  std::vector<float> k, v;  // [num_kv_heads, kv_len, head_dim]

  explicit peer_step(int64_t tokens)
      : kv_len(tokens),
        q(make_tensor<float>(num_qo_heads, 1, head_dim, 3)),
        k(make_tensor<float>(num_kv_heads, tokens, head_dim, 1)),
        v(make_tensor<float>(num_kv_heads, tokens, head_dim, 2)) {}

  static float scale() { return 1.0f / std::sqrt(static_cast<float>(head_dim)); }

  const float* query(int64_t qo_head) const { return &q[static_cast<size_t>(qo_head * head_dim)]; }
  int64_t row(int64_t qo_head, int64_t token) const {
    return (qo_head / group * kv_len + token) * head_dim;
  }
};

/// Softmax attention of one query head, in double. [head_dim]
inline std::vector<double> attend_in_double(const peer_step& step, int64_t qo_head) {
  std::vector<double> scores(static_cast<size_t>(step.kv_len), 0.0);
  for (size_t token = 0; token < scores.size(); ++token) {
    const float* key = &step.k[static_cast<size_t>(step.row(qo_head, int64_t(token)))];
    for (int32_t i = 0; i < step.head_dim; ++i)
      scores[token] += double{step.query(qo_head)[i]} * double{key[i]};
    scores[token] /= std::sqrt(double{peer_step::head_dim});
  }
  const double maximum = *std::max_element(scores.begin(), scores.end());
  std::vector<double> out(static_cast<size_t>(step.head_dim), 0.0);
  double sum = 0.0;
  for (size_t token = 0; token < scores.size(); ++token) {
    const float* value = &step.v[static_cast<size_t>(step.row(qo_head, int64_t(token)))];
    const double p = std::exp(scores[token] - maximum);
    for (size_t i = 0; i < out.size(); ++i) out[i] += p * double{value[i]};
    sum += p;
  }
  for (double& x : out) x /= sum;
  return out;
}

/// Relative L2 error of `out` [num_qo_heads, head_dim].
inline double relative_error(const peer_step& step, const float* out) {
  double error = 0.0, norm = 0.0;
  for (int64_t head = 0; head < step.num_qo_heads; ++head) {
    for (const double expected : attend_in_double(step, head)) {
      error += (double{*out} - expected) * (double{*out} - expected);
      norm += expected * expected;
      ++out;
    }
  }
  return std::sqrt(error / norm);
}

/// Times of a computation that does not do what it should are none.
inline void check_peer(benchmark::State& state, const peer_step& step, const float* out,
                       double allowed) {
  const double error = relative_error(step, out);
  state.counters["relative_error"] = error;
  if (!(error <= allowed)) state.SkipWithError("the peer's output is not attention");
}

template <class Benchmark>
void add_peer(const std::string& name, Benchmark&& peer) {
  benchmark::RegisterBenchmark(("attend/cpu/peer/" + name).c_str(), peer)
      ->ArgNames({"kv_len", "head_dim"})
      ->Args({4096, peer_step::head_dim})
      ->Args({32768, peer_step::head_dim})
      ->Unit(benchmark::kMillisecond)
      ->UseRealTime();
}

}  // namespace zipcache_bench

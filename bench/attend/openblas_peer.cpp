// Plain attention as anybody would write it with a BLAS: a matrix product for the scores of the
// query heads of a KV head, their softmax, a matrix product with the values. Keys and values are
// floats, or 16-bit numbers that become floats a block at a time in every step.
#include <algorithm>
#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

#include <benchmark/benchmark.h>
#include <cblas.h>

#include <zipcache/core/numerics.hpp>
#include <zipcache/detail/thread_pool.hpp>

#include "attend/peer_step.hpp"
#include "support/read_bandwidth.hpp"
#include "support/step_timing.hpp"

using zipcache_bench::peer_step;

namespace {

constexpr int32_t group = peer_step::group;
constexpr int32_t head_dim = peer_step::head_dim;

/// Rows of one product. OpenBLAS 0.3.21 does not pack the operands of so small a product: with 256
/// rows instead of 512 or all 4096, scores of 8 KV heads take 0.55 ms instead of 2.7 or 1.9 (one
/// Zen 4 core, 4096 tokens).
constexpr int64_t block_rows = 256;

/// What a thread needs for one KV head.
struct scratch {
  std::vector<float> scores;  // [group, kv_len]
  std::vector<float> rows;    // [block_rows, head_dim]
};

template <class Element>
const float* as_floats(const Element* rows, int64_t num_rows, std::vector<float>& converted) {
  if constexpr (std::is_same_v<Element, float>) {
    return rows;
  } else {
    converted.resize(static_cast<size_t>(block_rows * head_dim));
    float* to = converted.data();
    for (int64_t i = 0; i < num_rows * head_dim; ++i) to[i] = zipcache::to_float(rows[i]);
    return to;
  }
}

/// Calls use(first, count, floats) for the rows [first, first + count) of every block.
template <class Element, class Use>
void for_each_block(const Element* rows, int64_t num_rows, scratch& own, Use&& use) {
  for (int64_t first = 0; first < num_rows; first += block_rows) {
    const int64_t count = std::min(block_rows, num_rows - first);
    use(first, static_cast<blasint>(count), as_floats(rows + first * head_dim, count, own.rows));
  }
}

/// Lanes of their own, since a compiler may not reorder the maximum of floats.
float largest(const float* x, int64_t count) {
  float lanes[16];
  std::fill(std::begin(lanes), std::end(lanes), x[0]);
  int64_t i = 0;
  for (; i + 16 <= count; i += 16)
    for (int64_t lane = 0; lane < 16; ++lane) lanes[lane] = std::max(lanes[lane], x[i + lane]);
  for (; i < count; ++i) lanes[0] = std::max(lanes[0], x[i]);
  return *std::max_element(std::begin(lanes), std::end(lanes));
}

/// x becomes 2^(x - maximum); returns the sum.
float exponentiate(float* x, int64_t count) {
  const float maximum = largest(x, count);
  for (int64_t i = 0; i < count; ++i) x[i] = zipcache::exp2_poly(x[i] - maximum);
  return cblas_sasum(static_cast<blasint>(count), x, 1);
}

template <class Element>
class openblas_attention {
 public:
  /// The step's keys and values become those of `Element`, so that they can be compared with.
  explicit openblas_attention(peer_step& step)
      : step_(step), k_(stored(step.k)), v_(stored(step.v)), out_(step.q.size()) {}

  void attend_all() {
    zipcache::detail::parallel_for(peer_step::num_threads, peer_step::num_kv_heads,
                                   [&](int64_t head) { attend_head(head); });
  }
  const float* out() const { return out_.data(); }
  int64_t bytes() const { return static_cast<int64_t>(2 * k_.size() * sizeof(Element)); }

 private:
  static std::vector<Element> stored(std::vector<float>& x) {
    std::vector<Element> result;
    result.reserve(x.size());
    for (float& value : x) {
      result.push_back(zipcache::from_float<Element>(value));
      value = zipcache::to_float(result.back());
    }
    return result;
  }

  void attend_head(int64_t head) {
    static thread_local scratch own;
    own.scores.resize(static_cast<size_t>(group * step_.kv_len));
    score(head, own);
    float sums[group];
    for (int32_t row = 0; row < group; ++row)
      sums[row] = exponentiate(&own.scores[static_cast<size_t>(row * step_.kv_len)], step_.kv_len);
    add_values(head, own);
    for (int32_t row = 0; row < group; ++row)
      cblas_sscal(head_dim, 1.0f / sums[row], out_of(head) + row * head_dim, 1);
  }

  void score(int64_t head, scratch& own) {
    for_each_block(rows_of(k_, head), step_.kv_len, own,
                   [&](int64_t first, blasint count, const float* keys) {
                     cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, group, count, head_dim,
                                 step_.scale() * zipcache::log2_e, step_.query(head * group),
                                 head_dim, keys, head_dim, 0.0f, &own.scores[size_t(first)],
                                 static_cast<blasint>(step_.kv_len));
                   });
  }
  void add_values(int64_t head, scratch& own) {
    for_each_block(rows_of(v_, head), step_.kv_len, own,
                   [&](int64_t first, blasint count, const float* values) {
                     cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, group, head_dim, count,
                                 1.0f, &own.scores[size_t(first)],
                                 static_cast<blasint>(step_.kv_len), values, head_dim,
                                 first == 0 ? 0.0f : 1.0f, out_of(head), head_dim);
                   });
  }

  const Element* rows_of(const std::vector<Element>& x, int64_t head) const {
    return &x[static_cast<size_t>(step_.row(head * group, 0))];
  }
  float* out_of(int64_t head) { return &out_[static_cast<size_t>(head * group * head_dim)]; }

  const peer_step& step_;
  std::vector<Element> k_, v_;  // [num_kv_heads, kv_len, head_dim]
  std::vector<float> out_;      // [num_qo_heads, head_dim]
};

/// Rounding: a score is a sum of 128 floats, together some 100 at most, so off by about
/// sqrt(128) * 100 * 2^-24 = 7e-5, and a probability by that part of itself.
constexpr double allowed_error = 1e-4;

template <class Element>
void plain_attention(benchmark::State& state) {
  openblas_set_num_threads(1);  // the threads are those over KV heads
  peer_step step(state.range(0));
  openblas_attention<Element> attention(step);
  zipcache_bench::time_steps(state, [&] { attention.attend_all(); });
  zipcache_bench::check_peer(state, step, attention.out(), allowed_error);
  zipcache_bench::count_bytes(state, attention.bytes());
}

const bool added = [] {
  benchmark::AddCustomContext("openblas", std::string(openblas_get_config()));
  zipcache_bench::add_peer("openblas_f32", plain_attention<float>);
  zipcache_bench::add_peer("openblas_bf16", plain_attention<zipcache::bfloat16>);
  return true;
}();

}  // namespace

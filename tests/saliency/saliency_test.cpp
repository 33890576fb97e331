// Saliency against the oracle.
//
// Tolerance. A score in base 2 is a sum of d products, each rounded, so it is off by at most
// (d + 4) * 2^-24 of the sum of the products' magnitudes S; the log-sum-exp has the same error and
// a relative 2e-7 of every term. A probability p is then off by p * (2 ln2 (d + 4) 2^-24 S + 1e-6),
// and sums of n probabilities by n * 2^-24 of themselves more.
#include <cmath>
#include <numeric>
#include <vector>

#include <zipcache/saliency/saliency.hpp>

#include "support/catch.hpp"
#include "support/generators.hpp"
#include "support/oracle.hpp"

using namespace zipcache;
using zipcache_test::content;
using zipcache_test::make_values;
namespace oracle = zipcache_test::oracle;

namespace {

struct problem {
  int32_t num_qo_heads;
  int32_t num_kv_heads;
  int64_t kv_len;
  int32_t head_dim;
  std::vector<int64_t> positions;
  content what = content::gaussian;
};

/// Inputs of a problem: float queries, keys in half.
struct inputs {
  std::vector<float> q;
  std::vector<half> k;
  float sm_scale;

  explicit inputs(const problem& p)
      : q(make_values(content::gaussian, p.num_qo_heads, static_cast<int64_t>(p.positions.size()),
                      p.head_dim, 1)),
        k(zipcache_test::make_tensor<half>(p.what, p.num_kv_heads, p.kv_len, p.head_dim, 2)),
        sm_scale(1.0f / std::sqrt(static_cast<float>(p.head_dim))) {}

  std::vector<double> wide_q() const {
    return oracle::widen(q, [](float x) { return x; });
  }
  std::vector<double> wide_k() const {
    return oracle::widen(k, [](half x) { return oracle::value_of_half(x.bits); });
  }
};

template <class Metric, class Scope>
std::vector<float> score(const problem& p, const inputs& in, std::span<const float> lse = {}) {
  std::vector<float> scores(static_cast<size_t>(p.num_kv_heads * p.kv_len), -7.0f);
  const int64_t num_probes = static_cast<int64_t>(p.positions.size());
  const probe_queries<float> probes{
      hnd<const float>(in.q.data(), p.num_qo_heads, num_probes, p.head_dim), p.positions, lse};
  saliency<Metric, Scope, float, half>(
      cpu_backend{}, probes, hnd<const half>(in.k.data(), p.num_kv_heads, p.kv_len, p.head_dim),
      in.sm_scale, scores);
  return scores;
}

/// Natural log-sum-exp of every probe row, in double. [num_qo_heads, num_probes]
std::vector<float> exact_lse(const problem& p, const inputs& in) {
  const std::vector<double> q = in.wide_q();
  const std::vector<double> k = in.wide_k();
  const int group = p.num_qo_heads / p.num_kv_heads;
  std::vector<float> lse;
  for (int head = 0; head < p.num_qo_heads; ++head) {
    for (size_t probe = 0; probe < p.positions.size(); ++probe) {
      const double* query = q.data() + (static_cast<size_t>(head) * p.positions.size() + probe) *
                                           static_cast<size_t>(p.head_dim);
      const double* keys = k.data() + head / group * p.kv_len * p.head_dim;
      lse.push_back(static_cast<float>(
          oracle::attend(query, keys, keys, p.kv_len, p.head_dim, static_cast<double>(in.sm_scale),
                         [&](int64_t token) { return token <= p.positions[probe]; })
              .lse));
    }
  }
  return lse;
}

/// The relative bound on a probability, from the largest sum of product magnitudes.
double relative_bound(const problem& p, const inputs& in) {
  double largest = 0.0;
  const int group = p.num_qo_heads / p.num_kv_heads;
  const size_t dim = static_cast<size_t>(p.head_dim);
  for (int head = 0; head < p.num_qo_heads; ++head) {
    for (size_t probe = 0; probe < p.positions.size(); ++probe) {
      const float* query =
          in.q.data() + (static_cast<size_t>(head) * p.positions.size() + probe) * dim;
      for (int64_t token = 0; token < p.kv_len; ++token) {
        double sum = 0.0;
        for (size_t channel = 0; channel < dim; ++channel) {
          const size_t index = static_cast<size_t>(head / group * p.kv_len + token) * dim + channel;
          sum += std::fabs(static_cast<double>(query[channel]) *
                           static_cast<double>(to_float(in.k[index])));
        }
        largest = std::fmax(largest, sum * static_cast<double>(in.sm_scale) * 1.4427);
      }
    }
  }
  const double score_error = (p.head_dim + 4) * 0x1p-24 * largest;
  const double num_terms = static_cast<double>(p.positions.size()) * group + 8.0;
  return std::expm1(2 * 0.6932 * score_error + 1e-6) + num_terms * 0x1p-24;
}

void check_close(const std::vector<float>& scores, const std::vector<double>& expected,
                 double bound) {
  REQUIRE(bound < 1e-3);  // or the comparison says nothing
  REQUIRE(scores.size() == expected.size());
  for (size_t i = 0; i < scores.size(); ++i) {
    INFO("token " << i << " with bound " << bound);
    REQUIRE(std::fabs(static_cast<double>(scores[i]) - expected[i]) <=
            std::fabs(expected[i]) * bound + 1e-30);
  }
}

template <class Metric, class Scope>
void check_against_oracle(const problem& p, oracle::metric how) {
  INFO(Metric::name() << ", " << Scope::name() << ", " << p.num_qo_heads << " / " << p.num_kv_heads
                      << " heads, " << p.kv_len << " keys of " << p.head_dim << ", "
                      << p.positions.size() << " probes");
  const inputs in(p);
  const std::vector<double> expected = oracle::saliency(
      in.wide_q(), in.wide_k(), p.positions, p.num_qo_heads, p.num_kv_heads, p.kv_len, p.head_dim,
      static_cast<double>(in.sm_scale), how, Scope::shared_by_heads);
  const double bound = relative_bound(p, in) + 1e-6;
  check_close(score<Metric, Scope>(p, in), expected, bound);
  if (p.positions.empty()) return;
  // With lse given the second pass alone runs. Rounding lse to float adds 2^-24 of its magnitude.
  const std::vector<float> lse = exact_lse(p, in);
  double largest = 0.0;
  for (const float x : lse) largest = std::fmax(largest, std::fabs(static_cast<double>(x)));
  check_close(score<Metric, Scope>(p, in, lse), expected, bound + 2 * largest * 0x1p-23);
}

std::vector<int64_t> all_rows(int64_t count) {
  std::vector<int64_t> rows(static_cast<size_t>(count));
  std::iota(rows.begin(), rows.end(), int64_t{0});
  return rows;
}

}  // namespace

TEST_CASE("saliency: every metric is the oracle's, per KV head and per layer", "[saliency]") {
  const problem p{4, 2, 70, 32, {0, 3, 31, 32, 33, 60, 69}};
  check_against_oracle<normalized_attention, per_kv_head>(p, oracle::metric::normalized);
  check_against_oracle<normalized_attention, per_layer>(p, oracle::metric::normalized);
  check_against_oracle<accumulated_attention, per_kv_head>(p, oracle::metric::accumulated);
  check_against_oracle<accumulated_attention, per_layer>(p, oracle::metric::accumulated);
  check_against_oracle<normalized_by_length, per_kv_head>(p, oracle::metric::normalized_by_length);
  check_against_oracle<recency, per_kv_head>(p, oracle::metric::recency);
}

TEST_CASE("saliency: groups of 1, 3 and 4 query heads sum over their KV head", "[saliency]") {
  for (const int32_t group : {1, 3, 4}) {
    const problem p{2 * group, 2, 45, 48, {5, 17, 44}};
    check_against_oracle<normalized_attention, per_kv_head>(p, oracle::metric::normalized);
  }
}

TEST_CASE("saliency: lengths around blocks of 32 keys, with all rows as probes", "[saliency]") {
  for (const int64_t kv_len : {1, 2, 31, 32, 33, 63, 64, 65, 100}) {
    const problem p{2, 1, kv_len, 16, all_rows(kv_len)};
    check_against_oracle<accumulated_attention, per_kv_head>(p, oracle::metric::accumulated);
  }
}

TEST_CASE("saliency: every head_dim", "[saliency]") {
  for (const int32_t head_dim : {16, 48, 64, 80, 128, 256}) {
    const problem p{2, 2, 40, head_dim, {10, 39}};
    check_against_oracle<normalized_attention, per_kv_head>(p, oracle::metric::normalized);
  }
}

TEST_CASE("saliency: keys with sinks and token norms apart", "[saliency]") {
  for (const content what : {content::sinks, content::off_centre, content::constant_channels}) {
    const problem p{2, 1, 64, 32, {20, 40, 63}, what};
    check_against_oracle<normalized_attention, per_kv_head>(p, oracle::metric::normalized);
  }
}

TEST_CASE("saliency: a probe beyond the last key sees all keys", "[saliency]") {
  const problem p{2, 1, 40, 32, {39, 40, 1000}};
  check_against_oracle<normalized_attention, per_kv_head>(p, oracle::metric::normalized);
}

TEST_CASE("saliency: a token that no probe sees scores 0 and is finite", "[saliency]") {
  const problem p{1, 1, 70, 32, {9, 40}};
  const inputs in(p);
  const std::vector<float> scores = score<normalized_attention, per_kv_head>(p, in);
  for (size_t token = 0; token < 70; ++token) {
    REQUIRE(std::isfinite(scores[token]));
    REQUIRE((scores[token] > 0.0f) == (token <= 40));
  }
}

TEST_CASE("saliency: without probes everything scores 0, without keys nothing happens",
          "[saliency]") {
  const problem none{2, 1, 33, 16, {}};
  const inputs in(none);
  for (const float x : score<normalized_attention, per_kv_head>(none, in)) REQUIRE(x == 0.0f);
  const problem empty{2, 1, 0, 16, {3}};
  CHECK(score<normalized_attention, per_kv_head>(empty, inputs(empty)).empty());
}

TEST_CASE("saliency: the mass of a row is 1, so accumulated scores sum to the number of rows",
          "[saliency]") {
  const problem p{3, 1, 200, 64, {0, 50, 120, 199}};
  const inputs in(p);
  double sum = 0.0;
  for (const float x : score<accumulated_attention, per_kv_head>(p, in))
    sum += static_cast<double>(x);
  CHECK(std::fabs(sum - 12.0) < 12.0 * relative_bound(p, in));
}

TEST_CASE("saliency: the number of threads changes no bit", "[saliency]") {
  const problem p{6, 3, 100, 32, {7, 50, 99}};
  const inputs in(p);
  const std::vector<float> expected = score<normalized_attention, per_layer>(p, in);
  std::vector<float> scores(expected.size());
  const probe_queries<float> probes{hnd<const float>(in.q.data(), 6, 3, 32), p.positions, {}};
  saliency<normalized_attention, per_layer, float, half>(
      cpu_backend{3}, probes, hnd<const half>(in.k.data(), 3, 100, 32), in.sm_scale, scores);
  CHECK(scores == expected);
}

TEST_CASE("saliency: inputs that do not fit are refused", "[saliency]") {
  const auto scores_of = [](const problem& p) {
    return score<normalized_attention, per_kv_head>(p, inputs(p));
  };
  CHECK_THROWS_AS(scores_of({3, 2, 10, 32, {4}}), argument_error);
  CHECK_THROWS_AS(scores_of({2, 2, 10, 24, {4}}), argument_error);
  CHECK_THROWS_AS(scores_of({2, 2, 10, 32, {4, 4}}), argument_error);
  CHECK_THROWS_AS(scores_of({2, 2, 10, 32, {5, 4}}), argument_error);
  CHECK_THROWS_AS(scores_of({2, 2, 10, 32, {-1, 4}}), argument_error);
  const problem p{2, 2, 10, 32, {4, 9}};
  const std::vector<float> short_lse(3);
  CHECK_THROWS_AS((score<normalized_attention, per_kv_head>(p, inputs(p), short_lse)),
                  argument_error);
}

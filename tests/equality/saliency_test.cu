// Saliency on the device against the oracle in double, and against the CPU.
//
// Tolerance. A score in base 2 is a sum of d exact products. Tensor cores add them in fp32, with
// an error of one unit of 2^-22 of the partial sums for each product at most, so a score is off by
// (d + 8) * 2^-22 of the sum of the products' magnitudes, S. The log-sum-exp has the same error and
// that of its own rounding, 2^-23 of S + 20 (20 bits are more than the logarithm of the length),
// and a row's sum of exponentials a relative (kv_len + 8) * 2^-24. The exponential is off by 2^-22
// in each place. Sums over n probe rows add a relative (n + 8) * 2^-24. The CPU stays well within
// the same bound, so both are within twice that of each other.
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include <zipcache/saliency/saliency.cuh>
#include <zipcache/saliency/saliency.hpp>

#include "support/catch.hpp"
#include "support/device.cuh"
#include "support/generators.hpp"
#include "support/oracle.hpp"

using namespace zipcache_test;
using namespace zipcache;
using f16 = zipcache::half;

namespace {

struct problem {
  int32_t num_qo_heads = 4;
  int32_t num_kv_heads = 2;
  int64_t kv_len = 100;
  int32_t head_dim = 64;
  std::vector<int64_t> positions = {};
  content what = content::gaussian;
};

/// The last `recent` positions and every n-th of the others.
std::vector<int64_t> probe_positions(int64_t kv_len, int64_t recent, int64_t step) {
  std::vector<int64_t> positions;
  for (int64_t position = 0; position < kv_len; ++position)
    if (position >= kv_len - recent || position % step == step / 2) positions.push_back(position);
  return positions;
}

template <class Element>
double value_of(Element x) {
  return std::is_same_v<Element, f16> ? oracle::value_of_half(x.bits)
                                      : oracle::value_of_bfloat16(x.bits);
}

template <class Element>
struct inputs {
  problem shape;
  std::vector<Element> q, k;
  float sm_scale;

  explicit inputs(const problem& p, uint64_t seed = 1)
      : shape(p),
        q(make_tensor<Element>(content::gaussian, p.num_qo_heads,
                               static_cast<int64_t>(p.positions.size()), p.head_dim, seed)),
        k(make_tensor<Element>(p.what, p.num_kv_heads, p.kv_len, p.head_dim, seed + 1)),
        sm_scale(1.0f / std::sqrt(static_cast<float>(p.head_dim))) {}

  int64_t num_probes() const { return static_cast<int64_t>(shape.positions.size()); }
  tensor_view<const Element> q_view(const Element* data) const {
    return hnd(data, shape.num_qo_heads, num_probes(), shape.head_dim);
  }
  tensor_view<const Element> k_view(const Element* data) const {
    return hnd(data, shape.num_kv_heads, shape.kv_len, shape.head_dim);
  }
  std::vector<double> wide_q() const { return oracle::widen(q, value_of<Element>); }
  std::vector<double> wide_k() const { return oracle::widen(k, value_of<Element>); }

  /// Natural log-sum-exp of every probe row. [num_qo_heads, num_probes]
  std::vector<float> exact_lse() const {
    const std::vector<double> wq = wide_q();
    const std::vector<double> wk = wide_k();
    const int group = shape.num_qo_heads / shape.num_kv_heads;
    std::vector<float> lse;
    for (int32_t head = 0; head < shape.num_qo_heads; ++head) {
      for (int64_t probe = 0; probe < num_probes(); ++probe) {
        const double* query = wq.data() + (head * num_probes() + probe) * shape.head_dim;
        const double* keys = wk.data() + head / group * shape.kv_len * shape.head_dim;
        const int64_t last = shape.positions[static_cast<size_t>(probe)];
        lse.push_back(
            static_cast<float>(oracle::attend(query, keys, keys, shape.kv_len, shape.head_dim,
                                              static_cast<double>(sm_scale),
                                              [&](int64_t token) { return token <= last; })
                                   .lse));
      }
    }
    return lse;
  }

  /// The relative bound on a score; see above.
  double bound() const {
    double largest = 0.0;
    const int group = shape.num_qo_heads / shape.num_kv_heads;
    for (int32_t head = 0; head < shape.num_qo_heads; ++head) {
      for (int64_t probe = 0; probe < num_probes(); ++probe) {
        const Element* query = q.data() + (head * num_probes() + probe) * shape.head_dim;
        for (int64_t token = 0; token < shape.kv_len; ++token) {
          const Element* key = k.data() + (head / group * shape.kv_len + token) * shape.head_dim;
          double sum = 0.0;
          for (int32_t channel = 0; channel < shape.head_dim; ++channel)
            sum += std::fabs(static_cast<double>(to_float(query[channel])) *
                             static_cast<double>(to_float(key[channel])));
          largest = std::fmax(largest, sum * static_cast<double>(sm_scale) * 1.4427);
        }
      }
    }
    const double score_error = (shape.head_dim + 8) * 0x1p-22 * largest;
    const double lse_error = 0x1p-23 * (largest + 20.0);
    const double terms = static_cast<double>(shape.kv_len + num_probes() * group) + 16.0;
    return std::expm1(0.6932 * (2.0 * score_error + lse_error) + 0x1p-20) + terms * 0x1p-24;
  }
};

template <class Metric, class Scope, class Element>
std::vector<float> device_scores(const inputs<Element>& in, bool with_lse) {
  const auto q = upload(in.q);
  const auto k = upload(in.k);
  const auto positions = upload(in.shape.positions);
  const auto lse = upload(in.exact_lse());
  const auto scores = poisoned<float>(static_cast<size_t>(in.shape.num_kv_heads * in.shape.kv_len));
  const device_probe_queries<Element> probes{in.q_view(q.data()), positions.data(),
                                             with_lse ? lse.data() : nullptr};
  const test_workspace workspace(
      saliency_workspace_bytes<Metric, Scope>(probes, in.k_view(k.data())));
  saliency<Metric, Scope>(cuda_backend{}, probes, in.k_view(k.data()), in.sm_scale, scores.data(),
                          workspace);
  return download(scores);
}

template <class Metric, class Scope, class Element>
std::vector<float> host_scores(const inputs<Element>& in, bool with_lse) {
  std::vector<float> scores(static_cast<size_t>(in.shape.num_kv_heads * in.shape.kv_len));
  const std::vector<float> lse = with_lse ? in.exact_lse() : std::vector<float>();
  const probe_queries<Element> probes{in.q_view(in.q.data()), in.shape.positions, lse};
  saliency<Metric, Scope>(cpu_backend{}, probes, in.k_view(in.k.data()), in.sm_scale, scores);
  return scores;
}

template <class Metric>
constexpr oracle::metric oracle_metric =
    std::is_same_v<Metric, normalized_attention>    ? oracle::metric::normalized
    : std::is_same_v<Metric, accumulated_attention> ? oracle::metric::accumulated
    : std::is_same_v<Metric, normalized_by_length>  ? oracle::metric::normalized_by_length
                                                    : oracle::metric::recency;

void check_close(const std::vector<float>& scores, const std::vector<double>& expected,
                 double bound) {
  REQUIRE(scores.size() == expected.size());
  double worst = 0.0;  // in units of the bound
  for (size_t i = 0; i < scores.size(); ++i) {
    const double error = std::fabs(static_cast<double>(scores[i]) - expected[i]);
    const double allowed = std::fabs(expected[i]) * bound + 1e-30;
    worst = std::fmax(worst, std::isnan(error) ? oracle::infinity : error / allowed);
  }
  CHECK(worst <= 1.0);
}

template <class Metric, class Scope, class Element>
void check_saliency(const problem& shape, float scale_factor = 1.0f) {
  INFO("kv_len " << shape.kv_len << ", head_dim " << shape.head_dim << ", "
                 << shape.positions.size() << " probes, " << shape.num_qo_heads << " on "
                 << shape.num_kv_heads << " heads");
  inputs<Element> in(shape);
  const double bound = in.bound();
  in.sm_scale *= scale_factor;
  REQUIRE(bound < 1e-2);  // or the comparison says nothing
  const std::vector<double> expected = oracle::saliency(
      in.wide_q(), in.wide_k(), shape.positions, shape.num_qo_heads, shape.num_kv_heads,
      shape.kv_len, shape.head_dim, static_cast<double>(in.sm_scale), oracle_metric<Metric>,
      Scope::shared_by_heads);
  for (const bool with_lse : {true, false}) {
    INFO((with_lse ? "with lse" : "without lse"));
    const auto scores = device_scores<Metric, Scope>(in, with_lse);
    check_close(scores, expected, bound);
    const auto on_host = host_scores<Metric, Scope>(in, with_lse);
    check_close(scores, std::vector<double>(on_host.begin(), on_host.end()), 2.0 * bound);
  }
}

}  // namespace

TEST_CASE("saliency: the device agrees with the oracle at any head dimension",
          "[equality][saliency]") {
  for (const int32_t head_dim : {16, 48, 64, 80, 96, 112, 128, 144, 256}) {
    check_saliency<normalized_attention, per_kv_head, f16>(
        {.kv_len = 150, .head_dim = head_dim, .positions = probe_positions(150, 9, 13)});
  }
}

TEST_CASE("saliency: the device agrees with the oracle at any length", "[equality][saliency]") {
  for (const int64_t kv_len : {1, 2, 31, 64, 65, 255, 256, 257, 700}) {
    check_saliency<normalized_attention, per_kv_head, f16>(
        {.kv_len = kv_len, .positions = probe_positions(kv_len, 1 + kv_len / 20, 19)});
  }
}

TEST_CASE("saliency: the device agrees with the oracle for any number of query heads",
          "[equality][saliency]") {
  for (const int32_t group : {1, 2, 3, 7, 8, 16}) {
    check_saliency<normalized_attention, per_kv_head, f16>(
        {.num_qo_heads = 2 * group, .kv_len = 120, .positions = probe_positions(120, 6, 11)});
  }
}

TEST_CASE("saliency: the device agrees with the oracle whatever the probes",
          "[equality][saliency]") {
  std::vector<int64_t> all(90);
  std::iota(all.begin(), all.end(), int64_t{0});
  // All rows; one; early rows only, so that most tokens are seen by none; rows behind the last key.
  const std::vector<std::vector<int64_t>> choices = {
      all, {89}, {0}, {0, 3, 40}, {10, 88, 89, 200, 201, 1000000}};
  for (const auto& positions : choices) {
    check_saliency<normalized_attention, per_kv_head, f16>({.kv_len = 90, .positions = positions});
  }
  std::vector<int64_t> many(600);
  std::iota(many.begin(), many.end(), int64_t{0});
  check_saliency<accumulated_attention, per_kv_head, f16>(
      {.num_qo_heads = 2, .num_kv_heads = 1, .kv_len = 600, .head_dim = 16, .positions = many});
}

TEMPLATE_TEST_CASE("saliency: the device agrees with the oracle under every metric",
                   "[equality][saliency]", normalized_attention, accumulated_attention,
                   normalized_by_length, recency) {
  const problem shape{.kv_len = 200, .positions = probe_positions(200, 10, 17)};
  check_saliency<TestType, per_kv_head, f16>(shape);
  check_saliency<TestType, per_layer, f16>(shape);
}

TEST_CASE("saliency: the device agrees with the oracle in bfloat16", "[equality][saliency]") {
  check_saliency<normalized_attention, per_kv_head, bfloat16>(
      {.kv_len = 200, .head_dim = 128, .positions = probe_positions(200, 10, 17)});
}

TEST_CASE("saliency: the device agrees with the oracle beside sinks and large keys",
          "[equality][saliency]") {
  for (const content what : {content::sinks, content::outlier_channels, content::token_norms,
                             content::off_centre, content::signed_zeros}) {
    problem shape{.kv_len = 200, .head_dim = 16, .positions = probe_positions(200, 10, 17)};
    shape.what = what;
    check_saliency<normalized_attention, per_kv_head, f16>(shape);
  }
}

TEST_CASE("saliency: the device agrees with the oracle with any scale", "[equality][saliency]") {
  for (const float factor : {-1.0f, 0.0f, 1e-3f}) {
    INFO("scale times " << factor);
    check_saliency<normalized_attention, per_kv_head, f16>(
        {.kv_len = 200, .positions = probe_positions(200, 10, 17)}, factor);
  }
}

TEST_CASE("saliency: the device agrees with the oracle for more heads than it has multiprocessors",
          "[equality][saliency]") {
  // Blocks go from one head to the next, also from one that no probe sees the keys of.
  auto positions = probe_positions(520, 6, 40);
  check_saliency<normalized_attention, per_kv_head, f16>({.num_qo_heads = 200,
                                                          .num_kv_heads = 200,
                                                          .kv_len = 520,
                                                          .head_dim = 16,
                                                          .positions = positions});
  positions = {3, 17, 200, 255};
  check_saliency<normalized_attention, per_kv_head, f16>({.num_qo_heads = 400,
                                                          .num_kv_heads = 200,
                                                          .kv_len = 520,
                                                          .head_dim = 16,
                                                          .positions = positions});
}

TEST_CASE("saliency: no probes score 0, and the last token counts itself", "[equality][saliency]") {
  const auto none = device_scores<normalized_attention, per_kv_head>(inputs<f16>({}), false);
  CHECK(none == std::vector<float>(200, 0.0f));
  const auto latest = device_scores<recency, per_layer>(inputs<f16>({}), false);
  CHECK(latest[99] == -1.0f);
  CHECK(latest[100] == -100.0f);
}

TEST_CASE("saliency: runs give the same bits", "[equality][saliency]") {
  const inputs<f16> in({.num_qo_heads = 8,
                        .num_kv_heads = 2,
                        .kv_len = 1100,
                        .head_dim = 64,
                        .positions = probe_positions(1100, 20, 40)});
  for (const bool with_lse : {true, false}) {
    const auto first = device_scores<normalized_attention, per_layer>(in, with_lse);
    for (int run = 0; run < 2; ++run)
      CHECK(device_scores<normalized_attention, per_layer>(in, with_lse) == first);
  }
}

TEST_CASE("saliency: several sequences in one call get what each gets alone",
          "[equality][saliency]") {
  const problem shape{.kv_len = 150, .positions = probe_positions(150, 9, 13)};
  const inputs<f16> one(shape, 3);
  const inputs<f16> other(shape, 5);
  const auto join = [](auto a, const auto& b) {
    a.insert(a.end(), b.begin(), b.end());
    return a;
  };
  const auto q = upload(join(one.q, other.q));
  const auto k = upload(join(one.k, other.k));
  const auto lse = upload(join(one.exact_lse(), other.exact_lse()));
  const auto positions = upload(shape.positions);
  const saliency_batch batch{.num_sequences = 2,
                             .q_stride = static_cast<int64_t>(one.q.size()),
                             .k_stride = static_cast<int64_t>(one.k.size())};
  for (const bool with_lse : {true, false}) {
    const auto scores = poisoned<float>(2 * 2 * 150);
    const device_probe_queries<f16> probes{one.q_view(q.data()), positions.data(),
                                           with_lse ? lse.data() : nullptr};
    const test_workspace workspace(saliency_workspace_bytes<normalized_attention, per_layer>(
        probes, one.k_view(k.data()), batch));
    saliency<normalized_attention, per_layer>(cuda_backend{}, probes, one.k_view(k.data()),
                                              one.sm_scale, scores.data(), workspace, batch);
    CHECK(download(scores) ==
          join(device_scores<normalized_attention, per_layer>(one, with_lse),
               device_scores<normalized_attention, per_layer>(other, with_lse)));
  }
}

TEST_CASE("saliency: tokens before heads are read in place", "[equality][saliency]") {
  const problem shape{.kv_len = 130, .positions = probe_positions(130, 9, 13)};
  const inputs<f16> in(shape);
  const auto swap_axes = [](const std::vector<f16>& x, int64_t heads, int64_t tokens, int64_t dim) {
    std::vector<f16> swapped(x.size());
    for (int64_t head = 0; head < heads; ++head)
      for (int64_t token = 0; token < tokens; ++token)
        std::copy_n(x.begin() + (head * tokens + token) * dim, dim,
                    swapped.begin() + (token * heads + head) * dim);
    return swapped;
  };
  const auto q = upload(swap_axes(in.q, 4, in.num_probes(), 64));
  const auto k = upload(swap_axes(in.k, 2, 130, 64));
  const auto positions = upload(shape.positions);
  const auto scores = poisoned<float>(2 * 130);
  const device_probe_queries<f16> probes{nhd<const f16>(q.data(), in.num_probes(), 4, 64),
                                         positions.data(), nullptr};
  const auto k_view = nhd<const f16>(k.data(), 130, 2, 64);
  const test_workspace workspace(
      saliency_workspace_bytes<normalized_attention, per_kv_head>(probes, k_view));
  saliency<normalized_attention, per_kv_head>(cuda_backend{}, probes, k_view, in.sm_scale,
                                              scores.data(), workspace);
  CHECK(download(scores) == device_scores<normalized_attention, per_kv_head>(in, false));
}

TEST_CASE("saliency: wrong arguments are refused before anything is launched",
          "[equality][saliency]") {
  const problem shape{.kv_len = 100, .positions = probe_positions(100, 5, 13)};
  const inputs<f16> in(shape);
  const auto q = upload(in.q);
  const auto k = upload(in.k);
  const auto positions = upload(shape.positions);
  const auto scores = poisoned<float>(200);
  const device_probe_queries<f16> good{in.q_view(q.data()), positions.data(), nullptr};
  const auto keys = in.k_view(k.data());
  const size_t bytes = saliency_workspace_bytes<normalized_attention, per_kv_head>(good, keys);
  REQUIRE(bytes > 0);
  const test_workspace memory(bytes);
  const device_workspace workspace = memory;
  const auto refused = [&](const device_probe_queries<f16>& probes, tensor_view<const f16> k_view,
                           float* out, device_workspace given) {
    const auto run = [&] {
      saliency<normalized_attention, per_kv_head>(cuda_backend{}, probes, k_view, 0.125f, out,
                                                  given);
    };
    CHECK_THROWS_AS(run(), argument_error);
  };
  std::vector<float> host(200);
  refused(good, keys, host.data(), workspace);
  refused(good, keys, nullptr, workspace);
  refused(good, keys, scores.data(), {workspace.data, bytes - 1});
  refused(good, keys, scores.data(), {host.data(), bytes});
  refused(good, in.k_view(in.k.data()), scores.data(), workspace);
  auto probes = good;
  probes.q.data = in.q.data();
  refused(probes, keys, scores.data(), workspace);
  probes = good;
  probes.positions = shape.positions.data();
  refused(probes, keys, scores.data(), workspace);
  probes = good;
  probes.lse = host.data();
  refused(probes, keys, scores.data(), workspace);
  probes = good;
  probes.q.head_dim = 48;
  refused(probes, keys, scores.data(), workspace);
  probes = good;
  probes.q.num_heads = 3;
  refused(probes, keys, scores.data(), workspace);
  probes = good;
  probes.q.data = q.data() + 1;
  refused(probes, keys, scores.data(), workspace);
  auto changed = keys;
  changed.head_dim = 72;
  refused(good, changed, scores.data(), workspace);
  CHECK(download(scores)[0] != 0.0f);
}

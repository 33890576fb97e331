// Which queries decide, and that the tokens with the most attention are the salient ones.
#include <algorithm>
#include <functional>
#include <numeric>
#include <set>

#include "support/cache_runs.hpp"
#include "support/catch.hpp"

namespace {

using namespace zipcache_test;
using zipcache::half;
namespace presets = zipcache::presets;

/// The class of every sealed token. [num_kv_heads][sealed tokens]
template <class Policies, class Cache>
std::vector<std::vector<bool>> salient_tokens(const Cache& cache, zipcache::sequence_id sequence) {
  std::vector<std::vector<bool>> salient(static_cast<size_t>(cache.shape().num_kv_heads));
  for (const auto& segment : cache.template inspect<Policies>(sequence, 0)->segments())
    for (int32_t head = 0; head < cache.shape().num_kv_heads; ++head)
      for (int64_t token = 0; token < segment->shape.num_tokens; ++token)
        salient[static_cast<size_t>(head)].push_back(segment->is_salient(head, token));
  return salient;
}

void change_query(tensor<half>& q, int64_t token, float factor) {
  for (int32_t head = 0; head < q.heads; ++head) {
    for (int32_t channel = 0; channel < q.dim; ++channel) {
      half& x = q.at(head, token, channel);
      x = zipcache::from_float<half>(factor * zipcache::to_float(x));
    }
  }
}

/// Positions of [0, length) whose query, if changed, changes a byte of what is sealed after
/// `length` tokens of which the first `prompt` are a prompt. A query that counts need not change
/// the selection, so several sets of tokens are tried.
template <class Policies>
std::vector<int64_t> queries_that_count(const zipcache::cache_options& options, int64_t prompt,
                                        int64_t length,
                                        const zipcache::prefill_options& given = {}) {
  std::set<int64_t> counted;
  for (const uint64_t seed : {61u, 161u, 261u, 361u, 461u, 561u}) {
    const token_data<half> data(small_shape, length, seed);
    const auto run = [&](const token_data<half>& tokens) {
      zipcache::kv_cache<half, Policies> subject(small_shape, options);
      const auto sequence = subject.create();
      if (prompt > 0)
        subject.prefill(sequence, 0, tokens.q.part(0, prompt), tokens.k.part(0, prompt),
                        tokens.v.part(0, prompt), given);
      if (length > prompt) decode_at_once(subject, sequence, tokens, prompt, length);
      return snapshot(subject, sequence);
    };
    const std::string expected = run(data);
    token_data<half> changed = data;
    for (int64_t token = 0; token < length; ++token) {
      change_query(changed.q, token, -3.0f);
      if (run(changed) != expected) counted.insert(token);
      for (int32_t head = 0; head < changed.q.heads; ++head)
        std::copy_n(&data.q.at(head, token, 0), changed.q.dim, &changed.q.at(head, token, 0));
    }
  }
  return {counted.begin(), counted.end()};
}

using rows = std::vector<int64_t>;

TEST_CASE("stream: only the given rows of a prompt decide under given_probes", "[stream][probes]") {
  using policies = presets::paper::with<zipcache::given_probes>;
  const rows given{3, 40, 41, 69};
  CHECK(queries_that_count<policies>({}, 80, 80, {.probe_rows = given}) == given);
  // While decoding it is the last row of the interval.
  CHECK(queries_that_count<policies>({.recompress_interval = 33}, 0, 34) == rows{32});
}

TEST_CASE("stream: recent probes are the last rows, no more of them than max_probes",
          "[stream][probes]") {
  using policies = presets::paper::with<zipcache::recent_probes>;
  // 10 % of 80 rows.
  CHECK(queries_that_count<policies>({}, 80, 80) == rows{72, 73, 74, 75, 76, 77, 78, 79});
  CHECK(queries_that_count<policies>({.max_probes = 2}, 80, 80) == rows{78, 79});
  CHECK(queries_that_count<policies>({.max_probes = 1}, 80, 80) == rows{79});
  // 5 % of each kind, at most one of each: the last row and one other.
  const auto both = queries_that_count<presets::paper>({.max_probes = 1}, 80, 80);
  CHECK(both.size() == 2);
  CHECK(both.back() == 79);
}

TEST_CASE("stream: probes of an interval are its own rows, those after the last flush",
          "[stream][probes]") {
  using policies = presets::paper::with<zipcache::recent_probes>;
  // 10 % of 40 rows; the 41st token flushes the first 40, whose probes are rows 36 to 39.
  CHECK(queries_that_count<policies>({.recompress_interval = 40}, 0, 41) == rows{36, 37, 38, 39});
  // With a window of 16 the interval's rows arrive 16 tokens later.
  CHECK(queries_that_count<policies>({.recompress_interval = 40, .recent_window = 16}, 0, 57) ==
        rows{52, 53, 54, 55});
  // All rows of the second interval, none of the first nor of the window behind it. (A row that
  // sees one token only tells nothing about which are salient, so the first may not show.)
  const auto all = queries_that_count<presets::paper::with<zipcache::all_probes>>(
      {.recompress_interval = 20}, 10, 31);
  CHECK(std::all_of(all.begin(), all.end(), [](int64_t row) { return row < 30; }));
  CHECK(all.back() == 29);
  // The method's own choice: the last 5 % of 40 rows and as many others.
  const auto both =
      queries_that_count<presets::paper>({.recompress_interval = 40, .seed = 5}, 0, 41);
  CHECK(both.size() == 4);
  CHECK(rows(both.end() - 2, both.end()) == rows{38, 39});
}

TEST_CASE("stream: policies that look at no scores need no queries", "[stream][probes]") {
  const token_data<half> data(small_shape, 400, 62);
  zipcache::kv_cache<half, presets::kivi_2bit> subject(small_shape);
  const auto sequence = subject.create();
  subject.prefill(sequence, 0, {}, data.k.part(0, 200), data.v.part(0, 200));
  for (int64_t token = 200; token < 400; ++token)
    subject.append(sequence, 0, data.k.part(token, 1), data.v.part(token, 1));
  CHECK(subject.length(sequence) == 400);
  CHECK(queries_that_count<presets::uncompressed>({}, 40, 60).empty());
}

/// Whether the salient tokens of [first, first + count) are those with the largest scores, apart
/// from scores closer to the cut than `bound` times the largest.
bool selects_largest(const std::vector<double>& scores, const std::vector<bool>& salient,
                     int64_t first, double bound) {
  double least_salient = INFINITY;
  double most_regular = -INFINITY;
  double largest = 0.0;
  for (size_t i = 0; i < scores.size(); ++i) {
    largest = std::max(largest, scores[i]);
    if (salient[static_cast<size_t>(first) + i]) {
      least_salient = std::min(least_salient, scores[i]);
    } else {
      most_regular = std::max(most_regular, scores[i]);
    }
  }
  return least_salient >= most_regular - bound * largest;
}

/// Whether `count` is the fewest tokens that hold `share` of the mass, which is known to a factor
/// of 1 + `error`.
bool is_fewest_with_share(std::vector<double> mass, int64_t count, double share, double error) {
  std::sort(mass.begin(), mass.end(), std::greater<double>());
  const double total = std::accumulate(mass.begin(), mass.end(), 0.0);
  const double held = std::accumulate(mass.begin(), mass.begin() + count, 0.0);
  const double one_less = count > 0 ? held - mass[static_cast<size_t>(count - 1)] : -1.0;
  return held >= (share - error) * total && one_less < (share + error) * total;
}

template <class Policies>
void check_prompt_selection(int64_t recent, bool is_normalized, bool with_lse) {
  constexpr int64_t prompt = 130;
  const token_data<half> data(small_shape, prompt, 63);
  const double scale = 1.0 / std::sqrt(32.0);
  tensor<float> keys(small_shape.num_kv_heads, prompt, small_shape.head_dim);
  for (size_t i = 0; i < keys.values.size(); ++i)
    keys.values[i] = zipcache::to_float(data.k.values[i]);

  const int64_t sealed = prompt - recent;
  std::vector<std::vector<double>> scores(2, std::vector<double>(static_cast<size_t>(sealed)));
  std::vector<float> lse(static_cast<size_t>(prompt * small_shape.num_qo_heads));
  double score_error = 0.0;
  for (int32_t head = 0; head < small_shape.num_qo_heads; ++head) {
    const int32_t kv_head = head / 2;
    for (int64_t row = 0; row < prompt; ++row) {
      const half* q = &data.q.at(head, row, 0);
      const exact_row exact =
          exact_attention(q, keys, keys, kv_head, row + 1, scale, [](int64_t) { return true; });
      lse[static_cast<size_t>(row * small_shape.num_qo_heads + head)] =
          static_cast<float>(exact.lse);
      score_error = std::max(score_error, exact.score_error);
      for (int64_t token = 0; token <= row && token < sealed; ++token) {
        double score = 0.0;
        for (int32_t channel = 0; channel < small_shape.head_dim; ++channel)
          score += static_cast<double>(zipcache::to_float(q[channel])) *
                   static_cast<double>(keys.at(kv_head, token, channel));
        scores[static_cast<size_t>(kv_head)][static_cast<size_t>(token)] +=
            std::exp(score * scale - exact.lse);
      }
    }
  }
  std::vector<double> mass(static_cast<size_t>(sealed));
  for (const auto& head : scores)
    for (size_t token = 0; token < mass.size(); ++token) mass[token] += head[token];
  if (is_normalized)
    for (auto& head : scores)
      for (int64_t token = 0; token < sealed; ++token)
        head[static_cast<size_t>(token)] /= static_cast<double>(2 * (prompt - token));

  zipcache::kv_cache<half, Policies> subject(small_shape, {.recent_window = recent});
  const auto sequence = subject.create();
  zipcache::prefill_options options;
  if (with_lse) options.lse = lse;
  subject.prefill(sequence, 0, data.q.view(), data.k.view(), data.v.view(), options);
  REQUIRE(subject.sealed_length(sequence) == sealed);
  const auto salient = salient_tokens<Policies>(subject, sequence);
  for (size_t head = 0; head < 2; ++head) {
    // A probability is wrong by twice its score's error (its own and the normalizer's), and sums of
    // up to 260 of them by as many units.
    const double error = std::expm1(2.0 * score_error) + 1e-6 + 260 * 0x1.0p-24;
    const int64_t count = std::count(salient[head].begin(), salient[head].end(), true);
    if constexpr (zipcache::counts_by_mass<typename Policies::budget_policy>) {
      CHECK(count < sealed);
      CHECK(is_fewest_with_share(mass, count, 0.975, 2 * error));
    } else {
      CHECK(count == (sealed * 60 + 50) / 100);
    }
    CHECK(selects_largest(scores[head], salient[head], 0, error));
  }
}

TEST_CASE("stream: the salient tokens of a prompt are those with the most attention of its probes",
          "[stream][probes]") {
  using normalized = presets::paper::with<zipcache::all_probes>;
  for (const bool with_lse : {false, true}) {
    for (const int64_t recent : {0, 40}) {
      INFO("recent window " << recent << ", lse given: " << with_lse);
      check_prompt_selection<normalized>(recent, true, with_lse);
      check_prompt_selection<presets::mikv>(recent, false, with_lse);
      check_prompt_selection<presets::zipvl::with<zipcache::all_probes>>(recent, true, with_lse);
    }
  }
}

TEST_CASE(
    "stream: the salient tokens of an interval are those with the most attention of its own "
    "probes, over everything that these saw",
    "[stream][probes]") {
  using policies = presets::paper::with<zipcache::all_probes>;
  constexpr int64_t prompt = 100;
  constexpr int64_t interval = 80;
  const token_data<half> data(small_shape, prompt + interval + 1, 64);
  zipcache::kv_cache<half, policies> subject(small_shape, {.recompress_interval = interval});
  const auto sequence = subject.create();
  prefill(subject, sequence, data, prompt);
  const auto given = decode(subject, sequence, data, prompt, prompt + interval + 1);
  REQUIRE(subject.sealed_length(sequence) == prompt + interval);
  const auto salient = salient_tokens<policies>(subject, sequence);
  const double scale = 1.0 / std::sqrt(32.0);
  for (int32_t kv_head = 0; kv_head < 2; ++kv_head) {
    std::vector<double> scores(interval);
    for (int64_t token = 0; token < interval; ++token) {
      for (int64_t row = token; row < interval; ++row) {
        for (int32_t head = 2 * kv_head; head < 2 * kv_head + 2; ++head) {
          double score = 0.0;
          for (int32_t channel = 0; channel < small_shape.head_dim; ++channel)
            score +=
                static_cast<double>(zipcache::to_float(data.q.at(head, prompt + row, channel))) *
                static_cast<double>(
                    zipcache::to_float(data.k.at(kv_head, prompt + token, channel)));
          // The returned lse is itself checked against double precision elsewhere.
          scores[static_cast<size_t>(token)] +=
              std::exp(score * scale -
                       static_cast<double>(
                           given.lse[static_cast<size_t>(row * small_shape.num_qo_heads + head)]));
        }
      }
      scores[static_cast<size_t>(token)] /= static_cast<double>(2 * (interval - token));
    }
    // Scores here are below 64, so that 40 products of 2^-24 of it bound their error.
    CHECK(selects_largest(scores, salient[static_cast<size_t>(kv_head)], prompt,
                          std::expm1(64.0 * 40.0 * 0x1.0p-24) + 160 * 0x1.0p-24));
  }
}

TEST_CASE("stream: heads share their salient tokens under per_layer and not under per_kv_head",
          "[stream][probes]") {
  const token_data<half> data(small_shape, 300, 65);
  using shared = presets::paper::with<zipcache::per_layer>;
  zipcache::kv_cache<half, shared> layer(small_shape);
  zipcache::kv_cache<half, presets::paper> heads(small_shape);
  const auto a = layer.create();
  const auto b = heads.create();
  prefill(layer, a, data, 120);
  prefill(heads, b, data, 120);
  decode_at_once(layer, a, data, 120, 300);
  decode_at_once(heads, b, data, 120, 300);
  const auto one = salient_tokens<shared>(layer, a);
  const auto own = salient_tokens<presets::paper>(heads, b);
  REQUIRE(one[0].size() == 280);
  CHECK(one[0] == one[1]);
  CHECK(own[0] != own[1]);
}

TEST_CASE("stream: H2O keeps heavy and recent tokens in 16 bits and forgets the others",
          "[stream][probes]") {
  const token_data<half> data(small_shape, 100, 66);
  zipcache::kv_cache<half, presets::h2o> subject(small_shape);
  const auto sequence = subject.create();
  prefill(subject, sequence, data, 100);
  const auto visible = visible_tokens(subject, sequence, 0);
  const auto held = dequantize_layer(subject, sequence, 0);
  for (int32_t head = 0; head < 2; ++head) {
    const auto& row = visible[static_cast<size_t>(head)];
    CHECK(std::count(row.begin(), row.end(), true) == 40);
    CHECK(std::count(row.begin() + 80, row.end(), true) == 20);
    bool right = true;
    for (int64_t token = 0; token < 100; ++token)
      for (int32_t channel = 0; channel < small_shape.head_dim; ++channel)
        right = right && held.k.at(head, token, channel) ==
                             (row[static_cast<size_t>(token)]
                                  ? zipcache::to_float(data.k.at(head, token, channel))
                                  : 0.0f);
    CHECK(right);
  }
}

}  // namespace

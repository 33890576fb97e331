// Tokens in 16 bits under a causal mask, and merging of partial results. Bounds as in
// support/attention_check.hpp with W the largest value: nothing is folded, so no factor of 3.
#include <cmath>
#include <limits>
#include <vector>

#include <zipcache/attend/attend.hpp>

#include "support/catch.hpp"
#include "support/generators.hpp"
#include "support/oracle.hpp"

using namespace zipcache;
using zipcache_test::content;
using zipcache_test::make_values;
namespace oracle = zipcache_test::oracle;

namespace {

struct window {
  int64_t num_tokens;
  int32_t head_dim;
  std::vector<half> k, v;  // [num_tokens, head_dim]

  window(int64_t tokens, int32_t dim)
      : num_tokens(tokens),
        head_dim(dim),
        k(zipcache_test::make_tensor<half>(content::gaussian, 1, tokens, dim, 1)),
        v(zipcache_test::make_tensor<half>(content::gaussian, 1, tokens, dim, 2)) {}

  /// Adds tokens [first, end); query row t sees those before first_visible + t.
  void attend_to(int64_t first, int64_t end, int64_t first_visible, int32_t group,
                 attend_rows& rows) const {
    attend(
        cpu_backend{}, [&](int64_t token) { return k.data() + (first + token) * head_dim; },
        [&](int64_t token) { return v.data() + (first + token) * head_dim; }, end - first,
        first_visible - first, group, rows);
  }
};

struct result {
  std::vector<float> out, lse;
};

result output_of(const attend_rows& rows, int32_t group, int64_t qo_len) {
  result r{std::vector<float>(static_cast<size_t>(group * qo_len * rows.head_dim)),
           std::vector<float>(static_cast<size_t>(group * qo_len))};
  store_output(rows, 0, group, hnd(r.out.data(), group, qo_len, rows.head_dim), r.lse.data(),
               group);
  return r;
}

/// Compares with the oracle: row t of every head sees the tokens before first_visible + t.
void check(const window& w, const std::vector<float>& q, const result& got, int32_t group,
           int64_t qo_len, int64_t first_visible, float sm_scale, double num_parts) {
  const auto half_value = [](half x) { return oracle::value_of_half(x.bits); };
  const std::vector<double> k = oracle::widen(w.k, half_value);
  const std::vector<double> v = oracle::widen(w.v, half_value);
  const std::vector<double> wide_q = oracle::widen(q, [](float x) { return x; });
  double largest = 0.0;
  for (const double x : v) largest = std::fmax(largest, std::fabs(x));
  double largest_key = 0.0;
  for (const double x : k) largest_key = std::fmax(largest_key, std::fabs(x));
  for (int32_t head = 0; head < group; ++head) {
    for (int64_t row = 0; row < qo_len; ++row) {
      const double* query = wide_q.data() + (head * qo_len + row) * w.head_dim;
      const auto expected = oracle::attend(
          query, k.data(), v.data(), w.num_tokens, w.head_dim, static_cast<double>(sm_scale),
          [&](int64_t token) { return token < first_visible + row; });
      double s = 0.0;
      for (int32_t channel = 0; channel < w.head_dim; ++channel)
        s += std::fabs(query[channel]) * largest_key * static_cast<double>(sm_scale) * 1.4427;
      const double n = static_cast<double>(w.num_tokens);
      const double e = std::expm1(2 * 0.6932 * (w.head_dim + 8) * 0x1p-24 * s +
                                  2e-7 * (n / 32 + 2 * num_parts + 2));
      const double sums = (n + 16) * 0x1p-24;
      const double lse = static_cast<double>(got.lse[static_cast<size_t>(row * group + head)]);
      INFO("head " << head << ", row " << row << " of " << qo_len << ", " << w.num_tokens
                   << " tokens, first visible " << first_visible);
      REQUIRE(e < 1e-2);
      if (expected.lse == -oracle::infinity) {
        REQUIRE(lse == -oracle::infinity);
      } else {
        REQUIRE(std::fabs(lse - expected.lse) <= e + sums + 0x1p-22 * std::fabs(expected.lse));
      }
      for (int32_t channel = 0; channel < w.head_dim; ++channel) {
        const double x = static_cast<double>(
            got.out[static_cast<size_t>((head * qo_len + row) * w.head_dim + channel)]);
        REQUIRE(std::fabs(x - expected.out[static_cast<size_t>(channel)]) <=
                (2 * e + sums) * largest);
      }
    }
  }
}

}  // namespace

TEST_CASE("attend: windows of all lengths around a block, causal for several query rows",
          "[attend][window]") {
  constexpr float sm_scale = 0.2f;
  for (const int64_t length : {1, 2, 31, 32, 33, 63, 64, 65, 100}) {
    for (const int64_t qo_len : {1, 2, 5, 40}) {
      for (const int32_t group : {1, 3}) {
        if (qo_len > length) continue;
        const window w(length, 32);
        const std::vector<float> q = make_values(content::gaussian, group, qo_len, 32, 3);
        attend_rows rows;
        load_queries<float>(hnd(q.data(), group, qo_len, 32), 0, group, sm_scale, rows);
        w.attend_to(0, length, length - qo_len + 1, group, rows);
        check(w, q, output_of(rows, group, qo_len), group, qo_len, length - qo_len + 1, sm_scale,
              1);
      }
    }
  }
}

TEST_CASE("attend: rows that see none of a run are left alone", "[attend][window]") {
  constexpr float sm_scale = 0.2f;
  const window w(40, 16);
  const std::vector<float> q = make_values(content::gaussian, 1, 6, 16, 3);
  attend_rows rows;
  load_queries<float>(hnd(q.data(), 1, 6, 16), 0, 1, sm_scale, rows);
  w.attend_to(0, 40, -2, 1, rows);  // rows 0 to 2 see nothing, row 3 one token
  check(w, q, output_of(rows, 1, 6), 1, 6, -2, sm_scale, 1);
}

TEST_CASE("attend: parts in any split and order merge to one pass", "[attend][merge]") {
  constexpr float sm_scale = 0.25f;
  constexpr int64_t length = 150;
  const window w(length, 16);
  const std::vector<float> q = make_values(content::gaussian, 2, 1, 16, 3);
  zipcache_test::random_numbers random(4);
  for (int round = 0; round < 30; ++round) {
    std::vector<int64_t> cuts{0, length};
    for (int64_t i = random.below(12); i > 0; --i) cuts.push_back(random.below(length + 1));
    std::sort(cuts.begin(), cuts.end());
    std::vector<std::pair<int64_t, int64_t>> parts;
    for (size_t i = 0; i + 1 < cuts.size(); ++i) parts.emplace_back(cuts[i], cuts[i + 1]);
    for (size_t i = parts.size() - 1; i > 0; --i)
      std::swap(parts[i], parts[static_cast<size_t>(random.below(static_cast<int64_t>(i) + 1))]);
    attend_rows rows;
    load_queries<float>(hnd(q.data(), 2, 1, 16), 0, 2, sm_scale, rows);
    for (const auto& [first, end] : parts) w.attend_to(first, end, length, 2, rows);
    check(w, q, output_of(rows, 2, 1), 2, 1, length, sm_scale, static_cast<double>(parts.size()));
  }
}

TEST_CASE("attend: a view with strides is read as its packed copy", "[attend]") {
  const std::vector<float> q = make_values(content::gaussian, 4, 3, 16, 3);
  std::vector<float> by_token(q.size());
  const auto strided = nhd(by_token.data(), 3, 4, 16);
  for (int32_t head = 0; head < 4; ++head)
    for (int64_t token = 0; token < 3; ++token)
      std::copy_n(q.data() + (head * 3 + token) * 16, 16, strided.row(head, token));
  attend_rows a, b;
  load_queries<float>(hnd(q.data(), 4, 3, 16), 1, 2, 0.3f, a);
  load_queries<float>(strided, 1, 2, 0.3f, b);
  CHECK(a.q == b.q);
  CHECK(a.rows == 6);
}

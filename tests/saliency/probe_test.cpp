#include <algorithm>
#include <functional>
#include <vector>

#include <zipcache/saliency/probe.hpp>

#include "support/catch.hpp"

using namespace zipcache;

namespace {

constexpr int64_t lengths[] = {0, 1, 2, 3, 10, 19, 20, 21, 31, 32, 33, 160, 1000};

using rows_type = std::vector<int64_t>;

template <class Strategy>
rows_type rows_of(int64_t num_rows, const probe_options& options = {}) {
  return Strategy::rows(num_rows, options);
}

}  // namespace

TEMPLATE_TEST_CASE("saliency: probes are ascending rows without repetition, at least one of any",
                   "[saliency][probe]", all_probes, recent_probes, random_probes,
                   recent_and_random_probes, given_probes) {
  for (const int64_t num_rows : lengths) {
    for (const double recent : {0.0, 0.05, 0.5, 1.0}) {
      for (const double random : {0.0, 0.05, 0.5, 1.0}) {
        for (const int64_t cap : {0, 1, 7}) {
          const probe_options options{recent, random, cap, 3};
          const rows_type rows = rows_of<TestType>(num_rows, options);
          INFO(TestType::name() << ", " << num_rows << " rows, " << recent << " + " << random
                                << ", cap " << cap);
          REQUIRE(rows.empty() == (num_rows == 0));
          REQUIRE(std::adjacent_find(rows.begin(), rows.end(), std::greater_equal<int64_t>()) ==
                  rows.end());
          if (num_rows > 0) {
            REQUIRE(rows.front() >= 0);
            REQUIRE(rows.back() < num_rows);
          }
        }
      }
    }
  }
}

TEMPLATE_TEST_CASE("saliency: the last row is always a probe, unless all are drawn",
                   "[saliency][probe]", all_probes, recent_probes, recent_and_random_probes,
                   given_probes) {
  for (const int64_t num_rows : lengths) {
    if (num_rows == 0) continue;
    CHECK(rows_of<TestType>(num_rows).back() == num_rows - 1);
    CHECK(rows_of<TestType>(num_rows, {0.0, 0.0, 0, 1}).back() == num_rows - 1);
  }
}

TEST_CASE("saliency: the default probes are the last 5 % and 5 % of the others",
          "[saliency][probe]") {
  const auto count = [](int64_t num_rows) {
    return rows_of<recent_and_random_probes>(num_rows).size();
  };
  CHECK(count(1000) == 100);
  CHECK(count(160) == 16);
  CHECK(count(20) == 2);
  CHECK(count(10) == 2);  // 5 % of 10 rounds up to one of each kind
  CHECK(count(9) == 1);   // and of 9 down, where one row is the least
  CHECK(count(1) == 1);
  const rows_type rows = rows_of<recent_and_random_probes>(1000);
  for (int64_t i = 0; i < 50; ++i) CHECK(rows[static_cast<size_t>(50 + i)] == 950 + i);
  CHECK(rows[49] < 950);
}

TEST_CASE("saliency: strategies of one kind take both fractions", "[saliency][probe]") {
  CHECK(rows_of<recent_probes>(1000).size() == 100);
  CHECK(rows_of<recent_probes>(1000).front() == 900);
  CHECK(rows_of<random_probes>(1000).size() == 100);
  CHECK(rows_of<all_probes>(1000).size() == 1000);
  CHECK(rows_of<all_probes>(1000).front() == 0);
}

TEST_CASE("saliency: a cap holds for each kind", "[saliency][probe]") {
  const probe_options capped{0.05, 0.05, 8, 0};
  CHECK(rows_of<recent_probes>(1000, capped).size() == 8);
  CHECK(rows_of<random_probes>(1000, capped).size() == 8);
  CHECK(rows_of<recent_and_random_probes>(1000, capped).size() == 16);
  CHECK(rows_of<recent_and_random_probes>(20, capped).size() == 2);
}

TEST_CASE("saliency: the same seed draws the same rows, another seed others", "[saliency][probe]") {
  const probe_options a{0.05, 0.05, 0, 1};
  const probe_options b{0.05, 0.05, 0, 2};
  CHECK(rows_of<random_probes>(1000, a) == rows_of<random_probes>(1000, a));
  CHECK(rows_of<random_probes>(1000, a) != rows_of<random_probes>(1000, b));
  CHECK(rows_of<recent_and_random_probes>(1000, a) != rows_of<recent_and_random_probes>(1000, b));
}

// Pinned, since probes decide bytes and the other backend has to draw the same ones.
TEST_CASE("saliency: the rows that a seed draws are part of the format", "[saliency][probe]") {
  CHECK(rows_of<random_probes>(40, {0.1, 0.0, 0, 0}) == rows_type{1, 18, 25, 27});
}

// 500 draws of 10 of 100: every row is expected 50 times with a deviation of sqrt(500 * 0.1 * 0.9)
// = 6.7; six of those bound all hundred rows.
TEST_CASE("saliency: every row is drawn about equally often", "[saliency][probe]") {
  std::vector<int> drawn(100, 0);
  for (uint64_t seed = 0; seed < 500; ++seed) {
    for (const int64_t row : rows_of<random_probes>(100, {0.1, 0.0, 0, seed}))
      ++drawn[static_cast<size_t>(row)];
  }
  CHECK(*std::min_element(drawn.begin(), drawn.end()) > 50 - 40);
  CHECK(*std::max_element(drawn.begin(), drawn.end()) < 50 + 40);
}

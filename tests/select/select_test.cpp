// Selection against a brute-force search for one maximum after the other.
#include <algorithm>
#include <limits>
#include <vector>

#include <zipcache/select/select.hpp>

#include "support/catch.hpp"
#include "support/generators.hpp"
#include "support/oracle.hpp"

using namespace zipcache;
using zipcache_test::random_numbers;
namespace oracle = zipcache_test::oracle;

namespace {

constexpr float infinite = std::numeric_limits<float>::infinity();
constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();

std::vector<int32_t> chosen(const std::vector<float>& scores, int64_t num_salient,
                            int64_t num_recent = 0, int32_t num_heads = 1) {
  std::vector<int32_t> salient(static_cast<size_t>(num_heads * num_salient), -1);
  const int64_t tokens = static_cast<int64_t>(scores.size()) / num_heads;
  select(cpu_backend{}, scores, num_heads, {tokens, num_salient, num_recent}, salient);
  return salient;
}

}  // namespace

TEST_CASE("select: the chosen tokens are those of a brute-force search", "[select]") {
  random_numbers random(1);
  for (int round = 0; round < 300; ++round) {
    const int64_t tokens = random.below(70);
    std::vector<float> scores;
    for (int64_t token = 0; token < tokens; ++token) {
      // Few values, so that most cuts go through ties.
      const float values[] = {0.0f, -0.0f, 1.0f, 0.5f, -2.0f, infinite, not_a_number, 1e-40f};
      scores.push_back(round % 2 == 0 ? values[random.below(8)]
                                      : static_cast<float>(random.normal()));
    }
    const int64_t count = random.below(tokens + 1);
    INFO("round " << round << ", " << count << " of " << tokens);
    REQUIRE(chosen(scores, count) == oracle::top_k(scores, count));
  }
}

TEST_CASE("select: of many tokens whose scores differ in their last bits the right ones are chosen",
          "[select]") {
  random_numbers random(2);
  for (const int64_t tokens : {1000, 5000}) {
    std::vector<float> scores;
    for (int64_t token = 0; token < tokens; ++token)
      scores.push_back(1.0f + static_cast<float>(random.below(700)) * 0x1p-23f);
    for (const int64_t count : {int64_t{1}, tokens / 3, tokens - 1})
      CHECK(chosen(scores, count) == oracle::top_k(scores, count));
  }
}

TEST_CASE("select: ties at the cut go to the lower index", "[select]") {
  CHECK(chosen({1, 2, 1, 2, 1, 2}, 4) == std::vector<int32_t>{0, 1, 3, 5});
  CHECK(chosen({0.0f, -0.0f, 0.0f, -0.0f}, 2) == std::vector<int32_t>{0, 1});
}

TEST_CASE("select: equal scores choose exactly the first ones", "[select]") {
  for (const float value : {0.0f, -1.0f, infinite, -infinite, not_a_number}) {
    const std::vector<float> scores(100, value);
    for (const int64_t count : {0, 1, 33, 100}) {
      std::vector<int32_t> first(static_cast<size_t>(count));
      for (size_t i = 0; i < first.size(); ++i) first[i] = static_cast<int32_t>(i);
      CHECK(chosen(scores, count) == first);
    }
  }
}

TEST_CASE("select: NaN is chosen only when nothing else is left", "[select]") {
  CHECK(chosen({not_a_number, -infinite, not_a_number, 1.0f}, 2) == std::vector<int32_t>{1, 3});
  CHECK(chosen({not_a_number, -infinite, not_a_number, 1.0f}, 3) == std::vector<int32_t>{0, 1, 3});
}

TEST_CASE("select: none and all of the tokens are legal", "[select]") {
  CHECK(chosen({3, 1, 2}, 0).empty());
  CHECK(chosen({3, 1, 2}, 3) == std::vector<int32_t>{0, 1, 2});
  CHECK(chosen({}, 0).empty());
}

TEST_CASE("select: recent tokens are chosen whatever they score, the others by rank", "[select]") {
  CHECK(chosen({1, 5, 3, 4, 0, 0}, 4, 2) == std::vector<int32_t>{1, 3, 4, 5});
  CHECK(chosen({1, 5, 3, 4, 9, 9}, 4, 2) == std::vector<int32_t>{1, 3, 4, 5});
  CHECK(chosen({9, 9, 9, 9}, 2, 2) == std::vector<int32_t>{2, 3});
}

TEST_CASE("select: each head has its own scores", "[select]") {
  CHECK(chosen({3, 2, 1, 1, 2, 3}, 2, 0, 2) == std::vector<int32_t>{0, 1, 1, 2});
}

TEST_CASE("select: sizes that do not fit are refused", "[select]") {
  std::vector<float> scores(4);
  std::vector<int32_t> salient(2);
  CHECK_THROWS_AS(select(cpu_backend{}, scores, 1, {4, 5}, salient), argument_error);
  CHECK_THROWS_AS(select(cpu_backend{}, scores, 1, {4, -1}, salient), argument_error);
  CHECK_THROWS_AS(select(cpu_backend{}, scores, 1, {4, 2, 3}, salient), argument_error);
  CHECK_THROWS_AS(select(cpu_backend{}, scores, 1, {5, 2}, salient), argument_error);
  CHECK_THROWS_AS(select(cpu_backend{}, scores, 1, {4, 3}, salient), argument_error);
  CHECK_THROWS_AS(select(cpu_backend{}, scores, 2, {4, 2}, salient), argument_error);
}

#include <cmath>
#include <limits>
#include <vector>

#include <zipcache/attend/softmax_state.hpp>

#include "support/catch.hpp"

using namespace zipcache;

namespace {

constexpr float infinite = std::numeric_limits<float>::infinity();

}  // namespace

TEST_CASE("attend: an empty state has lse -inf and merges to nothing", "[attend][softmax_state]") {
  softmax_state empty;
  CHECK(empty.lse() == -infinite);
  softmax_state state{3.0f, 2.0f};
  std::vector<float> out{4.0f, 5.0f};
  const std::vector<float> nothing{7.0f, 7.0f};
  merge(state, out.data(), empty, nothing.data(), 2);
  CHECK(state.maximum == 3.0f);
  CHECK(state.sum == 2.0f);
  CHECK(out == std::vector<float>{4.0f, 5.0f});
  merge(empty, std::vector<float>{0.0f, 0.0f}.data(), softmax_state{}, nothing.data(), 2);
  CHECK(empty.lse() == -infinite);
}

TEST_CASE("attend: a state merged into an empty one is that state", "[attend][softmax_state]") {
  softmax_state empty;
  std::vector<float> out{0.0f, 0.0f};
  const std::vector<float> other{4.0f, 5.0f};
  merge(empty, out.data(), softmax_state{-3.0f, 2.0f}, other.data(), 2);
  CHECK(empty.maximum == -3.0f);
  CHECK(empty.sum == 2.0f);
  CHECK(out == other);
}

TEST_CASE("attend: raising the maximum rescales the sum by a power of two of the difference",
          "[attend][softmax_state]") {
  softmax_state state{1.0f, 8.0f};
  CHECK(state.raise(0.0f) == 1.0f);
  CHECK(state.raise(1.0f) == 1.0f);
  CHECK(state.sum == 8.0f);
  CHECK(state.raise(3.0f) == 0.25f);
  CHECK(state.sum == 2.0f);
  CHECK(state.maximum == 3.0f);
  CHECK(state.raise(std::numeric_limits<float>::quiet_NaN()) == 1.0f);
  softmax_state first;
  CHECK(first.raise(-5.0f) == 0.0f);
  CHECK(first.sum == 0.0f);
}

TEST_CASE("attend: merging is symmetric, and exact where scores are whole numbers",
          "[attend][softmax_state]") {
  const std::vector<float> a_out{1.0f, 2.0f}, b_out{16.0f, -8.0f};
  softmax_state a{2.0f, 1.5f}, b{5.0f, 3.0f};
  std::vector<float> ab = a_out, ba = b_out;
  softmax_state first = a, second = b;
  merge(first, ab.data(), b, b_out.data(), 2);
  merge(second, ba.data(), a, a_out.data(), 2);
  CHECK(first.maximum == 5.0f);
  CHECK(first.sum == 3.0f + 1.5f / 8.0f);
  CHECK(first.sum == second.sum);
  CHECK(ab == ba);
  CHECK(ab[0] == 16.0f + 1.0f / 8.0f);
  CHECK(ab[1] == -8.0f + 2.0f / 8.0f);
  CHECK(std::fabs(static_cast<double>(first.lse()) -
                  std::log(1.5 * std::exp2(2.0) + 3.0 * std::exp2(5.0))) < 1e-6);
}

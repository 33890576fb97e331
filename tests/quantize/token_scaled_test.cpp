#include <cmath>
#include <limits>

#include <zipcache/quantize/token_scaled.hpp>
#include <zipcache/quantize/uniform_groups.hpp>

#include "support/catch.hpp"
#include "support/coded_block.hpp"

using namespace zipcache;
using zipcache_test::coded_block;
using zipcache_test::content;

namespace {

using plain = uniform_groups<parameter_axis::channel, 2, 1024>;
using scaled = token_scaled<plain>;

/// The largest error of a token, relative to its root mean square.
template <class Block>
double relative_error(const Block& block, int64_t token) {
  double norm = 0.0, largest = 0.0;
  for (int32_t channel = 0; channel < block.shape.head_dim; ++channel) {
    const auto x = static_cast<double>(block.at(token, channel));
    norm += x * x;
    largest = std::fmax(largest, std::fabs(block.error(token, channel)));
  }
  return largest / std::sqrt(norm / block.shape.head_dim);
}

/// Gaussian tokens, of which number n is multiplied by factor(n).
template <class Factor>
std::vector<float> tokens_times(const block_shape& shape, Factor&& factor) {
  auto x = zipcache_test::make_values(content::gaussian, 1, shape.num_tokens, shape.head_dim, 4);
  for (int64_t token = 0; token < shape.num_tokens; ++token)
    for (int32_t channel = 0; channel < shape.head_dim; ++channel)
      x[static_cast<size_t>(token * shape.head_dim + channel)] *= factor(token);
  return x;
}

/// -3 to 3.
int exponent_of(int64_t token) { return static_cast<int>(token % 7) - 3; }

}  // namespace

TEST_CASE("token scaled: a large token does not spoil the others", "[quantize][token_scaled]") {
  const block_shape shape{200, 64};
  const auto x = tokens_times(shape, [](int64_t token) { return token == 3 ? 100.0f : 1.0f; });
  const coded_block<plain> before(shape, x);
  const coded_block<scaled> after(shape, x);
  // Half a step of a range of 2 x 3.5 standard deviations or so is 1.2; many times that without scales.
  for (int64_t token = 0; token < shape.num_tokens; ++token)
    REQUIRE(relative_error(after, token) < 1.6);
  CHECK(relative_error(before, 10) > 4.0);
}

TEST_CASE("token scaled: powers of two on tokens come back as they went in",
          "[quantize][token_scaled]") {
  const block_shape shape{40, 32};
  const auto ones = tokens_times(shape, [](int64_t) { return 1.0f; });
  const auto powers =
      tokens_times(shape, [](int64_t token) { return std::ldexp(1.0f, exponent_of(token)); });
  const coded_block<scaled> a(shape, ones);
  const coded_block<scaled> b(shape, powers);
  for (int64_t token = 0; token < shape.num_tokens; ++token)
    for (int32_t channel = 0; channel < shape.head_dim; ++channel)
      REQUIRE(b.error(token, channel) == std::ldexp(a.error(token, channel), exponent_of(token)));
}

TEST_CASE("token scaled: a byte for each token, zeros and huge tokens included",
          "[quantize][token_scaled]") {
  const block_shape shape{33, 16};
  CHECK(scaled::size(shape).bytes() == plain::size(shape).bytes() + 33);
  CHECK(scaled::size(shape).code_bytes == plain::size(shape).code_bytes);
  const auto x = tokens_times(shape, [](int64_t token) {
    return token == 0 ? 0.0f : (token == 1 ? 3e7f : (token == 2 ? 1e-9f : 1.0f));
  });
  const coded_block<scaled, bfloat16> block(shape, x);
  for (int32_t channel = 0; channel < 16; ++channel) {
    // What is zero or smaller than every scale is near zero: the range holds the other tokens.
    CHECK(std::fabs(block.error(0, channel)) < 0x1p-14);
    CHECK(std::fabs(block.error(2, channel)) < 0x1p-14);
  }
  CHECK(relative_error(block, 1) < 1.6);
}

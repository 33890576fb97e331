#include <algorithm>
#include <cmath>

#include <zipcache/quantize/outliers_apart.hpp>
#include <zipcache/quantize/uniform_groups.hpp>

#include "support/catch.hpp"
#include "support/coded_block.hpp"

using namespace zipcache;
using zipcache_test::coded_block;
using zipcache_test::content;

namespace {

template <parameter_axis Axis>
using codec = outliers_apart<Axis, 20, uniform_groups<Axis, 2, 64>>;

/// The vector that a value belongs to.
template <parameter_axis Axis, class Block>
std::vector<float> vector_of(const Block& block, int64_t token, int32_t channel) {
  std::vector<float> values;
  if (Axis == parameter_axis::channel) {
    for (int64_t t = 0; t < block.shape.num_tokens; ++t) values.push_back(block.at(t, channel));
  } else {
    for (int32_t c = 0; c < block.shape.head_dim; ++c) values.push_back(block.at(token, c));
  }
  return values;
}

template <parameter_axis Axis>
void check_outliers(int64_t tokens, int32_t dim, size_t per_end) {
  const coded_block<codec<Axis>> block({tokens, dim}, content::token_norms, 8);
  for (int64_t token = 0; token < tokens; ++token) {
    for (int32_t channel = 0; channel < dim; ++channel) {
      auto vector = vector_of<Axis>(block, token, channel);
      std::sort(vector.begin(), vector.end());
      const float x = block.at(token, channel);
      const bool is_outlier =
          per_end > 0 && (x < vector[per_end] || x > vector[vector.size() - 1 - per_end]);
      if (is_outlier) {
        REQUIRE(block.error(token, channel) == 0.0);
      } else {
        // Half a step of what is left of the vector's range without the outliers, and the rounding
        // of the pair.
        const double low = static_cast<double>(vector[per_end]);
        const double high = static_cast<double>(vector[vector.size() - 1 - per_end]);
        REQUIRE(std::fabs(block.error(token, channel)) <=
                (high - low) / 6 + 2 * 0x1p-11 * (std::fabs(low) + high - low) + 0x1p-20);
      }
    }
  }
}

}  // namespace

TEST_CASE("outliers apart: the ends of every vector come back exactly and widen no range",
          "[quantize][outliers_apart]") {
  check_outliers<parameter_axis::channel>(100, 32, 1);
  check_outliers<parameter_axis::channel>(300, 16, 3);
  check_outliers<parameter_axis::channel>(20, 16, 0);
  check_outliers<parameter_axis::token>(40, 128, 1);
  check_outliers<parameter_axis::token>(40, 256, 3);
  check_outliers<parameter_axis::token>(40, 48, 0);
}

TEST_CASE("outliers apart: the number of outliers is the share of a vector, to the nearest",
          "[quantize][outliers_apart]") {
  const auto entry_bytes = [](auto with, auto without, const block_shape& shape) {
    return decltype(with)::size(shape).bytes() - decltype(without)::size(shape).bytes();
  };
  using by_channel = uniform_groups<parameter_axis::channel, 2, 64>;
  using by_token = uniform_groups<parameter_axis::token, 2, 64>;
  // 10 of 1000 tokens at each end of 128 channels, a value and an index of 16 bits: 0.64 bits.
  const int64_t keys = entry_bytes(codec<parameter_axis::channel>{}, by_channel{}, {1000, 128});
  CHECK(keys == 128 * 20 * 4);
  CHECK(8.0 * static_cast<double>(keys) / 128000 == Approx(0.64));
  // 1.28 of 128 channels are 1 at each end, and an index of 8 bits is enough: 0.375 bits.
  CHECK(entry_bytes(codec<parameter_axis::token>{}, by_token{}, {1000, 128}) == 1000 * 2 * 3);
  CHECK(entry_bytes(codec<parameter_axis::channel>{}, by_channel{}, {256, 16}) == 16 * 6 * 3);
  CHECK(entry_bytes(codec<parameter_axis::channel>{}, by_channel{}, {257, 16}) == 16 * 6 * 4);
  CHECK(entry_bytes(codec<parameter_axis::channel>{}, by_channel{}, {70000, 16}) ==
        16 * 1400 * int64_t{6});
  CHECK(entry_bytes(codec<parameter_axis::channel>{}, by_channel{}, {1, 16}) == 0);
}

TEST_CASE("outliers apart: indices of four bytes reach the last token",
          "[quantize][outliers_apart]") {
  constexpr int64_t tokens = 65600;
  std::vector<float> x = zipcache_test::make_values(content::gaussian, 1, tokens, 16, 2);
  x[x.size() - 1] = 1000.0f;
  x = coded_block<codec<parameter_axis::channel>>::rounded(x);
  const coded_block<codec<parameter_axis::channel>> block({tokens, 16}, x);
  CHECK(block.back.back() == 1000.0f);
}

// Bounds, all with the rounding of 16-bit numbers (u = 2^-11 for half, relative to what is
// rounded):
//   outer   half a step of the token's largest distance from the outer threshold over 15
//   inner   half a step of the distance between the inner thresholds over 31
//   middle  a step of the token's shifted range over 15: the nearest code or its neighbour, as the
//           sign of a code says on which side of zero the value was
#include <algorithm>
#include <cmath>

#include <zipcache/quantize/magnitude_classes.hpp>

#include "support/catch.hpp"
#include "support/coded_block.hpp"

using namespace zipcache;
using zipcache_test::coded_block;
using zipcache_test::content;
using zipcache_test::unit_of;

namespace {

using oaken = magnitude_classes<40, 60>;

/// Ends of the classes in a block, by the definition.
struct class_limits {
  double outer_low, inner_low, inner_high, outer_high;

  class_limits(std::vector<float> values, int64_t outer_per_mille, int64_t inner_per_mille) {
    std::sort(values.begin(), values.end());
    const auto n = static_cast<int64_t>(values.size());
    const int64_t outer = (n * outer_per_mille + 1000) / 2000;
    const int64_t inner = (n * inner_per_mille + 500) / 1000;
    const auto at = [&](int64_t rank) {
      return static_cast<double>(values[static_cast<size_t>(rank)]);
    };
    outer_low = outer > 0 ? at(outer - 1) : -1e30;
    outer_high = outer > 0 ? at(n - outer) : 1e30;
    inner_low = at((n - inner) / 2);
    inner_high = at(std::max((n - inner) / 2, (n - inner) / 2 + inner - 1));
  }
};

template <class Storage, int Outer = 40, int Inner = 60>
void check_bounds(int64_t tokens, int32_t dim, content what) {
  INFO(tokens << " tokens of " << dim << " channels, " << name_of(what));
  const coded_block<magnitude_classes<Outer, Inner>, Storage> block({tokens, dim}, what, 9);
  const class_limits limit(block.x, Outer, Inner);
  const double u = 2 * unit_of<Storage>;
  for (int64_t token = 0; token < tokens; ++token) {
    double excess = 0.0, low = 0.0, high = 0.0;
    for (int32_t channel = 0; channel < dim; ++channel) {
      const auto x = static_cast<double>(block.at(token, channel));
      excess = std::fmax(excess, std::fmax(x - limit.outer_high, limit.outer_low - x));
      // Values equal to an outer threshold may be of either class.
      if (x >= limit.outer_low && x <= limit.outer_high) {
        if (x <= limit.inner_low) low = std::fmin(low, x - limit.inner_low);
        if (x >= limit.inner_high) high = std::fmax(high, x - limit.inner_high);
      }
    }
    const double middle = (high - low) / 15;
    for (int32_t channel = 0; channel < dim; ++channel) {
      const auto x = static_cast<double>(block.at(token, channel));
      double bound = middle + u * (high - low);
      if (x <= limit.outer_low || x >= limit.outer_high)
        bound = std::fmax(x == limit.outer_low || x == limit.outer_high ? bound : 0.0,
                          excess / 30 + u * excess);
      if (x >= limit.inner_low && x <= limit.inner_high)
        bound = std::fmax(x == limit.inner_low || x == limit.inner_high ? bound : 0.0,
                          (limit.inner_high - limit.inner_low) / 62);
      INFO("token " << token << ", channel " << channel << ", value " << x);
      // Subnormal steps are off by half of the smallest one, times 15 codes.
      REQUIRE(std::fabs(block.error(token, channel)) <=
              bound + 0x1p-21 * std::fabs(x) +
                  (std::is_same_v<Storage, half> ? 0x1p-20 : 0x1p-129));
    }
  }
}

}  // namespace

TEST_CASE("magnitude classes: every value comes back within the bound of its class",
          "[quantize][magnitude_classes]") {
  for (const content what : zipcache_test::all_contents) {
    check_bounds<half>(160, 64, what);
    check_bounds<half>(1, 16, what);
    check_bounds<half>(37, 128, what);
    check_bounds<bfloat16>(70, 48, what);
    check_bounds<half, 40, 0>(70, 64, what);
    check_bounds<half, 0, 60>(70, 64, what);
  }
}

TEST_CASE("magnitude classes: a value next to its threshold keeps its side",
          "[quantize][magnitude_classes]") {
  // Half of the values just above the inner class and half just below; the inner class is wide.
  std::vector<float> x;
  for (int i = 0; i < 64 * 64; ++i)
    x.push_back(i % 16 == 0 ? static_cast<float>(i % 5 - 2)
                            : (i % 2 == 0 ? 8.0f : -8.0f) + 0.125f * static_cast<float>(i % 3));
  const coded_block<oaken> block({64, 64}, x);
  for (size_t i = 0; i < x.size(); ++i)
    if (std::fabs(x[i]) > 7.0f) REQUIRE(x[i] * block.back[i] > 0.0f);
}

TEST_CASE("magnitude classes: values that equal a threshold are not taken for the other side's",
          "[quantize][magnitude_classes]") {
  // Two values only, so that both are thresholds of the inner class and every middle value is
  // shifted to zero, from where only the sign of its code says which one it was.
  std::vector<float> x;
  for (int i = 0; i < 64 * 64; ++i) x.push_back(i * 7 % 12 < 6 ? 8.0f : -8.0f);
  const coded_block<oaken> in_half({64, 64}, x);
  const coded_block<oaken, bfloat16> in_bfloat16({64, 64}, x);
  for (size_t i = 0; i < x.size(); ++i) {
    REQUIRE(std::fabs(in_half.back[i] - x[i]) <= 1e-5f);
    REQUIRE(std::fabs(in_bfloat16.back[i] - x[i]) <= 1e-5f);
  }
}

TEST_CASE("magnitude classes: the size is 4 bits, 8 for a tenth, and 6 bytes and counts a token",
          "[quantize][magnitude_classes]") {
  const block_size size = oaken::size({4096, 128});
  constexpr int64_t values = 4096 * 128;
  const int64_t sparse = 2 * (values * 40 / 2000 + 1) + (values * 60 + 500) / 1000;
  CHECK(std::abs(size.code_bytes - (values / 2 + sparse)) <= 2);
  CHECK(size.parameter_bytes == 8 + 4096 * (4 + 2 + 2) + 4096 / 32 * 4);
  // 4 + 0.8 as published, and what is ours alone: 6 bytes of scales and 2 counts for a token of one
  // head, where Oaken has scales for all heads of a token together.
  CHECK(8.0 * static_cast<double>(size.bytes()) / values == Approx(4.8 + 0.5).epsilon(2e-3));
}

TEST_CASE("magnitude classes: outer values of a token widen no other token's step",
          "[quantize][magnitude_classes]") {
  std::vector<float> x =
      coded_block<oaken>::rounded(zipcache_test::make_values(content::gaussian, 1, 64, 64, 3));
  const coded_block<oaken> plain({64, 64}, x);
  x[5 * 64 + 7] *= 1000.0f;  // an outer value if it was one
  std::vector<float> sorted = plain.x;
  std::sort(sorted.begin(), sorted.end());
  x[5 * 64 + 7] = 2000.0f;
  x[5 * 64 + 8] = sorted.front();
  const coded_block<oaken> spoilt({64, 64}, x);
  double others = 0.0, before = 0.0;
  for (int64_t token = 0; token < 64; ++token) {
    if (token == 5) continue;
    for (int32_t channel = 0; channel < 64; ++channel) {
      others += spoilt.error(token, channel) * spoilt.error(token, channel);
      before += plain.error(token, channel) * plain.error(token, channel);
    }
  }
  CHECK(others <= 1.1 * before);
}

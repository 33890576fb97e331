#include <cmath>
#include <limits>
#include <vector>

#include <zipcache/select/order.hpp>

#include "support/catch.hpp"

using namespace zipcache;

namespace {

constexpr float infinite = std::numeric_limits<float>::infinity();
constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();

}  // namespace

TEST_CASE("select: higher scores rank first, over all magnitudes and signs", "[select][order]") {
  const std::vector<float> descending{infinite,   3.4e38f, 1.0f,     0x1p-126f, 0x1p-149f,   0.0f,
                                      -0x1p-149f, -1.0f,   -3.4e38f, -infinite, not_a_number};
  for (size_t a = 0; a < descending.size(); ++a) {
    for (size_t b = 0; b < descending.size(); ++b) {
      // Whatever the indices.
      INFO(descending[a] << " and " << descending[b]);
      if (a < b) {
        CHECK(ranks_before(descending[a], 9, descending[b], 1));
        CHECK_FALSE(ranks_before(descending[b], 1, descending[a], 9));
      }
    }
  }
}

TEST_CASE("select: equal scores rank by index, +0 equals -0 and all NaNs are equal",
          "[select][order]") {
  CHECK(ranks_before(1.0f, 3, 1.0f, 4));
  CHECK_FALSE(ranks_before(1.0f, 4, 1.0f, 3));
  CHECK(ranks_before(-0.0f, 3, 0.0f, 4));
  CHECK(ranks_before(0.0f, 3, -0.0f, 4));
  CHECK_FALSE(ranks_before(0.0f, 4, -0.0f, 3));
  CHECK(ranks_before(not_a_number, 3, -not_a_number, 4));
  CHECK(ranks_before(-not_a_number, 3, not_a_number, 4));
}

TEST_CASE("select: nothing ranks before itself", "[select][order]") {
  for (const float x : {0.0f, -0.0f, 1.0f, infinite, not_a_number})
    CHECK_FALSE(ranks_before(x, 5, x, 5));
}

TEST_CASE("select: a key carries its token in its low half", "[select][order]") {
  for (const uint32_t token : {0u, 1u, 0x7fffffffu, 0xffffffffu})
    CHECK((rank_key(0.25f, token) & 0xffffffffu) == token);
}

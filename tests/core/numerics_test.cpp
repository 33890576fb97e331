#include <cmath>
#include <limits>

#include <zipcache/core/numerics.hpp>

#include "support/catch.hpp"

using namespace zipcache;

TEST_CASE("core: exp2_poly is within 2e-7 of 2^x over [-126, 127]", "[core][numerics]") {
  double worst = 0.0;
  for (int64_t i = 0; i <= 4000000; ++i) {
    const float x = static_cast<float>(-126.0 + 253.0 * static_cast<double>(i) / 4000000.0);
    if (x <= -126.0f) continue;
    const double exact = std::exp2(static_cast<double>(x));
    worst = std::fmax(worst, std::fabs(static_cast<double>(exp2_poly(x)) / exact - 1.0));
  }
  CHECK(worst < 2e-7);
}

TEST_CASE("core: exp2_poly of whole numbers is exact", "[core][numerics]") {
  for (int n = -125; n <= 127; ++n)
    REQUIRE(exp2_poly(static_cast<float>(n)) == std::ldexp(1.0f, n));
}

TEST_CASE("core: exp2_poly is 0 far below, finite far above and 0 for NaN", "[core][numerics]") {
  CHECK(exp2_poly(-126.5f) == 0.0f);
  CHECK(exp2_poly(-1e30f) == 0.0f);
  CHECK(exp2_poly(-std::numeric_limits<float>::infinity()) == 0.0f);
  CHECK(exp2_poly(std::numeric_limits<float>::quiet_NaN()) == 0.0f);
  CHECK(exp2_poly(1e30f) == std::ldexp(1.0f, 127));
}

TEST_CASE("core: exp2_poly never falls as x grows by a thousandth", "[core][numerics]") {
  float before = 0.0f;
  for (int i = -30000; i <= 1000; ++i) {
    const float now = exp2_poly(static_cast<float>(i) / 1000.0f);
    REQUIRE(now >= before);
    before = now;
  }
}

TEST_CASE("core: small integer helpers", "[core][numerics]") {
  CHECK(ceil_div(0, 32) == 0);
  CHECK(ceil_div(1, 32) == 1);
  CHECK(ceil_div(32, 32) == 1);
  CHECK(ceil_div(33, 32) == 2);
  CHECK(round_up(33, 16) == 48);
  CHECK(round_up(32, 16) == 32);
  CHECK(least(2, 3) == 2);
  CHECK(most(2, 3) == 3);
}

TEST_CASE("core: is_finite tells finite numbers from NaN and infinities", "[core][numerics]") {
  CHECK(is_finite(0.0f));
  CHECK(is_finite(std::numeric_limits<float>::max()));
  CHECK(is_finite(-std::numeric_limits<float>::denorm_min()));
  CHECK_FALSE(is_finite(std::numeric_limits<float>::infinity()));
  CHECK_FALSE(is_finite(-std::numeric_limits<float>::infinity()));
  CHECK_FALSE(is_finite(std::numeric_limits<float>::quiet_NaN()));
}

// The published first outputs of SplitMix64 with seed 0.
TEST_CASE("core: mix64 is SplitMix64", "[core][numerics]") {
  constexpr uint64_t golden = 0x9e3779b97f4a7c15ull;
  CHECK(mix64(0) == 0xe220a8397b1dcdafull);
  CHECK(mix64(golden) == 0x6e789e6aa1b965f4ull);
  CHECK(mix64(2 * golden) == 0x06c45d188009454full);
}

#include <cstdint>

#include <zipcache/core/divisor.hpp>

#include "support/catch.hpp"

using namespace zipcache;

TEST_CASE("core: a divisor divides as / does, also beside multiples and at the ends",
          "[core][divisor]") {
  constexpr int32_t largest = 2147483647;
  for (const int32_t value : {1, 2, 3, 5, 7, 8, 31, 32, 33, 1000, 4095, 4096, 65537, 715827882,
                              1073741823, 1073741824, 1073741825, largest}) {
    const divisor by(value);
    CHECK(by.quotient(0) == 0);
    CHECK(by.quotient(largest) == largest / value);
    uint32_t state = 1;
    for (int32_t i = 0; i < 1000; ++i) {
      state = state * 1664525u + 1013904223u;
      const auto n = static_cast<int32_t>(state >> 1);
      const int32_t multiple = n / value * value;
      REQUIRE(by.quotient(n) == n / value);
      REQUIRE(by.quotient(multiple) == multiple / value);
      if (multiple > 0) REQUIRE(by.quotient(multiple - 1) == (multiple - 1) / value);
    }
  }
}

// The 16-bit types, over all of their patterns.
#include <cmath>
#include <cstdint>
#include <limits>

#include <zipcache/core/types.hpp>

#include "support/catch.hpp"
#include "support/oracle.hpp"

using namespace zipcache;
namespace oracle = zipcache_test::oracle;

namespace {

template <class Storage>
double reference(uint32_t bits) {
  const uint16_t pattern = static_cast<uint16_t>(bits);
  return std::is_same_v<Storage, half> ? oracle::value_of_half(pattern)
                                       : oracle::value_of_bfloat16(pattern);
}

template <class Storage>
uint32_t infinity_bits() {
  return std::is_same_v<Storage, half> ? 0x7c00u : 0x7f80u;
}

}  // namespace

TEMPLATE_TEST_CASE("core: every 16-bit pattern widens to its value", "[core][types]", half,
                   bfloat16) {
  int64_t wrong = 0;
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float widened = to_float(TestType{static_cast<uint16_t>(bits)});
    const double value = reference<TestType>(bits);
    const bool same = std::isnan(value) ? std::isnan(widened)
                                        : static_cast<double>(widened) == value &&
                                              std::signbit(widened) == std::signbit(value);
    wrong += same ? 0 : 1;
  }
  CHECK(wrong == 0);
}

TEMPLATE_TEST_CASE("core: every 16-bit pattern survives widening and rounding", "[core][types]",
                   half, bfloat16) {
  int64_t wrong = 0;
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const TestType x{static_cast<uint16_t>(bits)};
    const uint16_t again = from_float<TestType>(to_float(x)).bits;
    wrong += again == ((bits & 0x7fffu) > infinity_bits<TestType>() ? 0x7fffu : bits) ? 0 : 1;
  }
  CHECK(wrong == 0);
}

// Between two neighbours a < b, the midpoint (a float) goes to the even one and its float
// neighbours to the nearer one.
TEMPLATE_TEST_CASE("core: rounding to 16 bits is to the nearest, ties to even", "[core][types]",
                   half, bfloat16) {
  int64_t wrong = 0;
  for (uint32_t low = 0; low + 1 < infinity_bits<TestType>(); ++low) {
    for (const uint32_t sign : {0u, 0x8000u}) {
      const double a = reference<TestType>(low | sign);
      const double b = reference<TestType>((low + 1) | sign);
      const float middle = static_cast<float>((a + b) / 2.0);
      if (static_cast<double>(middle) != (a + b) / 2.0) continue;  // below float's own grid
      const float toward_a = std::nextafter(middle, static_cast<float>(a));
      const float toward_b = std::nextafter(middle, static_cast<float>(b));
      const uint32_t even = low % 2 == 0 ? low : low + 1;
      wrong += from_float<TestType>(middle).bits == (even | sign) ? 0 : 1;
      wrong += from_float<TestType>(toward_a).bits == (low | sign) ? 0 : 1;
      wrong += from_float<TestType>(toward_b).bits == ((low + 1) | sign) ? 0 : 1;
    }
  }
  CHECK(wrong == 0);
}

TEST_CASE("core: what is too large for 16 bits becomes an infinity, NaN the canonical NaN",
          "[core][types]") {
  // Half of the last step beyond the largest finite number is a tie, which is even at infinity.
  CHECK(from_float<half>(65519.996f).bits == 0x7bff);
  CHECK(from_float<half>(65520.0f).bits == 0x7c00);
  CHECK(from_float<half>(-65520.0f).bits == 0xfc00);
  CHECK(from_float<half>(std::numeric_limits<float>::infinity()).bits == 0x7c00);
  CHECK(from_float<half>(-std::numeric_limits<float>::infinity()).bits == 0xfc00);
  CHECK(from_float<half>(std::numeric_limits<float>::quiet_NaN()).bits == 0x7fff);
  CHECK(from_float<half>(-std::numeric_limits<float>::quiet_NaN()).bits == 0x7fff);
  CHECK(from_float<bfloat16>(3.4e38f).bits == 0x7f80);
  CHECK(from_float<bfloat16>(std::numeric_limits<float>::infinity()).bits == 0x7f80);
  CHECK(from_float<bfloat16>(std::numeric_limits<float>::quiet_NaN()).bits == 0x7fff);
  CHECK(from_float<half>(0x1p-25f).bits == 0);  // the tie between 0 and the smallest subnormal
  CHECK(from_float<half>(-0.0f).bits == 0x8000);
  CHECK(from_float<bfloat16>(-0.0f).bits == 0x8000);
}

TEST_CASE("core: largest_finite is the largest finite number of each type", "[core][types]") {
  CHECK(largest_finite<half> == to_float(half{0x7bff}));
  CHECK(largest_finite<bfloat16> == to_float(bfloat16{0x7f7f}));
}

TEST_CASE("core: float and half are kept as half, bfloat16 as itself", "[core][types]") {
  CHECK(std::is_same_v<storage_element<float>, half>);
  CHECK(std::is_same_v<storage_element<half>, half>);
  CHECK(std::is_same_v<storage_element<bfloat16>, bfloat16>);
}

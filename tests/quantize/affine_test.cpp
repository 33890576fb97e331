// The arithmetic of one group against the oracle.
//
// Tolerances. `quantize` computes (x - min) * (1 / step) in float: three roundings, so the position
// among the codes is off by at most 3 * 2^-24 of itself, and the code is the nearest one to within
// 0.5 + max_code * 3 * 2^-24.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include <zipcache/quantize/affine.hpp>

#include "support/catch.hpp"
#include "support/generators.hpp"
#include "support/oracle.hpp"

using namespace zipcache;
using zipcache_test::random_numbers;
namespace oracle = zipcache_test::oracle;

namespace {

constexpr float infinite = std::numeric_limits<float>::infinity();
constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();

template <class Storage>
double widen(Storage x) {
  return std::is_same_v<Storage, half> ? oracle::value_of_half(x.bits)
                                       : oracle::value_of_bfloat16(x.bits);
}

template <class Storage>
double rounding(double x) {
  return std::is_same_v<Storage, half> ? oracle::rounding_of_half(x)
                                       : oracle::rounding_of_bfloat16(x);
}

value_range range_of(const std::vector<float>& values) {
  value_range range;
  for (const float x : values) range = include(range, x);
  return range;
}

template <class Visit, int... Bits>
void for_bits(Visit&& visit, std::integer_sequence<int, Bits...>) {
  (visit.template operator()<Bits + 1>(), ...);
}

/// visit<Bits>() for 1 to 8 bits.
template <class Visit>
void for_all_bits(Visit&& visit) {
  for_bits(visit, std::make_integer_sequence<int, 8>{});
}

/// Ranges over all magnitudes that 16 bits have, some narrow against their distance from 0.
template <class Storage>
std::vector<value_range> many_ranges() {
  random_numbers random(7);
  std::vector<value_range> ranges;
  const int largest = std::is_same_v<Storage, half> ? 15 : 125;
  for (int i = 0; i < 400; ++i) {
    const double centre = std::ldexp(random.uniform(-1.0, 1.0),
                                     static_cast<int>(random.below(2 * largest)) - largest);
    const double width = std::ldexp(random.uniform(0.5, 1.0), -static_cast<int>(random.below(26)));
    const double scale = std::ldexp(1.0, static_cast<int>(random.below(2 * largest)) - largest);
    const double half_width = i % 2 == 0 ? std::fabs(centre) * width : scale * width;
    ranges.push_back(
        {static_cast<float>(centre - half_width), static_cast<float>(centre + half_width)});
  }
  const float limit = largest_finite<Storage>;
  ranges.push_back({-limit, limit});
  ranges.push_back({0.0f, limit});
  ranges.push_back({-limit, 0.0f});
  ranges.push_back({5.0f, 6.0f});
  ranges.push_back({100.0f, std::nextafter(100.0f, 101.0f)});
  ranges.push_back({0.0f, to_float(Storage{1})});  // the smallest subnormal
  return ranges;
}

}  // namespace

TEMPLATE_TEST_CASE("quantize: codes are those of the oracle for 1 to 8 bits", "[quantize][affine]",
                   half, bfloat16) {
  for_all_bits([]<int Bits>() {
    random_numbers random(Bits);
    for (const value_range& range : many_ranges<TestType>()) {
      const auto params = affine<Bits>::template fit<TestType>(range);
      const affine_scale scale = affine<Bits>::widen(params);
      const double tolerance = 0.5 + affine<Bits>::max_code * 3 * 0x1p-24;
      for (int i = 0; i < 20; ++i) {
        const double at = i < 2 ? i : random.uniform();
        const float x = static_cast<float>(static_cast<double>(range.lowest) * (1.0 - at) +
                                           static_cast<double>(range.highest) * at);
        const double position =
            oracle::position(static_cast<double>(x), widen(params.min), widen(params.step), Bits);
        const int code = static_cast<int>(affine<Bits>::quantize(x, scale));
        INFO("bits " << Bits << ", range " << range.lowest << " to " << range.highest << ", x "
                     << x);
        REQUIRE(code >= 0);
        REQUIRE(code <= affine<Bits>::max_code);
        REQUIRE(std::fabs(code - position) <= tolerance);
      }
    }
  });
}

// With step and min powers of two every position is exact, so that ties are ties.
TEST_CASE("quantize: ties go to the even code", "[quantize][affine]") {
  for_all_bits([]<int Bits>() {
    for (const float step : {1.0f, 0.25f, 1024.0f}) {
      const affine_scale scale =
          affine<Bits>::widen(affine_params<half>{from_float<half>(step), from_float<half>(-2.0f)});
      for (int code = 0; code < affine<Bits>::max_code; ++code) {
        const float tie = -2.0f + (static_cast<float>(code) + 0.5f) * step;
        const uint32_t even = static_cast<uint32_t>(code % 2 == 0 ? code : code + 1);
        REQUIRE(affine<Bits>::quantize(tie, scale) == even);
        REQUIRE(affine<Bits>::quantize(tie, scale) ==
                static_cast<uint32_t>(
                    oracle::code(static_cast<double>(tie), -2.0, static_cast<double>(step), Bits)));
      }
    }
  });
}

TEST_CASE("quantize: values beyond the range get the end codes", "[quantize][affine]") {
  for_all_bits([]<int Bits>() {
    const affine_scale scale =
        affine<Bits>::widen(affine_params<half>{from_float<half>(0.5f), from_float<half>(1.0f)});
    const uint32_t top = affine<Bits>::max_code;
    const float end = 1.0f + 0.5f * static_cast<float>(top);
    CHECK(affine<Bits>::quantize(end + 0.25f, scale) == top);  // would round to top + 1
    CHECK(affine<Bits>::quantize(end + 0.4f, scale) == top);
    CHECK(affine<Bits>::quantize(1e30f, scale) == top);
    CHECK(affine<Bits>::quantize(std::numeric_limits<float>::max(), scale) == top);
    CHECK(affine<Bits>::quantize(0.6f, scale) == 0);
    CHECK(affine<Bits>::quantize(-1e30f, scale) == 0);
    CHECK(affine<Bits>::quantize(infinite, scale) == top);
    CHECK(affine<Bits>::quantize(-infinite, scale) == 0);
    CHECK(affine<Bits>::quantize(not_a_number, scale) == 0);
  });
}

TEMPLATE_TEST_CASE("quantize: a group of equal values has step 0, code 0 and its own value",
                   "[quantize][affine]", half, bfloat16) {
  for_all_bits([]<int Bits>() {
    for (const float x : {0.0f, -0.0f, 1.0f, -3.25f, 60000.0f, 0x1p-14f, 0x1p-24f, 1e-5f}) {
      const float stored = to_float(from_float<TestType>(x));
      const auto params = affine<Bits>::template fit<TestType>(range_of({x, x, x}));
      const affine_scale scale = affine<Bits>::widen(params);
      CHECK(to_float(params.step) == 0.0f);
      CHECK(affine<Bits>::quantize(x, scale) == 0);
      CHECK(affine<Bits>::dequantize(0, scale) == stored);
      // Infinity times 0 is not a number, and still a code.
      CHECK(affine<Bits>::quantize(infinite, scale) <= affine<Bits>::max_code);
      CHECK(affine<Bits>::quantize(not_a_number, scale) == 0);
    }
  });
}

TEMPLATE_TEST_CASE("quantize: an empty range gives zeros", "[quantize][affine]", half, bfloat16) {
  for (const std::vector<float>& values : {std::vector<float>{},
                                           {not_a_number},
                                           {infinite, -infinite},
                                           {not_a_number, infinite, -not_a_number}}) {
    const auto params = affine<4>::template fit<TestType>(range_of(values));
    CHECK(params.step.bits == 0);
    CHECK(params.min.bits == 0);
  }
}

TEST_CASE("quantize: non-finite values leave the range of the others alone", "[quantize][affine]") {
  const value_range clean = range_of({1.0f, -2.0f, 3.0f});
  const value_range dirty =
      range_of({not_a_number, 1.0f, infinite, -2.0f, -infinite, 3.0f, -not_a_number});
  CHECK(dirty.lowest == clean.lowest);
  CHECK(dirty.highest == clean.highest);
}

TEST_CASE("quantize: ranges do not depend on the order of the values, also of +0 and -0",
          "[quantize][affine]") {
  std::vector<float> values{0.0f, -0.0f, 0x1p-149f, -0x1p-149f, 1.0f};
  std::sort(values.begin(), values.end());
  do {
    const value_range range = range_of(values);
    REQUIRE(bits_of(range.lowest) == bits_of(-0x1p-149f));
    REQUIRE(bits_of(range.highest) == bits_of(1.0f));
  } while (std::next_permutation(values.begin(), values.end()));
  for (const std::vector<float>& zeros :
       {std::vector<float>{0.0f, -0.0f}, {-0.0f, 0.0f}, {-0.0f}}) {
    CHECK(bits_of(range_of(zeros).lowest) == 0);
    CHECK(bits_of(range_of(zeros).highest) == 0);
  }
}

TEMPLATE_TEST_CASE("quantize: quantize(dequantize(c)) = c for every code, range and magnitude",
                   "[quantize][affine]", half, bfloat16) {
  for_all_bits([]<int Bits>() {
    for (const value_range& range : many_ranges<TestType>()) {
      const affine_scale scale = affine<Bits>::widen(affine<Bits>::template fit<TestType>(range));
      if (scale.step == 0.0f) continue;
      for (uint32_t code = 0; code <= affine<Bits>::max_code; ++code) {
        INFO("bits " << Bits << ", range " << range.lowest << " to " << range.highest);
        REQUIRE(affine<Bits>::quantize(affine<Bits>::dequantize(code, scale), scale) == code);
      }
    }
  });
}

// fit rounds min and step to the nearest 16-bit number, so each is off by at most half of that
// type's spacing, and by float's rounding of the quotient (2^-23 of it).
TEMPLATE_TEST_CASE("quantize: min and step are the range's, rounded to 16 bits",
                   "[quantize][affine]", half, bfloat16) {
  for_all_bits([]<int Bits>() {
    const double limit = static_cast<double>(largest_finite<TestType>);
    for (const value_range& range : many_ranges<TestType>()) {
      const double low = static_cast<double>(range.lowest);
      const double high = static_cast<double>(range.highest);
      const auto params = affine<Bits>::template fit<TestType>(range);
      const double step = std::min((high - low) / affine<Bits>::max_code, limit);
      const double stored = widen(params.step);
      INFO("bits " << Bits << ", range " << low << " to " << high);
      REQUIRE(std::fabs(widen(params.min) - low) <= rounding<TestType>(low));
      REQUIRE(std::isfinite(stored));
      if (stored > 0.0) {
        REQUIRE(std::fabs(stored - step) <= rounding<TestType>(step) + step * 0x1p-23);
      } else {
        // Zero only where 16 bits cannot tell it from zero, or float cannot at this magnitude.
        const double magnitude = std::max(std::fabs(low), std::fabs(high));
        const bool rounds_to_zero = step <= rounding<TestType>(0.0);
        const bool is_subnormal = step <= 0x1p-126;
        REQUIRE((rounds_to_zero || is_subnormal ||
                 step - rounding<TestType>(step) <= magnitude * 0x1p-21));
      }
    }
  });
}

// The nearest code is at most half a step away, unless x lies outside of what the rounded
// parameters reach: below min, or above the last code. Float adds 2^-23 of the magnitude to each of
// the two.
TEMPLATE_TEST_CASE("quantize: a value comes back within half a step of the reachable interval",
                   "[quantize][affine]", half, bfloat16) {
  for_all_bits([]<int Bits>() {
    random_numbers random(100 + Bits);
    for (const value_range& range : many_ranges<TestType>()) {
      const double low = static_cast<double>(range.lowest);
      const double high = static_cast<double>(range.highest);
      const affine_scale scale = affine<Bits>::widen(affine<Bits>::template fit<TestType>(range));
      const double min = static_cast<double>(scale.min);
      const double step = static_cast<double>(scale.step);
      const double top = min + affine<Bits>::max_code * step;
      for (int i = 0; i < 20; ++i) {
        const float x = static_cast<float>(random.uniform(low, high));
        const float back = affine<Bits>::dequantize(affine<Bits>::quantize(x, scale), scale);
        const double error = std::fabs(static_cast<double>(back) - static_cast<double>(x));
        const double outside =
            std::max({0.0, min - static_cast<double>(x), static_cast<double>(x) - top});
        const double rounding_error = 0x1p-22 * std::max(std::fabs(low), std::fabs(high));
        INFO("bits " << Bits << ", range " << low << " to " << high << ", x " << x);
        REQUIRE(error <= step / 2 + outside + rounding_error);
      }
    }
  });
}

TEMPLATE_TEST_CASE("quantize: 4 bits are at least as near as 2, and 8 as 4, over a group",
                   "[quantize][affine]", half, bfloat16) {
  const std::vector<float> values =
      zipcache_test::make_values(zipcache_test::content::gaussian, 1, 64, 16, 3);
  const value_range range = range_of(values);
  double errors[3] = {};
  const auto add = [&]<int Bits>(double& sum) {
    const affine_scale scale = affine<Bits>::widen(affine<Bits>::template fit<TestType>(range));
    for (const float x : values) {
      const float back = affine<Bits>::dequantize(affine<Bits>::quantize(x, scale), scale);
      sum += static_cast<double>((back - x) * (back - x));
    }
  };
  add.template operator()<2>(errors[0]);
  add.template operator()<4>(errors[1]);
  add.template operator()<8>(errors[2]);
  // Five and seventeen times finer steps; the squares of half of that at least.
  CHECK(errors[1] * 6 < errors[0]);
  CHECK(errors[2] * 72 < errors[1]);
}

TEST_CASE("quantize: ranges wider than the largest float keep finite parameters and the order",
          "[quantize][affine]") {
  for_all_bits([]<int Bits>() {
    const auto params = affine<Bits>::template fit<bfloat16>({-3e38f, 3e38f});
    const affine_scale scale = affine<Bits>::widen(params);
    REQUIRE(is_finite(scale.step));
    REQUIRE(is_finite(scale.min));
    for (const float x : {-3e38f, -1e38f, 0.0f, 0.5e38f, 1e38f, 2e38f, 3e38f}) {
      const double position =
          oracle::position(static_cast<double>(x), widen(params.min), widen(params.step), Bits);
      const int code = static_cast<int>(affine<Bits>::quantize(x, scale));
      INFO("bits " << Bits << ", x " << x);
      CHECK(std::fabs(code - position) <= 0.5 + affine<Bits>::max_code * 3 * 0x1p-24);
    }
  });
}

TEMPLATE_TEST_CASE("quantize: a channel's magnitude is the root of its largest value, 1 for zeros",
                   "[quantize][affine]", half, bfloat16) {
  for (const float x : {1.0f, 4.0f, 100.0f, 1e-6f, 65504.0f, 0x1p-24f}) {
    const double root = std::sqrt(static_cast<double>(x));
    CHECK(std::fabs(widen(channel_magnitude<TestType>(x)) - root) <=
          rounding<TestType>(root) + root * 0x1p-23);
  }
  CHECK(to_float(channel_magnitude<TestType>(0.0f)) == 1.0f);
  // The root of float's smallest number is below half's: still not zero.
  CHECK(to_float(channel_magnitude<TestType>(0x1p-149f)) > 0.0f);
}

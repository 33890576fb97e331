// The quantize stage against the oracle: every layout, every number of bits, every head_dim, every
// content, one axis at a time round the paper's choices.
//
// Tolerances. A code is computed from z = x or z = x / c_j in float. Division rounds once and the
// position is rounded three times (affine_test.cpp), so the code is the nearest one to within
// 0.5 + 3 * 2^-24 * max_code + 2^-24 * |z| / step.
#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <tuple>
#include <vector>

#include <zipcache/quantize/quantize.hpp>

#include "support/catch.hpp"
#include "support/generators.hpp"
#include "support/oracle.hpp"

using namespace zipcache;
using zipcache_test::content;
using zipcache_test::make_tensor;
namespace oracle = zipcache_test::oracle;

namespace {

template <class Storage>
double widen(Storage x) {
  return std::is_same_v<Storage, half> ? oracle::value_of_half(x.bits)
                                       : oracle::value_of_bfloat16(x.bits);
}

/// A quantized tensor with its memory.
template <class Granularity, int Bits, class Storage>
struct quantized {
  int32_t num_heads;
  int64_t num_tokens;
  int32_t head_dim;
  std::vector<uint8_t> codes;
  std::vector<affine_params<Storage>> params;
  std::vector<Storage> magnitudes;

  using view_type = code_view<Granularity, Bits, Storage>;

  template <class Element>
  quantized(const std::vector<Element>& x, int32_t heads, int64_t tokens, int32_t dim)
      : num_heads(heads),
        num_tokens(tokens),
        head_dim(dim),
        codes(x.size(), 0xee),
        params(static_cast<size_t>(heads * view_type::params_per_head(tokens, dim))),
        magnitudes(static_cast<size_t>(heads * dim)) {
    quantize<Granularity, Bits, Storage, Element>(
        cpu_backend{}, hnd<const Element>(x.data(), heads, tokens, dim), view());
  }

  view_type view() {
    return {num_heads, num_tokens, head_dim, codes.data(), params.data(), magnitudes.data()};
  }

  std::vector<float> dequantized() {
    std::vector<float> values(codes.size());
    dequantize(cpu_backend{}, view(), hnd(values.data(), num_heads, num_tokens, head_dim));
    return values;
  }

  /// The pair of a value, found from the definition of the layout.
  affine_params<Storage> pair_of(int64_t head, int64_t token, int64_t channel) const {
    const int64_t per_head = static_cast<int64_t>(params.size()) / num_heads;
    int64_t index = token;
    if (std::is_same_v<Granularity, channelwise>) index = channel;
    if (std::is_same_v<Granularity, channelwise_blocks>) index = token / 32 * head_dim + channel;
    if (Granularity::group_size > 0)
      index = token * (head_dim / most(1, Granularity::group_size)) +
              channel / most(1, Granularity::group_size);
    return params[static_cast<size_t>(head * per_head + index)];
  }
};

/// Compares codes and values with the oracle, and pairs with the groups' true ranges.
template <class Granularity, int Bits, class Storage, class Element>
void check_against_oracle(content what, int32_t heads, int64_t tokens, int32_t dim) {
  INFO(Granularity::name() << ", " << Bits << " bits, " << name_of(what) << ", " << heads << " x "
                           << tokens << " x " << dim);
  const std::vector<Element> x = make_tensor<Element>(what, heads, tokens, dim, 11);
  quantized<Granularity, Bits, Storage> result(x, heads, tokens, dim);
  const std::vector<float> back = result.dequantized();
  const double top = std::ldexp(1.0, Bits) - 1.0;
  constexpr bool separable = Granularity::has_channel_magnitudes;
  for (int32_t head = 0; head < heads; ++head) {
    for (int32_t channel = 0; channel < dim; ++channel) {
      double largest = 0.0;
      for (int64_t token = 0; token < tokens; ++token) {
        largest = std::fmax(largest,
                            std::fabs(static_cast<double>(to_float(
                                x[static_cast<size_t>((head * tokens + token) * dim + channel)]))));
      }
      const double magnitude =
          separable ? widen(result.magnitudes[static_cast<size_t>(head * dim + channel)]) : 1.0;
      if (separable) {
        // Rounded to 16 bits once, after float's root: 2^-23 of it besides.
        const double root = largest > 0.0 ? std::sqrt(largest) : 1.0;
        const double rounding = std::is_same_v<Storage, half> ? oracle::rounding_of_half(root)
                                                              : oracle::rounding_of_bfloat16(root);
        REQUIRE(std::fabs(magnitude - root) <= rounding + root * 0x1p-23);
      }
      for (int64_t token = 0; token < tokens; ++token) {
        const size_t index = static_cast<size_t>((head * tokens + token) * dim + channel);
        const affine_params<Storage> pair = result.pair_of(head, token, channel);
        const double step = widen(pair.step);
        const double min = widen(pair.min);
        const double z = static_cast<double>(to_float(x[index])) / magnitude;
        const double position = oracle::position(z, min, step, Bits);
        const double slack = step > 0.0 ? 3 * 0x1p-24 * top + 0x1p-23 * std::fabs(z) / step : 0.0;
        REQUIRE(std::fabs(result.codes[index] - position) <= 0.5 + slack);
        // Two roundings in float, of the sum and of the product with the magnitude.
        const double value = (result.codes[index] * step + min) * magnitude;
        REQUIRE(std::fabs(static_cast<double>(back[index]) - value) <=
                0x1p-22 * std::fabs(value) + 0x1p-126);
      }
    }
  }
}

/// What is left of a tensor after 16-bit storage: sum of squared errors.
template <class Granularity, int Bits>
double squared_error(const std::vector<half>& x, int64_t tokens, int32_t dim) {
  quantized<Granularity, Bits, half> result(x, 1, tokens, dim);
  const std::vector<float> back = result.dequantized();
  double sum = 0.0;
  for (size_t i = 0; i < x.size(); ++i)
    sum += std::pow(static_cast<double>(back[i]) - static_cast<double>(to_float(x[i])), 2);
  return sum;
}

using granularities = std::tuple<tokenwise, groupwise<16>, channelwise, channelwise_blocks,
                                 channel_separable_tokenwise>;
using token_granularities = std::tuple<tokenwise, groupwise<16>>;
using all_bits = std::tuple<std::integral_constant<int, 1>, std::integral_constant<int, 2>,
                            std::integral_constant<int, 3>, std::integral_constant<int, 4>,
                            std::integral_constant<int, 5>, std::integral_constant<int, 6>,
                            std::integral_constant<int, 7>, std::integral_constant<int, 8>>;

}  // namespace

TEMPLATE_LIST_TEST_CASE("quantize: every layout is the oracle's, for all contents", "[quantize]",
                        granularities) {
  for (const content what : zipcache_test::all_contents) {
    check_against_oracle<TestType, 4, half, half>(what, 2, 40, 64);
    check_against_oracle<TestType, 4, bfloat16, bfloat16>(what, 1, 33, 64);
    check_against_oracle<TestType, 2, half, float>(what, 1, 9, 64);
  }
}

TEMPLATE_LIST_TEST_CASE("quantize: every layout is the oracle's, for every head_dim", "[quantize]",
                        granularities) {
  for (const int32_t dim : {16, 48, 64, 80, 128, 256}) {
    check_against_oracle<TestType, 4, half, half>(content::outlier_channels, 1, 35, dim);
    check_against_oracle<TestType, 2, half, float>(content::gaussian, 2, 3, dim);
  }
}

TEMPLATE_LIST_TEST_CASE("quantize: every number of bits is the oracle's", "[quantize]", all_bits) {
  constexpr int bits = TestType::value;
  check_against_oracle<channelwise, bits, half, half>(content::gaussian, 1, 40, 48);
  check_against_oracle<channel_separable_tokenwise, bits, half, half>(content::outlier_channels, 1,
                                                                      40, 48);
}

TEMPLATE_LIST_TEST_CASE("quantize: one token, and none", "[quantize]", granularities) {
  check_against_oracle<TestType, 4, half, half>(content::gaussian, 1, 1, 64);
  check_against_oracle<TestType, 4, half, half>(content::gaussian, 3, 0, 64);
}

TEMPLATE_LIST_TEST_CASE("quantize: a tensor by token quantizes to the bytes of the same by head",
                        "[quantize]", granularities) {
  constexpr int32_t heads = 3;
  constexpr int64_t tokens = 35;
  constexpr int32_t dim = 32;
  const std::vector<half> by_head = make_tensor<half>(content::gaussian, heads, tokens, dim, 5);
  std::vector<half> by_token(by_head.size());
  const auto target = nhd(by_token.data(), tokens, heads, dim);
  for (int32_t head = 0; head < heads; ++head)
    for (int64_t token = 0; token < tokens; ++token)
      std::copy_n(by_head.data() + (head * tokens + token) * dim, dim, target.row(head, token));
  quantized<TestType, 4, half> expected(by_head, heads, tokens, dim);
  quantized<TestType, 4, half> result(by_head, heads, tokens, dim);
  std::fill(result.codes.begin(), result.codes.end(), uint8_t{0});
  quantize<TestType, 4, half, half>(cpu_backend{}, tensor_view<const half>(target), result.view());
  CHECK(result.codes == expected.codes);
}

TEMPLATE_LIST_TEST_CASE("quantize: permuting tokens permutes codes and pairs of token layouts",
                        "[quantize]", token_granularities) {
  constexpr int64_t tokens = 37;
  constexpr int32_t dim = 64;
  const std::vector<half> x = make_tensor<half>(content::token_norms, 1, tokens, dim, 21);
  std::vector<half> permuted(x.size());
  // 5 generates all residues modulo 37.
  const auto image = [](int64_t token) { return token * 5 % tokens; };
  for (int64_t token = 0; token < tokens; ++token)
    std::copy_n(x.data() + token * dim, dim, permuted.data() + image(token) * dim);
  quantized<TestType, 4, half> a(x, 1, tokens, dim);
  quantized<TestType, 4, half> b(permuted, 1, tokens, dim);
  for (int64_t token = 0; token < tokens; ++token) {
    for (int32_t channel = 0; channel < dim; ++channel) {
      REQUIRE(a.codes[static_cast<size_t>(token * dim + channel)] ==
              b.codes[static_cast<size_t>(image(token) * dim + channel)]);
      REQUIRE(a.pair_of(0, token, channel).step.bits ==
              b.pair_of(0, image(token), channel).step.bits);
      REQUIRE(a.pair_of(0, token, channel).min.bits ==
              b.pair_of(0, image(token), channel).min.bits);
    }
  }
}

// Powers of two only move exponents, as long as nothing becomes subnormal or infinite. Channel
// magnitudes are roots, so there the power is even.
TEMPLATE_LIST_TEST_CASE("quantize: scaling by a power of two scales pairs exactly, codes stay",
                        "[quantize]", granularities) {
  constexpr int64_t tokens = 40;
  constexpr int32_t dim = 64;
  const std::vector<float> values =
      zipcache_test::make_values(content::outlier_channels, 1, tokens, dim, 31);
  quantized<TestType, 4, half> before(zipcache_test::round_to<half>(values), 1, tokens, dim);
  for (const float factor : {0.25f, 4.0f, 16.0f}) {
    std::vector<float> scaled;
    for (const half x : zipcache_test::round_to<half>(values))
      scaled.push_back(to_float(x) * factor);
    quantized<TestType, 4, half> after(zipcache_test::round_to<half>(scaled), 1, tokens, dim);
    CHECK(after.codes == before.codes);
    const float pair_factor = TestType::has_channel_magnitudes ? std::sqrt(factor) : factor;
    for (size_t i = 0; i < before.params.size(); ++i) {
      REQUIRE(to_float(after.params[i].step) == to_float(before.params[i].step) * pair_factor);
      REQUIRE(to_float(after.params[i].min) == to_float(before.params[i].min) * pair_factor);
    }
  }
}

// One outlier channel in 13, a hundred times larger, stretches every token's range about a
// hundredfold; divided by the roots, channels differ tenfold. So the steps on ordinary channels
// shrink about tenfold, and squared errors a hundredfold: a quarter of that is asked for.
TEST_CASE("quantize: channel-separable beats tokenwise on outlier channels by a factor of 25",
          "[quantize]") {
  constexpr int64_t tokens = 256;
  constexpr int32_t dim = 128;
  const std::vector<half> x = make_tensor<half>(content::outlier_channels, 1, tokens, dim, 41);
  const auto ordinary_error = [&]<class Granularity>() {
    quantized<Granularity, 4, half> result(x, 1, tokens, dim);
    const std::vector<float> back = result.dequantized();
    double sum = 0.0;
    for (size_t i = 0; i < x.size(); ++i) {
      const bool outlier = i % dim % 13 == 5;
      const double error = static_cast<double>(back[i]) - static_cast<double>(to_float(x[i]));
      sum += outlier ? 0.0 : error * error;
    }
    return sum;
  };
  const double tokenwise_error = ordinary_error.operator()<tokenwise>();
  const double separable_error = ordinary_error.operator()<channel_separable_tokenwise>();
  const double channelwise_error = ordinary_error.operator()<channelwise>();
  INFO(tokenwise_error << " " << separable_error << " " << channelwise_error);
  CHECK(separable_error * 25 < tokenwise_error);
  CHECK(channelwise_error < separable_error);
}

TEST_CASE("quantize: a 16-times finer code has a tenth of the error at most", "[quantize]") {
  const std::vector<half> x = make_tensor<half>(content::gaussian, 1, 64, 64, 51);
  const double two = squared_error<channelwise, 2>(x, 64, 64);
  const double four = squared_error<channelwise, 4>(x, 64, 64);
  const double eight = squared_error<channelwise, 8>(x, 64, 64);
  CHECK(four * 10 < two);
  CHECK(eight * 10 < four);
}

TEMPLATE_LIST_TEST_CASE("quantize: NaN and infinities spoil nothing but themselves", "[quantize]",
                        granularities) {
  constexpr int64_t tokens = 40;
  constexpr int32_t dim = 64;
  const std::vector<float> clean =
      zipcache_test::make_values(content::gaussian, 1, tokens, dim, 61);
  std::vector<float> dirty = clean;
  const float infinite = std::numeric_limits<float>::infinity();
  const std::set<size_t> spoiled{3, 70, 500, 501, 2000};
  for (const size_t i : spoiled)
    dirty[i] = i % 2 == 0 ? std::numeric_limits<float>::quiet_NaN() : -infinite;
  // Clean values there that lie in the middle, so that no range depends on them.
  std::vector<float> reference = clean;
  for (const size_t i : spoiled) reference[i] = 0.0f;
  quantized<TestType, 4, half> a(reference, 1, tokens, dim);
  quantized<TestType, 4, half> b(dirty, 1, tokens, dim);
  const std::vector<float> back = b.dequantized();
  for (size_t i = 0; i < dirty.size(); ++i) {
    REQUIRE(std::isfinite(back[i]));
    if (!spoiled.contains(i)) REQUIRE(a.codes[i] == b.codes[i]);
  }
}

TEST_CASE("quantize: views that do not fit are refused", "[quantize]") {
  std::vector<half> x(2 * 4 * 32);
  std::vector<uint8_t> codes(x.size());
  std::vector<affine_params<half>> params(100);
  const auto view = hnd<const half>(x.data(), 2, 4, 32);
  const auto codes_of = [&](int32_t heads, int64_t tokens, int32_t dim) {
    return code_view<tokenwise, 4>{heads, tokens, dim, codes.data(), params.data(), nullptr};
  };
  CHECK_NOTHROW(quantize(cpu_backend{}, view, codes_of(2, 4, 32)));
  CHECK_THROWS_AS(quantize(cpu_backend{}, view, codes_of(1, 4, 32)), argument_error);
  CHECK_THROWS_AS(quantize(cpu_backend{}, view, codes_of(2, 5, 32)), argument_error);
  CHECK_THROWS_AS(quantize(cpu_backend{}, view, codes_of(2, 4, 16)), argument_error);
  const auto odd = hnd<const half>(x.data(), 1, 4, 24);
  CHECK_THROWS_AS(quantize(cpu_backend{}, odd, codes_of(1, 4, 24)), argument_error);
}

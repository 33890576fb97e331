// The rotation against the Hadamard matrix itself, and rotated layouts against plain layouts of
// rotated values.
#include <cmath>
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

/// A tensor quantized by `Granularity` with 3 bits, and what it decodes to.
template <class Granularity>
struct coded {
  using view_type = code_view<Granularity, 3, half>;
  std::vector<uint8_t> codes;
  std::vector<affine_params<half>> params;
  std::vector<half> magnitudes;
  std::vector<float> back;

  template <class Element>
  coded(const std::vector<Element>& x, int64_t tokens, int32_t dim)
      : codes(x.size()),
        params(static_cast<size_t>(view_type::params_per_head(tokens, dim))),
        magnitudes(static_cast<size_t>(dim)),
        back(x.size()) {
    const view_type view{1, tokens, dim, codes.data(), params.data(), magnitudes.data()};
    quantize<Granularity, 3, half, Element>(cpu_backend{},
                                            hnd<const Element>(x.data(), 1, tokens, dim), view);
    dequantize(cpu_backend{}, view, hnd(back.data(), 1, tokens, dim));
  }
};

double squared_error(const std::vector<half>& x, const std::vector<float>& back) {
  double sum = 0.0;
  for (size_t i = 0; i < x.size(); ++i)
    sum += std::pow(static_cast<double>(back[i]) - static_cast<double>(to_float(x[i])), 2);
  return sum;
}

}  // namespace

TEST_CASE("rotation: it is the Hadamard matrix of every block, and its own inverse",
          "[quantize][rotation]") {
  for (const auto& [dim, block] : {std::pair<int32_t, int32_t>{16, 16},
                                   {48, 16},
                                   {64, 64},
                                   {80, 16},
                                   {96, 32},
                                   {128, 128},
                                   {256, 256}}) {
    REQUIRE(rotation_block(dim) == block);
    const std::vector<float> x = make_tensor<float>(content::outlier_channels, 1, 1, dim, 3);
    std::vector<float> rotated_x = x;
    rotate_channels(rotated_x.data(), dim);
    const std::vector<double> expected =
        oracle::hadamard(oracle::widen(x, [](float y) { return y; }), dim, block);
    double norm = 0.0;
    for (const float value : x) norm += std::fabs(static_cast<double>(value));
    std::vector<float> back = rotated_x;
    rotate_channels(back.data(), dim);
    for (size_t i = 0; i < x.size(); ++i) {
      // log2(block) sums, the factor and its product, each rounded once, on terms of at most
      // `norm`.
      CHECK(std::fabs(static_cast<double>(rotated_x[i]) - expected[i]) <= 12 * 0x1p-24 * norm);
      CHECK(std::fabs(static_cast<double>(back[i] - x[i])) <= 24 * 0x1p-24 * norm);
    }
  }
}

TEMPLATE_TEST_CASE("rotation: a rotated layout is the plain layout of rotated values",
                   "[quantize][rotation]", tokenwise, channelwise, channelwise_blocks,
                   channel_separable_tokenwise) {
  constexpr int64_t tokens = 70;
  for (const int32_t dim : {48, 64, 128}) {
    const std::vector<half> x = make_tensor<half>(content::outlier_channels, 1, tokens, dim, 9);
    std::vector<float> turned;
    for (const half value : x) turned.push_back(to_float(value));
    for (int64_t token = 0; token < tokens; ++token)
      rotate_channels(turned.data() + token * dim, dim);
    const coded<rotated<TestType>> result(x, tokens, dim);
    coded<TestType> expected(turned, tokens, dim);
    CHECK(result.codes == expected.codes);
    for (int64_t token = 0; token < tokens; ++token)
      rotate_channels(expected.back.data() + token * dim, dim);
    CHECK(result.back == expected.back);
  }
}

TEST_CASE("rotation: it spares tokenwise layouts the width of outlier channels",
          "[quantize][rotation]") {
  const std::vector<half> x = make_tensor<half>(content::outlier_channels, 1, 64, 128, 4);
  CHECK(squared_error(x, coded<rotated<tokenwise>>(x, 64, 128).back) <
        0.5 * squared_error(x, coded<tokenwise>(x, 64, 128).back));
}

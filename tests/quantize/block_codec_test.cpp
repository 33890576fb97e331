// What every block codec promises, whatever it codes: its size, any part of the rows, one token,
// ragged ends, values that are not finite.
#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

#include <zipcache/policy/presets.hpp>
#include <zipcache/quantize/block_codec.hpp>

#include "support/catch.hpp"
#include "support/coded_block.hpp"

using namespace zipcache;
using zipcache_test::coded_block;
using zipcache_test::content;

namespace {

using all_codecs =
    std::tuple<boosted_channels<125>, boosted_channels<250>, magnitude_classes<40, 60>,
               magnitude_classes<0, 60>, magnitude_classes<40, 0>,
               uniform_groups<parameter_axis::channel, 2, 64>,
               uniform_groups<parameter_axis::token, 4, 48>,
               token_scaled<uniform_groups<parameter_axis::channel, 2, 64>>,
               presets::gear_l::key_quantizer_policy::granularity,
               presets::gear_l::value_quantizer_policy::granularity,
               presets::gear::key_quantizer_policy::granularity,
               presets::gear::value_quantizer_policy::granularity>;

constexpr int64_t lengths[] = {1, 2, 31, 33, 64, 127, 128, 129, 300};

template <class Codec, class Storage>
void check_finite_and_within(const block_shape& shape, content what) {
  const coded_block<Codec, Storage> block(shape, what, 3);
  float lowest = std::numeric_limits<float>::infinity(), highest = -lowest;
  for (const float x : block.x) {
    lowest = std::fmin(lowest, x);
    highest = std::fmax(highest, x);
  }
  for (const float y : block.back) {
    REQUIRE(is_finite(y));
    // No codec goes beyond the range by more than the range itself.
    REQUIRE(y >= lowest - (highest - lowest) - std::fabs(lowest) * 0x1p-7f - 1e-6f);
    REQUIRE(y <= highest + (highest - lowest) + std::fabs(highest) * 0x1p-7f + 1e-6f);
  }
}

}  // namespace

TEMPLATE_LIST_TEST_CASE("block codecs: they write their size and no byte more, all of it",
                        "[quantize][block_codec]", all_codecs) {
  for (const int32_t head_dim : {16, 48, 64, 128, 256}) {
    for (const int64_t tokens : lengths) {
      coded_block<TestType> block({tokens, head_dim}, content::gaussian, 1);
      const auto end = block.bytes.end() - zipcache_test::guard_bytes;
      REQUIRE(std::all_of(end, block.bytes.end(),
                          [](std::byte b) { return b == zipcache_test::guard; }));
      // The same values give the same bytes, whatever was there before.
      const std::vector<std::byte> written = block.bytes;
      std::fill(block.bytes.begin(), end, std::byte{0x3c});
      block.decoded(0, tokens, true);
      REQUIRE(block.bytes == written);
    }
  }
}

TEMPLATE_LIST_TEST_CASE("block codecs: any rows decode as they do among all",
                        "[quantize][block_codec]", all_codecs) {
  for (const int64_t tokens : lengths) {
    coded_block<TestType> block({tokens, 48}, content::outlier_channels, 2);
    for (const int64_t step : {1, 32, 50}) {
      std::vector<float> pieces;
      for (int64_t first = 0; first < tokens; first += step) {
        const auto piece = block.decoded(first, std::min(step, tokens - first));
        pieces.insert(pieces.end(), piece.begin(), piece.end());
      }
      REQUIRE(pieces == block.back);
    }
  }
}

TEMPLATE_LIST_TEST_CASE("block codecs: every content comes back finite, in half and bfloat16",
                        "[quantize][block_codec]", all_codecs) {
  for (const content what : zipcache_test::all_contents) {
    for (const int64_t tokens : {1, 3, 70, 140}) {
      check_finite_and_within<TestType, half>({tokens, 64}, what);
      check_finite_and_within<TestType, bfloat16>({tokens, 64, segment_origin::streamed}, what);
    }
  }
}

TEMPLATE_LIST_TEST_CASE("block codecs: a constant block comes back exactly",
                        "[quantize][block_codec]", all_codecs) {
  for (const float constant : {0.0f, 1.5f, -3.25f, 60000.0f}) {
    const coded_block<TestType> block({40, 32}, std::vector<float>(40 * 32, constant));
    // Low-rank factors may add what rounding left of nothing.
    for (const float y : block.back) REQUIRE(std::fabs(y - constant) <= 1e-7f);
  }
}

TEMPLATE_LIST_TEST_CASE("block codecs: non-finite values spoil no other and come back finite",
                        "[quantize][block_codec]", all_codecs) {
  constexpr int64_t tokens = 70;
  constexpr int32_t dim = 64;
  auto values = zipcache_test::make_values(content::gaussian, 1, tokens, dim, 5);
  values = coded_block<TestType>::rounded(values);
  const float largest = *std::max_element(values.begin(), values.end());
  const coded_block<TestType> clean({tokens, dim}, values);
  const float infinity = std::numeric_limits<float>::infinity();
  for (const float bad : {infinity, -infinity, std::numeric_limits<float>::quiet_NaN()}) {
    auto spoilt = values;
    for (const size_t place : {size_t{0}, size_t{77}, size_t{dim * tokens - 1}})
      spoilt[place] = bad;
    const coded_block<TestType> block({tokens, dim}, spoilt);
    double others = 0.0;
    for (size_t i = 0; i < values.size(); ++i) {
      REQUIRE(is_finite(block.back[i]));
      REQUIRE(std::fabs(block.back[i]) <= 3 * largest);
      if (is_finite(spoilt[i]))
        others += std::pow(static_cast<double>(block.back[i] - values[i]), 2);
    }
    REQUIRE(others <= 1.1 * clean.squared_error());
  }
}

// Tolerance: as for every uniform code, half a step of the channel's page, which has 15 steps if it
// is boosted and 3 if not, and what rounding the pair to 16 bits moves (u = 2^-11 for half).
#include <algorithm>
#include <cmath>

#include <zipcache/quantize/boosted_channels.hpp>

#include "support/catch.hpp"
#include "support/coded_block.hpp"

using namespace zipcache;
using zipcache_test::coded_block;
using zipcache_test::content;

namespace {

/// Channels of one page by mean magnitude, by the definition.
std::vector<bool> largest(const coded_block<boosted_channels<125>>& block, int64_t first,
                          int64_t count) {
  const int32_t dim = block.shape.head_dim;
  std::vector<std::pair<double, int32_t>> means;
  for (int32_t channel = 0; channel < dim; ++channel) {
    double sum = 0.0;
    for (int64_t token = first; token < first + count; ++token)
      sum += std::fabs(static_cast<double>(block.at(token, channel)));
    means.emplace_back(-sum / static_cast<double>(count), channel);
  }
  std::sort(means.begin(), means.end());
  std::vector<bool> boosted(static_cast<size_t>(dim), false);
  for (int32_t i = 0; i < dim / 8; ++i)
    boosted[static_cast<size_t>(means[static_cast<size_t>(i)].second)] = true;
  return boosted;
}

}  // namespace

TEST_CASE("boosted channels: the largest of every page have 15 steps, the others 3",
          "[quantize][boosted_channels]") {
  for (const content what : {content::gaussian, content::outlier_channels, content::token_norms}) {
    for (const int64_t tokens : {1, 40, 128, 300}) {
      const coded_block<boosted_channels<125>> block({tokens, 64}, what, 4);
      for (int64_t first = 0; first < tokens; first += 128) {
        const int64_t count = std::min<int64_t>(128, tokens - first);
        const std::vector<bool> boosted = largest(block, first, count);
        for (int32_t channel = 0; channel < 64; ++channel) {
          double low = 1e30, high = -1e30;
          for (int64_t token = first; token < first + count; ++token) {
            low = std::fmin(low, static_cast<double>(block.at(token, channel)));
            high = std::fmax(high, static_cast<double>(block.at(token, channel)));
          }
          const double steps = boosted[static_cast<size_t>(channel)] ? 15.0 : 3.0;
          const double bound =
              (high - low) / steps / 2 + 2 * 0x1p-11 * (std::fabs(low) + high - low) + 0x1p-20;
          for (int64_t token = first; token < first + count; ++token)
            REQUIRE(std::fabs(block.error(token, channel)) <= bound);
        }
      }
    }
  }
}

TEST_CASE("boosted channels: the size is two planes, a pair and a bit of the map for each channel",
          "[quantize][boosted_channels]") {
  // A full page of 128 tokens and 128 channels, 16 of them boosted.
  const block_size page = boosted_channels<125>::size({128, 128});
  CHECK(page.code_bytes == 128 * (128 + 16) * 2 / 8);
  CHECK(page.parameter_bytes == 128 * 4 + 128 / 8);
  // Kitty's figure is 2.56 bits a value with a map of one byte a channel; ours has one bit.
  CHECK(8.0 * static_cast<double>(page.bytes()) / (128 * 128) == 2.5 + 1.0 / 128);
  CHECK(8.0 * static_cast<double>(boosted_channels<250>::size({128, 128}).bytes()) / (128 * 128) ==
        2.75 + 1.0 / 128);
  // A ragged page has all the parameters of a full one.
  CHECK(boosted_channels<125>::size({129, 128}).parameter_bytes == 2 * page.parameter_bytes);
  CHECK(boosted_channels<125>::size({129, 128}).code_bytes == page.code_bytes + 32 + 4);
  CHECK(boosted_channels<125>::num_boosted(80) == 10);
  CHECK(boosted_channels<125>::num_boosted(48) == 6);
}

TEST_CASE("boosted channels: boosting lowers the error where few channels are large",
          "[quantize][boosted_channels]") {
  const block_shape shape{256, 128};
  const coded_block<boosted_channels<0>> plain(shape, content::outlier_channels, 6);
  const coded_block<boosted_channels<125>> boosted(shape, content::outlier_channels, 6);
  // All outlier channels (10 of 128) are boosted: a fifth of the step, a 25th of the square.
  CHECK(boosted.squared_error() < plain.squared_error() / 20);
}

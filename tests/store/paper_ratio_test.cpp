// The ratios that the paper prints, from the policies that it compares. Two decimals are printed,
// so half of the last one is the tolerance.
#include <cmath>

#include <zipcache/policy/presets.hpp>
#include <zipcache/store/paper_ratio.hpp>

#include "support/catch.hpp"

using namespace zipcache;

namespace {

constexpr double printed = 0.005;

template <class Keys, class Values>
using uniform = typename presets::uniform_4bit::with<Keys>::template with<Values>;

/// Table 1: b = 8, hd = l = 4096, everything at 4 bits.
template <class Keys, class Values>
double table_1() {
  return paper_ratio<uniform<Keys, Values>>({8, 4096, 4096}, 1.0);
}

}  // namespace

TEST_CASE("store: the paper's table 1 comes out", "[store][paper_ratio]") {
  CHECK(std::fabs(table_1<keys<groupwise<32>, 4, 4>, values<groupwise<32>, 4, 4>>() - 3.20) <
        printed);
  CHECK(std::fabs(table_1<keys<tokenwise, 4, 4>, values<tokenwise, 4, 4>>() - 3.99) < printed);
  CHECK(std::fabs(table_1<keys<channelwise, 4, 4>, values<tokenwise, 4, 4>>() - 4.00) < printed);
  CHECK(std::fabs(table_1<keys<channelwise, 4, 4>, values<channel_separable_tokenwise, 4, 4>>() -
                  4.00) < printed);
}

TEST_CASE("store: the paper's ratios on GSM8k come out at 60 and 70 % salient tokens",
          "[store][paper_ratio]") {
  CHECK(std::fabs(paper_ratio<presets::paper>({8, 4096, 840}, 0.6) - 4.98) < printed);
  CHECK(std::fabs(paper_ratio<presets::paper>({8, 4096, 840}, 0.7) - 4.69) < printed);
}

TEST_CASE("store: 16 bits have ratio 1, and evicting 60 % of them 2.5", "[store][paper_ratio]") {
  CHECK(paper_ratio<presets::uncompressed>({1, 1024, 100}, 1.0) == 1.0);
  CHECK(std::fabs(paper_ratio<presets::h2o>({1, 1024, 100}, 0.4) - 2.5) < 1e-12);
}

// KIVI at 2 bits, by hand: 4 bits a pair of values, and 32 / 32 bits of parameters for each side.
TEST_CASE("store: groups of 32 cost one bit a value", "[store][paper_ratio]") {
  CHECK(std::fabs(paper_ratio<presets::kivi_2bit>({1, 1024, 320}, 0.0) - 32.0 / 6.0) < 1e-12);
}

TEST_CASE("store: a block codec counts with everything in a prompt's block",
          "[store][paper_ratio]") {
  // Kitty at 4096 tokens of 8 heads: keys 2.25 bits of codes, 0.25 of pairs, 1 / 128 of the map;
  // values 2 bits and a pair for a token of all heads, as the formula has it.
  const double kitty = 32.0 / (2.5 + 1.0 / 128 + 2.0 + 32.0 / 1024);
  CHECK(std::fabs(paper_ratio<presets::kitty>({1, 1024, 4096, 128}, 0.0) - kitty) < 1e-12);
  // Codes of both sides: bits that do not depend on the number of heads.
  CHECK(paper_ratio<presets::gear_l>({1, 128, 4096, 128}, 0.0) ==
        paper_ratio<presets::gear_l>({1, 1024, 4096, 128}, 0.0));
  // Without a head_dim, all channels are one head, and the factors of a residual are shared.
  CHECK(paper_ratio<presets::gear_l>({1, 1024, 4096}, 0.0) >
        paper_ratio<presets::gear_l>({1, 1024, 4096, 128}, 0.0));
}

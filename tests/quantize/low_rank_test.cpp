#include <cmath>

#include <zipcache/quantize/low_rank.hpp>
#include <zipcache/quantize/uniform_groups.hpp>

#include "support/catch.hpp"
#include "support/coded_block.hpp"

using namespace zipcache;
using zipcache_test::coded_block;
using zipcache_test::content;

namespace {

using groups = uniform_groups<parameter_axis::channel, 2, 64>;
using tokens_in_groups = uniform_groups<parameter_axis::token, 2, 64>;

/// Codes everything as 0, so that the residual is the input.
struct nothing {
  static constexpr int bits = 1;
  static block_size size(const block_shape&) { return {}; }
  template <class Storage>
  static void encode(const float*, const block_shape&, std::byte*) {}
  template <class Storage>
  static void decode(const std::byte*, const block_shape& shape, int64_t, int64_t count,
                     float* out) {
    std::fill_n(out, count * shape.head_dim, 0.0f);
  }
  static std::string name() { return "nothing"; }
};

}  // namespace

TEST_CASE("low rank: it is exact for a matrix of that rank, up to 16 bits",
          "[quantize][low_rank]") {
  for (const int rank : {1, 2, 4}) {
    const auto left = zipcache_test::make_values(content::gaussian, 1, 90, rank, 1);
    const auto right = zipcache_test::make_values(content::gaussian, 1, rank, 32, 2);
    std::vector<float> x(90 * 32, 0.0f);
    float largest = 0.0f;
    for (size_t i = 0; i < x.size(); ++i) {
      for (int r = 0; r < rank; ++r)
        x[i] += left[i / 32 * static_cast<size_t>(rank) + static_cast<size_t>(r)] *
                right[static_cast<size_t>(r) * 32 + i % 32];
      largest = std::fmax(largest, std::fabs(x[i]));
    }
    const coded_block<with_low_rank<nothing, 4, 2>> block({90, 32}, x);
    // Four products of two factors that are each rounded to 16 bits. |p| <= sqrt(90) of their
    // largest mean, far above what happens: a row of P has length at most sqrt(90).
    double mean = 0.0;
    for (const float value : x) mean += static_cast<double>(value) * static_cast<double>(value);
    const double bound = 4 * 2 * 0x1p-11 * std::sqrt(mean / 90);
    for (size_t i = 0; i < x.size(); ++i)
      REQUIRE(std::fabs(static_cast<double>(block.back[i] - x[i])) <= bound);
  }
}

TEMPLATE_TEST_CASE("low rank: a residual in more directions is never a larger error",
                   "[quantize][low_rank]", groups, tokens_in_groups) {
  for (const content what :
       {content::gaussian, content::outlier_channels, content::token_norms, content::off_centre}) {
    for (const int64_t tokens : {1, 2, 63, 200}) {
      const block_shape shape{tokens, 64};
      const double plain = coded_block<TestType>(shape, what, 7).squared_error();
      const double rank_2 =
          coded_block<with_low_rank<TestType, 2, 2>>(shape, what, 7).squared_error();
      const double rank_4 =
          coded_block<with_low_rank<TestType, 4, 4>>(shape, what, 7).squared_error();
      // A projection never lengthens; the factors are rounded to 16 bits, which moves each entry by
      // 2^-11 of the residual's length, squares add.
      const double rounding = 16 * 0x1p-22 * plain;
      CHECK(rank_2 <= plain + rounding);
      CHECK(rank_4 <= rank_2 + rounding);
      if (tokens > 4) CHECK(rank_4 < 0.97 * plain);
    }
  }
}

TEST_CASE("low rank: prompts and streamed blocks have the ranks that they are given",
          "[quantize][low_rank]") {
  using codec = with_low_rank<groups, 4, 2>;
  const auto factors = [](int64_t tokens, int32_t dim, segment_origin origin) {
    return codec::size({tokens, dim, origin}).parameter_bytes -
           groups::size({tokens, dim, origin}).parameter_bytes;
  };
  CHECK(factors(1000, 128, segment_origin::prompt) == 2 * 4 * (1000 + 128));
  CHECK(factors(64, 128, segment_origin::streamed) == 2 * 2 * (64 + 128));
  // Not more directions than tokens.
  CHECK(factors(1, 128, segment_origin::prompt) == 2 * 1 * (1 + 128));
  CHECK(factors(3, 128, segment_origin::prompt) == 2 * 3 * (3 + 128));
  // GEAR-L in blocks of 1000 tokens of 128 channels is 3.1 bits; ours is 16 groups of 64 tokens.
  const double bits = 8.0 * static_cast<double>(codec::size({1000, 128}).bytes()) / (1000 * 128);
  CHECK(bits == Approx(2.0 + 32.0 * 16 / 1000 + 16.0 * 4 * 1128 / 128000).epsilon(1e-12));
  CHECK(bits == Approx(3.076).epsilon(1e-3));
}

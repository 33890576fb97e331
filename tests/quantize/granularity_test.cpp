#include <zipcache/quantize/granularity.hpp>
#include <zipcache/quantize/quantize.hpp>

#include "support/catch.hpp"

using namespace zipcache;

TEST_CASE("quantize: a layout says how many groups one token has", "[quantize][granularity]") {
  CHECK(groups_per_token<tokenwise>(128) == 1);
  CHECK(channels_per_group<tokenwise>(128) == 128);
  CHECK(groups_per_token<groupwise<32>>(128) == 4);
  CHECK(channels_per_group<groupwise<32>>(128) == 32);
  CHECK(groups_per_token<groupwise<16>>(80) == 5);
  CHECK(groups_per_token<channel_separable_tokenwise>(256) == 1);
}

TEST_CASE("quantize: a group size that does not divide head_dim is refused",
          "[quantize][granularity]") {
  CHECK_NOTHROW(detail::check_granularity<groupwise<32>>(128));
  CHECK_THROWS_WITH(detail::check_granularity<groupwise<32>>(80),
                    "zipcache: groupwise32 does not divide head_dim, which is 80");
  CHECK_THROWS_AS(detail::check_granularity<groupwise<64>>(32), argument_error);
  CHECK_THROWS_AS(detail::check_granularity<tokenwise>(40), argument_error);
}

// The second column of the method's table: b = 1, H = 1, l tokens, d channels.
TEST_CASE("quantize: pairs of a head number as the method's table says",
          "[quantize][granularity]") {
  CHECK(code_view<groupwise<32>, 4>::params_per_head(100, 128) == 100 * 128 / 32);
  CHECK(code_view<tokenwise, 4>::params_per_head(100, 128) == 100);
  CHECK(code_view<channelwise, 4>::params_per_head(100, 128) == 128);
  CHECK(code_view<channelwise_blocks, 4>::params_per_head(100, 128) == 4 * 128);
  CHECK(code_view<channel_separable_tokenwise, 4>::params_per_head(100, 128) == 100);
}

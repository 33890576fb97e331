#include <limits>

#include <zipcache/core/shape.hpp>

#include "support/catch.hpp"

using namespace zipcache;

TEST_CASE("core: a shape says its group and its softmax scale", "[core][shape]") {
  const cache_shape shape{.num_layers = 2, .num_qo_heads = 8, .num_kv_heads = 2, .head_dim = 64};
  CHECK(shape.group() == 4);
  CHECK(shape.softmax_scale() == 0.125f);
  cache_shape scaled = shape;
  scaled.sm_scale = 0.5f;
  CHECK(scaled.softmax_scale() == 0.5f);
}

TEST_CASE("core: a shape out of range is refused with the number and what is allowed",
          "[core][shape]") {
  const cache_shape good{.num_layers = 1, .num_qo_heads = 8, .num_kv_heads = 2, .head_dim = 64};
  CHECK_NOTHROW(detail::check_shape(good));
  for (const int32_t head_dim : {0, -16, 8, 24, 72, 264, 272}) {
    cache_shape bad = good;
    bad.head_dim = head_dim;
    CHECK_THROWS_AS(detail::check_shape(bad), argument_error);
  }
  cache_shape bad = good;
  bad.num_qo_heads = 7;
  CHECK_THROWS_WITH(detail::check_shape(bad),
                    "zipcache: num_qo_heads is 7, but must be a multiple of num_kv_heads, which is "
                    "2");
  bad = good;
  bad.num_kv_heads = 0;
  CHECK_THROWS_AS(detail::check_shape(bad), argument_error);
  bad = good;
  bad.sm_scale = -1.0f;
  CHECK_THROWS_AS(detail::check_shape(bad), argument_error);
  bad.sm_scale = std::numeric_limits<float>::quiet_NaN();
  CHECK_THROWS_AS(detail::check_shape(bad), argument_error);
}

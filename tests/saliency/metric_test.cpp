#include <zipcache/saliency/metric.hpp>

#include "support/catch.hpp"

using namespace zipcache;

TEST_CASE("saliency: metrics divide by what their names say", "[saliency][metric]") {
  const token_visibility visible{4, 10};
  CHECK(normalized_attention::score(2.0f, visible) == 0.5f);
  CHECK(accumulated_attention::score(2.0f, visible) == 2.0f);
  CHECK(normalized_by_length::score(2.0f, visible) == 0.2f);
  CHECK(recency::score(2.0f, visible) == -10.0f);
}

TEST_CASE("saliency: a token that nothing sees scores 0, not 0 / 0", "[saliency][metric]") {
  CHECK(normalized_attention::score(0.0f, {0, 10}) == 0.0f);
  CHECK(normalized_by_length::score(0.0f, {0, 0}) == 0.0f);
}

TEST_CASE("saliency: under recency later tokens score higher", "[saliency][metric]") {
  CHECK(recency::score(0.0f, {1, 3}) > recency::score(9.0f, {1, 4}));
}

#include <vector>

#include <zipcache/core/view.hpp>

#include "support/catch.hpp"

using namespace zipcache;

TEST_CASE("core: both axis orders and slices reach the same elements", "[core][view]") {
  constexpr int32_t heads = 3;
  constexpr int64_t tokens = 5;
  constexpr int32_t dim = 16;
  std::vector<float> by_head(heads * tokens * dim);
  std::vector<float> by_token(by_head.size());
  const tensor_view<float> a = hnd(by_head.data(), heads, tokens, dim);
  const tensor_view<float> b = nhd(by_token.data(), tokens, heads, dim);
  for (int32_t head = 0; head < heads; ++head) {
    for (int64_t token = 0; token < tokens; ++token) {
      for (int32_t channel = 0; channel < dim; ++channel) {
        const float x = static_cast<float>(head * 1000 + token * 100 + channel);
        a.row(head, token)[channel] = x;
        b.row(head, token)[channel] = x;
      }
    }
  }
  CHECK(by_head[(2 * tokens + 1) * dim + 7] == 2107.0f);
  CHECK(by_token[(1 * heads + 2) * dim + 7] == 2107.0f);
  const tensor_view<const float> slice = b.tokens(3, 2);
  CHECK(slice.num_tokens == 2);
  CHECK(slice.row(1, 1)[4] == 1404.0f);
  CHECK(a.tokens(3, 2).row(1, 1)[4] == 1404.0f);
}

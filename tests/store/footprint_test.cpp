// What is counted for sealed segments, against the pool that the bytes come from.
#include <vector>

#include <zipcache/kv_cache.hpp>
#include <zipcache/store/footprint.hpp>

#include "support/catch.hpp"
#include "support/generators.hpp"

using namespace zipcache;
using zipcache_test::content;

namespace {

constexpr int32_t heads = 2, dim = 32;

/// A cache that was prefilled with `length` tokens, all of which are sealed.
template <class Policies>
kv_cache<half, Policies> prefilled(int64_t length) {
  kv_cache<half, Policies> cache({.num_qo_heads = heads, .num_kv_heads = heads, .head_dim = dim});
  const auto x = zipcache_test::make_tensor<half>(content::gaussian, heads, length, dim, 1);
  const auto view = hnd<const half>(x.data(), heads, length, dim);
  cache.prefill(cache.create(), 0, view, view, view);
  return cache;
}

}  // namespace

TEST_CASE("store: an empty footprint has ratio 1, and footprints add up", "[store][footprint]") {
  footprint a;
  CHECK(a.total_bytes() == 0);
  CHECK(a.ratio() == 1.0);
  const footprint b{1, 2, 4, 8, 16, 3, 310};
  CHECK(b.total_bytes() == 31);
  CHECK(b.ratio() == 10.0);
  a += b;
  a += b;
  CHECK(a.code_bytes == 2);
  CHECK(a.parameter_bytes == 4);
  CHECK(a.padding_bytes == 8);
  CHECK(a.table_bytes == 16);
  CHECK(a.window_bytes == 32);
  CHECK(a.num_tokens == 6);
  CHECK(a.uncompressed_bytes == 620);
  CHECK(a.ratio() == 10.0);
}

// By hand: 60 % at 4 and 40 % at 2 bits on both sides; a pair of 12 bits for each token (values);
// pairs of two classes and 16-bit magnitudes by channel in the record.
TEST_CASE("store: codes and parameters of the paper's segments are counted by the number of tokens",
          "[store][footprint]") {
  for (const auto& [length, salient] : {std::pair<int64_t, int64_t>{160, 96}, {100, 60}, {1, 1}}) {
    const auto cache = prefilled<presets::paper>(length);
    const footprint bytes = cache.footprint();
    INFO(length << " tokens");
    CHECK(bytes.num_tokens == length);
    CHECK(bytes.uncompressed_bytes == length * heads * dim * 4);
    CHECK(bytes.code_bytes == heads * dim * (salient * 8 + (length - salient) * 4) / 8);
    CHECK(bytes.parameter_bytes == heads * length * 3 / 2 + heads * (2 * dim * 4 + dim * 2));
    // Everything in the pool's pages is a code, a token's parameter, or padding.
    CHECK(bytes.code_bytes + heads * length * 3 / 2 + bytes.padding_bytes + bytes.window_bytes ==
          cache.pool().num_used() * cache.page_bytes());
    CHECK(bytes.padding_bytes >= 0);
    CHECK(bytes.table_bytes > 0);
    if (length == 160) CHECK(bytes.padding_bytes == 0);  // an interval fills its page
  }
}

TEST_CASE("store: evicted tokens count as tokens and have no codes", "[store][footprint]") {
  const auto cache = prefilled<presets::h2o>(160);
  const footprint bytes = cache.footprint();
  CHECK(bytes.num_tokens == 160);
  CHECK(bytes.uncompressed_bytes == 160 * heads * dim * 4);
  CHECK(bytes.code_bytes == 64 * heads * dim * 4);
  CHECK(bytes.parameter_bytes == 0);
  CHECK(bytes.code_bytes + bytes.padding_bytes == cache.pool().num_used() * cache.page_bytes());
}

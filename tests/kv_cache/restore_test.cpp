// What a sequence is made of, read from one cache and restored in another.
#include "support/cache_runs.hpp"
#include "support/catch.hpp"

using namespace zipcache_test;
namespace presets = zipcache::presets;

namespace {

template <class Element, class Policies>
void check_restore(int64_t prompt, int64_t decoded, const zipcache::cache_options& options) {
  const int64_t length = prompt + decoded;
  const token_data<Element> data(small_shape, length + 70, 5);
  zipcache::kv_cache<Element, Policies> cache(small_shape, options), other(small_shape, options);
  const zipcache::sequence_id id = cache.create();
  if (prompt > 0) prefill(cache, id, data, prompt);
  decode(cache, id, data, prompt, length);
  const std::vector<zipcache::layer_content<Element, Policies>> contents{cache.read_layer(id, 0)};
  const zipcache::sequence_id copy = other.restore(contents);
  REQUIRE(snapshot(other, copy) == snapshot(cache, id));
  const bool same = decode(other, copy, data, length, length + 70) ==
                    decode(cache, id, data, length, length + 70);
  REQUIRE(same);
  REQUIRE(snapshot(other, copy) == snapshot(cache, id));
  other.release(copy);
  REQUIRE(other.pool().num_used() == 0);
}

}  // namespace

TEST_CASE("kv_cache: a restored sequence has the bytes and the future of the one it came from",
          "[kv_cache][restore]") {
  zipcache::cache_options options;
  options.recompress_interval = 32;
  using with_sinks = presets::paper::with<zipcache::sink_tokens<4>>;
  for (const int64_t prompt : {0, 3, 100}) {
    for (const int64_t decoded : {0, 17, 32, 90}) {
      check_restore<zipcache::half, presets::paper>(prompt, decoded, options);
      check_restore<float, with_sinks>(prompt, decoded, options);
      check_restore<zipcache::bfloat16, presets::h2o>(prompt, decoded, options);
      check_restore<zipcache::half, presets::kivi_2bit>(prompt, decoded, {});
      check_restore<zipcache::half, presets::kitty::with<zipcache::sink_tokens<5>>>(
          prompt, decoded, {.recompress_interval = 32, .recent_window = 8});
      check_restore<float, presets::gear>(prompt, decoded, {.recent_window = 8});
      check_restore<zipcache::bfloat16, presets::oaken>(prompt, decoded, options);
    }
  }
}

TEST_CASE("kv_cache: restoring without room leaves the pool as it was", "[kv_cache][restore]") {
  const token_data<zipcache::half> data(small_shape, 500, 6);
  zipcache::kv_cache<zipcache::half> cache(small_shape);
  zipcache::kv_cache<zipcache::half> small(small_shape, {.max_pages = 3});
  const zipcache::sequence_id id = cache.create();
  prefill(cache, id, data, 500);
  const std::vector contents{cache.read_layer(id, 0)};
  REQUIRE_THROWS_AS(small.restore(contents), zipcache::capacity_error);
  REQUIRE(small.pool().num_used() == 0);
  REQUIRE(small.num_sequences() == 0);
}

TEST_CASE("kv_cache: in a policy table, reading and restoring name the layer's policies",
          "[kv_cache][restore]") {
  using table = zipcache::policy_table<presets::paper, presets::uncompressed>;
  const token_data<zipcache::half> data(small_shape, 300, 7);
  zipcache::kv_cache<zipcache::half, table> cache(small_shape, {.layer_policy = {1}});
  zipcache::kv_cache<zipcache::half, table> other(small_shape, {.layer_policy = {0}});
  const zipcache::sequence_id id = cache.create();
  prefill(cache, id, data, 300);
  REQUIRE_THROWS_AS(cache.read_layer<presets::paper>(id, 0), zipcache::argument_error);
  const std::vector contents{cache.read_layer<presets::uncompressed>(id, 0)};
  REQUIRE_THROWS_AS(other.restore<presets::uncompressed>(contents), zipcache::argument_error);
  REQUIRE(other.num_sequences() == 0);
  const zipcache::sequence_id copy = cache.restore<presets::uncompressed>(contents);
  REQUIRE(cache.length(copy, 0) == 300);
}

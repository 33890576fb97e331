// What must not matter: bytes that nobody wrote, other threads, calls that only look.
#include <cstring>
#include <thread>

#include "support/cache_runs.hpp"
#include "support/catch.hpp"
#include "support/poison.hpp"

namespace {

using namespace zipcache_test;
using zipcache::half;
namespace presets = zipcache::presets;

template <class Cache>
void fill_pages(const Cache& cache, uint32_t pattern) {
  const int64_t pages = cache.pool().reserved_bytes() / cache.page_bytes();
  for (int64_t page = 0; page < pages; ++page) {
    std::byte* bytes = cache.pool().data(static_cast<uint32_t>(page));
    for (int64_t at = 0; at < cache.page_bytes(); at += 4) std::memcpy(bytes + at, &pattern, 4);
  }
}

TEMPLATE_LIST_TEST_CASE("kv_cache: what lay in a page before does not matter",
                        "[kv_cache][isolation]", cache_axes) {
  using cache = typename TestType::cache;
  using policies = typename TestType::policies;
  const auto shape = shape_for<policies>();
  const token_data<typename TestType::element> data(shape, 330, 101);
  std::string expected;
  // Zeros; all ones, NaN in every type; a signalling NaN of float; NaN and infinity of half.
  for (const uint32_t pattern : {0u, 0xffffffffu, 0x7fa00000u, 0x7e017c00u}) {
    cache subject(shape, options_for<policies>(shape));
    const auto first = subject.create();
    prefill(subject, first, data, 330);
    decode_at_once(subject, first, data, 0, 330);
    subject.release(first);
    REQUIRE(subject.pool().num_used() == 0);
    fill_pages(subject, pattern);
    const auto sequence = subject.create();
    prefill(subject, sequence, data, 77);
    const auto given = decode_at_once(subject, sequence, data, 77, 300);
    std::string seen = behaviour(subject, sequence, data, 10);
    for (const auto x : given.out.values) seen += std::to_string(bits_of(x)) + " ";
    if (expected.empty()) expected = seen;
    CHECK((seen == expected));
  }
}

TEST_CASE("kv_cache: unused tokens of tiles and unused bytes of pages may hold anything",
          "[kv_cache][isolation]") {
  using policies = presets::paper;
  using cache = zipcache::kv_cache<half, policies>;
  const token_data<half> data(small_shape, 200, 102);
  cache subject(small_shape);
  const auto sequence = subject.create();
  prefill(subject, sequence, data, 77);  // 46 and 31 tokens: both classes have unused places
  decode(subject, sequence, data, 77, 90);
  const auto expected = decode(subject, subject.fork(sequence), data, 90, 200);
  const auto held = dequantize_layer(subject, sequence, 0);

  const auto& sealed = *subject.inspect(sequence, 0)->segments()[0];
  const int32_t dim = small_shape.head_dim;
  int64_t poisoned = 0;
  const auto poison = [&]<zipcache::token_class Class>() {
    using tile = zipcache::tile_record<policies, Class>;
    for (int32_t head = 0; head < small_shape.num_kv_heads; ++head) {
      sealed.for_each_tile<Class>(head, [&](zipcache::tile_place at, int32_t count) {
        auto* keys = reinterpret_cast<uint32_t*>(at.codes);
        auto* values = reinterpret_cast<uint32_t*>(at.codes + tile::value_codes_offset(dim));
        for (int32_t token = count; token < zipcache::tile_tokens; ++token) {
          for (int32_t channel = 0; channel < dim; ++channel) {
            tile::key_codes::save(keys, dim, token, channel, (1u << tile::key_bits) - 1);
            tile::value_codes::save(values, dim, token, channel, (1u << tile::value_bits) - 1);
          }
          zipcache_test::poison_token_pair<typename tile::value_granularity, half>(
              at.pairs + tile::value_pairs_offset(dim), token, 0, 0xffff);
          ++poisoned;
        }
      });
    }
  };
  poison.operator()<zipcache::token_class::salient>();
  poison.operator()<zipcache::token_class::regular>();
  REQUIRE(poisoned == 2 * (18 + 1));
  for (const zipcache::page_entry& entry : sealed.table) {
    using shape = zipcache::segment_shape<policies>;
    const int64_t used = entry.salient_tiles() * shape::salient_tile_bytes(dim) +
                         entry.regular_tiles() * shape::regular_tile_bytes(dim);
    std::memset(subject.pool().data(entry.page) + used, 0xff,
                static_cast<size_t>(subject.page_bytes() - used));
  }
  const auto after = dequantize_layer(subject, sequence, 0);
  CHECK(same_bits(after.k.values, held.k.values));
  CHECK(same_bits(after.v.values, held.v.values));
  CHECK((decode(subject, sequence, data, 90, 200) == expected));
}

TEST_CASE("kv_cache: caches in different threads do not disturb each other",
          "[kv_cache][isolation]") {
  using cache = zipcache::kv_cache<half, presets::paper>;
  const auto run = [](uint64_t seed, int32_t num_threads) {
    const token_data<half> data(small_shape, 340, seed);
    cache subject(small_shape, {.seed = seed}, {num_threads});
    const auto sequence = subject.create();
    prefill(subject, sequence, data, 160);
    decode_at_once(subject, sequence, data, 160, 330);
    return behaviour(subject, sequence, data, 10);
  };
  const std::string expected[] = {run(1, 1), run(2, 1), run(3, 1)};
  for (const int32_t num_threads : {1, 2, 3}) {
    std::string given[3];
    std::vector<std::thread> threads;
    for (uint64_t i = 0; i < 3; ++i)
      threads.emplace_back([&, i] { given[i] = run(i + 1, num_threads); });
    for (std::thread& thread : threads) thread.join();
    for (size_t i = 0; i < 3; ++i) CHECK((given[i] == expected[i]));
  }
}

TEST_CASE("kv_cache: calls that only look may run at the same time", "[kv_cache][isolation]") {
  using cache = zipcache::kv_cache<half, presets::paper>;
  const token_data<half> data(small_shape, 340, 103);
  cache built(small_shape);
  const auto sequence = built.create();
  prefill(built, sequence, data, 160);
  decode_at_once(built, sequence, data, 160, 330);
  const cache& subject = built;
  const auto look = [&] {
    return snapshot(subject, sequence) + std::to_string(subject.footprint().total_bytes()) +
           std::to_string(subject.footprint(sequence).ratio()) +
           std::to_string(subject.num_sequences());
  };
  const std::string expected = look();
  std::string given[3];
  std::vector<std::thread> threads;
  for (std::string& result : given) threads.emplace_back([&] { result = look(); });
  for (std::thread& thread : threads) thread.join();
  for (const std::string& result : given) CHECK((result == expected));
}

}  // namespace

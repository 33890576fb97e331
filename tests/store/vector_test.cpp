// Segments stored by every instruction set against those of the scalar loops, byte for byte.
#include <cstddef>
#include <cstring>
#include <limits>
#include <vector>

#include <zipcache/store/block_record.hpp>
#include <zipcache/store/store.hpp>

#include "support/axes.hpp"
#include "support/catch.hpp"
#include "support/every_cpu.hpp"
#include "support/sealed_tokens.hpp"

using namespace zipcache;
using zipcache_test::content;
using zipcache_test::token_shape;

namespace {

/// Pages and records.
template <class Segment>
std::vector<std::byte> bytes_of(const Segment& sealed, const page_pool& pool) {
  std::vector<std::byte> bytes = sealed.records;
  for (const page_entry& entry : sealed.table) {
    const std::byte* page = pool.data(entry.page);
    bytes.insert(bytes.end(), page, page + pool.page_bytes());
  }
  return bytes;
}

/// Calls `make` by the scalar loops and then by every instruction set: all give the same bytes.
template <class Make>
void check_same_bytes(Make&& make) {
  const detail::cpu_level before = detail::active_cpu().exchange(detail::cpu_level::scalar);
  const std::vector<std::byte> expected = make();
  detail::active_cpu() = before;
  zipcache_test::with_every_cpu([&] { CHECK((make() == expected)); });
}

template <class Policies, class Storage>
void check_contents(int32_t head_dim, int64_t num_tokens, int64_t num_salient) {
  for (const content what : zipcache_test::all_contents) {
    INFO(Policies::name() << ", " << head_dim << " channels, " << name_of(what));
    check_same_bytes([&] {
      const zipcache_test::sealed_tokens<Policies, Storage> tokens(
          {1, num_tokens, num_salient, head_dim, what, what}, 3);
      return bytes_of(*tokens.sealed, *tokens.pool);
    });
  }
}

/// Not what a cache lets in, but the scalar definition says what becomes of it.
template <class Policies, class Storage>
void check_not_finite(int32_t head_dim) {
  INFO(Policies::name() << ", " << head_dim << " channels, some not finite");
  constexpr int64_t num_tokens = 70, num_salient = 35;
  auto x = zipcache_test::make_values(content::gaussian, 1, num_tokens, head_dim, 4);
  const float infinity = std::numeric_limits<float>::infinity();
  const float special[] = {infinity, -infinity, std::numeric_limits<float>::quiet_NaN()};
  for (size_t i = 0; i < x.size(); i += 37) x[i] = special[i % 3];
  const auto values = zipcache_test::round_to<Storage>(x);
  const auto salient = zipcache_test::random_subset(num_tokens, num_salient, 5);
  check_same_bytes([&] {
    page_pool pool(int64_t{64} << 10, 1);
    const uint32_t page = pool.allocate();  // its unused bytes are compared as well
    std::memset(pool.data(page), 0, static_cast<size_t>(pool.page_bytes()));
    pool.release(page);
    const auto view = hnd<const Storage>(values.data(), 1, num_tokens, head_dim);
    const auto sealed =
        store<Policies, Storage, Storage>(cpu_backend{}, pool, view, view, salient, num_salient, 0);
    return bytes_of(*sealed, pool);
  });
}

}  // namespace

TEMPLATE_LIST_TEST_CASE("store: every instruction set writes the bytes of the scalar loops",
                        "[store][vector]", zipcache_test::axes::all_presets) {
  check_contents<TestType, half>(32, 65, 33);
  check_contents<TestType, half>(128, 97, 40);
  check_contents<TestType, bfloat16>(96, 40, 20);
  if constexpr (!block_record<TestType>::has_blocks) {
    check_not_finite<TestType, half>(64);
    check_not_finite<TestType, bfloat16>(96);
  }
}

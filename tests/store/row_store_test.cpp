#include <vector>

#include <zipcache/store/row_store.hpp>

#include "support/catch.hpp"
#include "support/generators.hpp"

using namespace zipcache;

namespace {

constexpr int32_t num_heads = 2;
constexpr int32_t head_dim = 16;
constexpr int64_t rows_in_page = 4;
constexpr int64_t page_bytes = rows_in_page * 4 * head_dim + 16;  // and an unused rest

/// The value of a channel of a token's key (side 0) or value (side 1), exact in half.
float value_of(int64_t token, int32_t head, int32_t channel, int side) {
  return static_cast<float>((token * 4 + head * 2 + side) % 128 * 16 + channel);
}

void push_tokens(row_store<half>& rows, int64_t first, int64_t count) {
  std::vector<float> k, v;
  for (int32_t head = 0; head < num_heads; ++head) {
    for (int64_t token = first; token < first + count; ++token) {
      for (int32_t channel = 0; channel < head_dim; ++channel) {
        k.push_back(value_of(token, head, channel, 0));
        v.push_back(value_of(token, head, channel, 1));
      }
    }
  }
  rows.reserve(count);
  rows.push(hnd<const float>(k.data(), num_heads, count, head_dim),
            hnd<const float>(v.data(), num_heads, count, head_dim));
}

/// The rows are the tokens [first, first + count).
void check_tokens(const row_store<half>& rows, int64_t first, int64_t count) {
  REQUIRE(rows.size() == count);
  for (int64_t token = 0; token < count; ++token) {
    for (int32_t head = 0; head < num_heads; ++head) {
      for (int32_t channel = 0; channel < head_dim; ++channel) {
        REQUIRE(to_float(rows.key_row(head, token)[channel]) ==
                value_of(first + token, head, channel, 0));
        REQUIRE(to_float(rows.value_row(head, token)[channel]) ==
                value_of(first + token, head, channel, 1));
      }
    }
  }
}

}  // namespace

TEST_CASE("store: rows come out as they went in, over page borders", "[store][row_store]") {
  page_pool pool(page_bytes, 0);
  for (int64_t count = 0; count < 14; ++count) {
    row_store<half> rows(pool, num_heads, head_dim);
    push_tokens(rows, 0, count);
    check_tokens(rows, 0, count);
    CHECK(rows.num_pages() == num_heads * ((count + rows_in_page - 1) / rows_in_page));
  }
  CHECK(pool.num_used() == 0);
}

TEST_CASE("store: a queue of rows keeps the right ones whatever is dropped and pushed",
          "[store][row_store]") {
  page_pool pool(page_bytes, 0);
  zipcache_test::random_numbers random(5);
  for (int round = 0; round < 20; ++round) {
    row_store<half> rows(pool, num_heads, head_dim);
    int64_t first = 0, end = 0;
    for (int step = 0; step < 40; ++step) {
      const int64_t size = end - first;
      switch (random.below(4)) {
        case 0: {
          const int64_t count = random.below(size + 1);
          rows.drop_front(count);
          first += count;
          break;
        }
        case 1: {
          const int64_t count = random.below(size + 1);
          rows.drop_back(count);
          end -= count;
          break;
        }
        case 2: {
          const row_store<half> copy = rows.clone();
          check_tokens(copy, first, size);
          break;
        }
        default: {
          const int64_t count = random.below(7);
          push_tokens(rows, end, count);
          end += count;
        }
      }
      check_tokens(rows, first, end - first);
      rows.release_unused();
      check_tokens(rows, first, end - first);
      // No more than one partly used page at each end.
      REQUIRE(rows.num_pages() <=
              num_heads * ((end - first + rows_in_page - 2) / rows_in_page + 1));
      if (end == first) REQUIRE(rows.num_pages() == 0);
      REQUIRE(pool.num_used() == rows.num_pages());
    }
  }
  CHECK(pool.num_used() == 0);
}

TEST_CASE("store: a reservation that fails takes nothing", "[store][row_store]") {
  page_pool pool(page_bytes, 5);
  row_store<half> rows(pool, num_heads, head_dim);
  push_tokens(rows, 0, 4);
  CHECK_THROWS_AS(rows.reserve(9), capacity_error);  // three more pages a head are too many
  CHECK(pool.num_used() == 2);
  check_tokens(rows, 0, 4);
  push_tokens(rows, 4, 3);
  check_tokens(rows, 0, 7);
}

TEST_CASE("store: pages that dropped tokens leave are used by the tokens to come",
          "[store][row_store]") {
  page_pool pool(page_bytes, 2 * 3);
  row_store<half> rows(pool, num_heads, head_dim);
  push_tokens(rows, 0, 10);
  // Six more tokens need a fourth page each, unless the first eight leave two.
  CHECK_THROWS_AS(rows.reserve(6), capacity_error);
  rows.reserve(6, 8);
  check_tokens(rows, 0, 10);
  rows.drop_front(8);
  check_tokens(rows, 8, 2);
  push_tokens(rows, 10, 6);
  check_tokens(rows, 8, 8);
  CHECK(pool.num_used() == 6);
}

TEST_CASE("store: pages that were reserved and not used go back", "[store][row_store]") {
  page_pool pool(page_bytes, 0);
  row_store<half> rows(pool, num_heads, head_dim);
  push_tokens(rows, 0, 3);
  rows.reserve(20);
  CHECK(pool.num_used() == 2 * 6);
  rows.release_unused();
  CHECK(pool.num_used() == 2);
  check_tokens(rows, 0, 3);
}

TEST_CASE("store: a clone has pages of its own", "[store][row_store]") {
  page_pool pool(page_bytes, 0);
  row_store<half> rows(pool, num_heads, head_dim);
  push_tokens(rows, 0, 6);
  rows.drop_front(3);
  row_store<half> copy = rows.clone();
  push_tokens(copy, 100, 2);
  push_tokens(rows, 6, 2);
  check_tokens(rows, 3, 5);
  copy.drop_back(2);
  check_tokens(copy, 3, 3);
}

TEST_CASE("store: floats are rounded to the nearest 16-bit number", "[store][row_store]") {
  page_pool pool(page_bytes, 0);
  row_store<bfloat16> rows(pool, 1, head_dim);
  std::vector<float> k(head_dim, 1.00390625f), v(head_dim, 1.01171875f);  // ties: to even
  rows.reserve(1);
  rows.push(hnd<const float>(k.data(), 1, 1, head_dim), hnd<const float>(v.data(), 1, 1, head_dim));
  CHECK(to_float(rows.key_row(0, 0)[0]) == 1.0f);
  CHECK(to_float(rows.value_row(0, 0)[0]) == 1.015625f);
}

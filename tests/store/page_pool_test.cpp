#include <cstring>
#include <set>
#include <utility>
#include <vector>

#include <zipcache/store/page_pool.hpp>

#include "support/catch.hpp"

using namespace zipcache;

TEST_CASE("store: pages are distinct, aligned memory of their own", "[store][page_pool]") {
  page_pool pool(1040, 0);
  std::vector<uint32_t> pages;
  for (int i = 0; i < 50; ++i) {
    pages.push_back(pool.allocate());
    std::memset(pool.data(pages.back()), i, 1040);
  }
  for (size_t i = 0; i < pages.size(); ++i) {
    const std::byte* bytes = pool.data(pages[i]);
    for (int64_t j = 0; j < 1040; ++j) REQUIRE(bytes[j] == static_cast<std::byte>(i));
  }
  CHECK(std::set<uint32_t>(pages.begin(), pages.end()).size() == 50);
  CHECK(reinterpret_cast<uintptr_t>(pool.data(pages[0])) % 128 == 0);
  CHECK(pool.num_used() == 50);
  CHECK(pool.reserved_bytes() >= 50 * 1040);
}

TEST_CASE("store: a released page is used again, and its address stays", "[store][page_pool]") {
  page_pool pool(256, 0);
  std::vector<uint32_t> pages;
  std::vector<const std::byte*> addresses;
  for (int i = 0; i < 40; ++i) {
    pages.push_back(pool.allocate());
    addresses.push_back(pool.data(pages.back()));
  }
  const int64_t reserved = pool.reserved_bytes();
  for (const uint32_t page : pages) pool.release(page);
  CHECK(pool.num_used() == 0);
  std::set<uint32_t> again;
  for (int i = 0; i < 40; ++i) again.insert(pool.allocate());
  CHECK(again == std::set<uint32_t>(pages.begin(), pages.end()));
  CHECK(pool.reserved_bytes() == reserved);
  for (size_t i = 0; i < pages.size(); ++i) CHECK(pool.data(pages[i]) == addresses[i]);
}

TEST_CASE("store: a pool at its capacity refuses, and gives again after a release",
          "[store][page_pool]") {
  page_pool pool(256, 3);
  CHECK(pool.num_available() == 3);
  const uint32_t page = pool.allocate();
  pool.allocate();
  pool.allocate();
  CHECK(pool.num_available() == 0);
  CHECK_THROWS_AS(pool.allocate(), capacity_error);
  CHECK_THROWS_WITH(pool.allocate(),
                    "zipcache: all 3 pages of the pool are in use; raise cache_options::max_pages "
                    "or release sequences");
  CHECK(pool.num_used() == 3);
  pool.release(page);
  CHECK(pool.allocate() == page);
}

TEST_CASE("store: a list gives its pages back with its owner", "[store][page_pool]") {
  page_pool pool(256, 0);
  {
    page_list list(pool);
    for (int i = 0; i < 5; ++i) list.grow();
    CHECK(list.size() == 5);
    CHECK(pool.num_used() == 5);
    const uint32_t first = list[0];
    const uint32_t third = list[2];
    list.rotate(2);
    CHECK(list[0] == third);
    CHECK(list[3] == first);
    list.shrink_to(3);
    CHECK(list.size() == 3);
    CHECK(pool.num_used() == 3);
    list.shrink_to(7);
    CHECK(list.size() == 3);
  }
  CHECK(pool.num_used() == 0);
}

TEST_CASE("store: moved-from lists own nothing, and no page goes back twice",
          "[store][page_pool]") {
  page_pool pool(256, 0);
  {
    page_list a(pool);
    a.grow();
    a.grow();
    page_list b(std::move(a));
    CHECK(b.size() == 2);
    CHECK(a.size() == 0);  // NOLINT: what a moved-from list holds is the claim
    page_list c(pool);
    c.grow();
    c = std::move(b);
    CHECK(c.size() == 2);
    page_list nothing;
    CHECK(nothing.size() == 0);
    nothing = std::move(c);
    CHECK(nothing.size() == 2);
    a.grow();  // a list that was moved from may grow again
    CHECK(a.size() == 1);
  }
  CHECK(pool.num_used() == 0);
}

TEST_CASE("store: a list that cannot grow stays as it was", "[store][page_pool]") {
  page_pool pool(256, 2);
  page_list list(pool);
  list.grow();
  list.grow();
  CHECK_THROWS_AS(list.grow(), capacity_error);
  CHECK(list.size() == 2);
  CHECK(pool.num_used() == 2);
}

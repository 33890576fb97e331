// The plan that spreads tiles over pages, for many shapes.
#include <algorithm>

#include <zipcache/store/page.hpp>

#include "support/catch.hpp"
#include "support/generators.hpp"

using namespace zipcache;

namespace {

/// Fewest pages of any plan: tiles of two sizes in bins of one, packed by trying every even spread
/// is what the library does; this is the lower bound by bytes.
int64_t pages_by_bytes(int64_t page, int64_t a, int64_t b, int64_t num_a, int64_t num_b) {
  return (a * num_a + b * num_b + page - 1) / page;
}

/// Whether `pages` pages hold all tiles when salient ones are spread evenly, said without the
/// plan's own functions.
bool even_spread_fits(int64_t pages, int64_t page, int64_t a, int64_t b, int64_t num_a,
                      int64_t num_b) {
  int64_t room = 0;
  for (int64_t i = 0; i < pages; ++i) {
    const int64_t here = num_a * (i + 1) / pages - num_a * i / pages;
    if (here * a > page) return false;
    if (b > 0) room += (page - here * a) / b;
  }
  return room >= num_b;
}

void check_plan(int64_t page, int64_t a, int64_t b, int64_t num_a, int64_t num_b) {
  INFO("pages of " << page << ", " << num_a << " tiles of " << a << ", " << num_b << " of " << b);
  const page_plan plan = page_plan::make(page, a, b, num_a, num_b);
  const int64_t real_a = a > 0 ? num_a : 0;
  const int64_t real_b = b > 0 ? num_b : 0;
  int64_t placed_a = 0;
  int64_t left_b = plan.regular_tiles;
  for (int64_t i = 0; i < plan.num_pages; ++i) {
    const int64_t here_a = plan.salient_before(i + 1) - plan.salient_before(i);
    const int64_t here_b = std::min(plan.regular_room(i), left_b);
    REQUIRE(here_a >= 0);
    REQUIRE(here_b >= 0);
    REQUIRE(here_a * a + here_b * b <= page);
    REQUIRE(here_a + here_b > 0);  // no stray page
    REQUIRE(plan.salient_before(i) == placed_a);
    placed_a += here_a;
    left_b -= here_b;
  }
  REQUIRE(placed_a == real_a);
  REQUIRE(plan.regular_tiles == real_b);
  REQUIRE(left_b == 0);
  REQUIRE(plan.num_pages >= pages_by_bytes(page, a, b, real_a, real_b));
  // Fewer pages would not do.
  for (int64_t fewer = 1; fewer < plan.num_pages; ++fewer)
    REQUIRE_FALSE(even_spread_fits(fewer, page, a, b, real_a, real_b));
}

}  // namespace

TEST_CASE("store: a plan places every tile once, fits, and has the fewest pages", "[store][page]") {
  zipcache_test::random_numbers random(1);
  for (int round = 0; round < 3000; ++round) {
    const int64_t a = random.below(8) == 0 ? 0 : 16 * (1 + random.below(300));
    const int64_t b = random.below(8) == 0 ? 0 : 16 * (1 + random.below(300));
    const int64_t page = std::max<int64_t>({a, b, 16}) + 16 * random.below(700);
    check_plan(page, a, b, random.below(60), random.below(60));
  }
}

TEST_CASE("store: a plan of nothing has no pages", "[store][page]") {
  CHECK(page_plan::make(4096, 128, 64, 0, 0).num_pages == 0);
  CHECK(page_plan::make(4096, 0, 64, 10, 0).num_pages == 0);
  CHECK(page_plan::make(4096, 0, 0, 10, 10).num_pages == 0);
}

TEST_CASE("store: pages of one tile hold one tile each", "[store][page]") {
  check_plan(4096, 4096, 4096, 3, 5);
  CHECK(page_plan::make(4096, 4096, 4096, 3, 5).num_pages == 8);
  check_plan(4096, 4096, 16, 1, 1);
  CHECK(page_plan::make(4096, 4096, 16, 1, 1).num_pages == 2);
}

TEST_CASE("store: an interval of 160 tokens under the paper's policies is two pages a head",
          "[store][page]") {
  const page_plan plan = page_plan::make(8336, 4144, 2096, 3, 2);
  CHECK(plan.num_pages == 2);
  CHECK(4144 + 2 * 2096 == 8336);  // beside it two of 4144: 48 bytes of the two pages are unused
  CHECK(page_plan::make(8336 - 16, 4144, 2096, 3, 2).num_pages == 3);
  CHECK(page_plan::make(3 * 4144 + 2 * 2096, 4144, 2096, 3, 2).num_pages == 1);
}

// Part of the format: any other even spread would fit as well.
TEST_CASE("store: page p begins with salient tile p * tiles / pages, rounded down",
          "[store][page]") {
  // Three tiles of 4224 and five of 2176 in pages of 13000: two pages, with one and two of the
  // three.
  const page_plan plan = page_plan::make(13000, 4224, 2176, 3, 5);
  CHECK(plan.num_pages == 2);
  CHECK(plan.salient_before(1) == 1);
  CHECK(plan.salient_before(2) == 3);
  CHECK(plan.regular_room(0) == 4);
  CHECK(plan.regular_room(1) == 2);
}

TEST_CASE("store: large plans stay exact", "[store][page]") {
  // A million tokens: 18750 and 12500 tiles.
  check_plan(17024, 4224, 2176, 18750, 12500);
}

TEST_CASE("store: the entries deal every token to a page, full tiles first", "[store][page]") {
  zipcache_test::random_numbers random(2);
  for (int round = 0; round < 1000; ++round) {
    const int64_t a = 16 * random.below(20), b = 16 * random.below(20);
    const int64_t page = std::max<int64_t>({a, b, 16}) + 16 * random.below(200);
    const int64_t salient = random.below(2000), regular = random.below(2000);
    const page_plan plan =
        page_plan::make(page, a, b, ceil_div<int64_t>(salient, 32), ceil_div<int64_t>(regular, 32));
    int64_t salient_seen = 0, regular_seen = 0;
    for (int64_t i = 0; i < plan.num_pages; ++i) {
      const page_entry entry = plan.entry(i, static_cast<uint32_t>(100 + i), salient, regular);
      REQUIRE(entry.page == 100 + i);
      REQUIRE(entry.salient_tiles() * a + entry.regular_tiles() * b <= page);
      salient_seen += entry.salient_tokens;
      regular_seen += entry.regular_tokens;
      // Only the last tile of a class is not full.
      REQUIRE((entry.salient_tokens % 32 == 0 || salient_seen == salient));
      REQUIRE((entry.regular_tokens % 32 == 0 || regular_seen == regular));
    }
    REQUIRE(salient_seen == (a > 0 ? salient : 0));
    REQUIRE(regular_seen == (b > 0 ? regular : 0));
  }
}

TEST_CASE("store: a page's tiles fill it without gaps, codes in front of pairs", "[store][page]") {
  const page_layout layout{{4096, 48}, {2048, 32}};
  const page_entry entry{0, 33, 70};  // two salient and three regular tiles
  std::byte page[5 * (4096 + 48)];
  const auto codes_at = [&](tile_place place) { return place.codes - page; };
  const auto pairs_at = [&](tile_place place) { return place.pairs - page; };
  for (int64_t i = 0; i < 2; ++i) {
    const tile_place place = layout.place<token_class::salient>(page, entry, i);
    CHECK(codes_at(place) == i * 4096);
    CHECK(pairs_at(place) == 2 * 4096 + 3 * 2048 + i * 48);
  }
  for (int64_t i = 0; i < 3; ++i) {
    const tile_place place = layout.place<token_class::regular>(page, entry, i);
    CHECK(codes_at(place) == 2 * 4096 + i * 2048);
    CHECK(pairs_at(place) == 2 * 4096 + 3 * 2048 + 2 * 48 + i * 32);
  }
  CHECK(layout.size(entry).bytes() == 2 * 4144 + 3 * 2080);
}

TEST_CASE("store: the planes of a page hold every mix of tiles that fits it", "[store][page]") {
  zipcache_test::random_numbers random(3);
  for (int round = 0; round < 1000; ++round) {
    const page_layout layout{{128 * random.below(40), 16 * random.below(20)},
                             {128 * random.below(40), 16 * random.below(20)}};
    const int64_t a = layout.salient.bytes(), b = layout.regular.bytes();
    const int64_t page = std::max<int64_t>({a, b, 16}) + 16 * random.below(700);
    const tile_size planes = layout.planes(page);
    REQUIRE(planes.codes % 128 == 0);
    REQUIRE(planes.pairs % 16 == 0);
    for (int64_t s = 0; s * a <= page && s < 2000; ++s) {
      for (int64_t r = 0; s * a + r * b <= page && r < 2000; ++r) {
        REQUIRE(s * layout.salient.codes + r * layout.regular.codes <= planes.codes);
        REQUIRE(s * layout.salient.pairs + r * layout.regular.pairs <= planes.pairs);
        if (b == 0) break;
      }
      if (a == 0) break;
    }
  }
}

TEST_CASE("store: a page of rows holds a key and a value of each token", "[store][page]") {
  CHECK(rows_per_page(17024, 128) == 33);
  CHECK(rows_per_page(512, 128) == 1);
}

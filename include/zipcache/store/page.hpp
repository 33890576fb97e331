// Pages: fixed bytes, whatever is in them. A page of codes belongs to one segment and one KV head
// and holds some tiles of the salient class, then some of the regular class:
//   [salient tiles][regular tiles][unused, or blocks: block_record.hpp]
// Both classes share every page, in about the same mix, for two reasons: a last page that is partly
// empty is paid once for a head instead of once for each class, and every page costs attention the
// same time. With the paper's ratio and an interval of 160 tokens, two 4-bit tiles are a page, or
// one and two 2-bit tiles (8336 bytes at head_dim 128), so a flush fills two pages of each head. A
// page of rows (the window, sinks) holds R = page_bytes / (4 * head_dim) tokens of one KV head in
// 16 bits:
//   [keys, R x head_dim][values, R x head_dim][unused]
#pragma once

#include <cstdint>

#include <zipcache/config.hpp>
#include <zipcache/core/numerics.hpp>
#include <zipcache/store/layout.hpp>

namespace zipcache {

/// One entry of a head's page table (8 bytes): which page, and how many tokens of each class are in
/// it. All tiles but a class's last one are full, so the tokens also give the tiles.
struct page_entry {
  uint32_t page;
  uint16_t salient_tokens;
  uint16_t regular_tokens;

  ZIPCACHE_HOST_DEVICE constexpr int32_t salient_tiles() const {
    return ceil_div<int32_t>(salient_tokens, tile_tokens);
  }
  ZIPCACHE_HOST_DEVICE constexpr int32_t regular_tiles() const {
    return ceil_div<int32_t>(regular_tokens, tile_tokens);
  }
};
static_assert(sizeof(page_entry) == 8, "zipcache: a page table entry is eight bytes");

/// How the tiles of one head of a segment are spread over its pages. Pure arithmetic: both backends
/// and every reader compute the same plan from the same numbers.
struct page_plan {
  int64_t page_bytes;
  int64_t salient_tile_bytes;
  int64_t regular_tile_bytes;
  int64_t salient_tiles;
  int64_t regular_tiles;
  int64_t num_pages = 0;

  /// Salient tiles before page `page`: an even spread.
  ZIPCACHE_HOST_DEVICE constexpr int64_t salient_before(int64_t page) const {
    return page * salient_tiles / num_pages;
  }

  /// Regular tiles that fit beside `salient` salient ones in a page.
  ZIPCACHE_HOST_DEVICE constexpr int64_t room_beside(int64_t salient) const {
    const int64_t left = page_bytes - salient * salient_tile_bytes;
    return left < 0 ? -1 : (regular_tile_bytes > 0 ? left / regular_tile_bytes : 0);
  }
  ZIPCACHE_HOST_DEVICE constexpr int64_t regular_room(int64_t page) const {
    return room_beside(salient_before(page + 1) - salient_before(page));
  }

  /// Room for regular tiles in the pages before `page`. A page has either the least number of
  /// salient tiles or one more, so the sum of regular_room needs no loop.
  ZIPCACHE_HOST_DEVICE constexpr int64_t regular_before(int64_t page) const {
    const int64_t fewest = salient_tiles / num_pages;
    const int64_t fuller_pages = salient_before(page) - page * fewest;
    const int64_t fewer = (page - fuller_pages) * room_beside(fewest);
    return fuller_pages > 0 ? fewer + fuller_pages * room_beside(fewest + 1) : fewer;
  }

  /// The entry of page `index`, which is `page` of the pool, when the classes have so many tokens.
  ZIPCACHE_HOST_DEVICE constexpr page_entry entry(int64_t index, uint32_t page, int64_t num_salient,
                                                  int64_t num_regular) const {
    const int64_t salient_room = salient_before(index + 1) - salient_before(index);
    const int64_t salient_left =
        salient_tile_bytes > 0 ? num_salient - salient_before(index) * tile_tokens : 0;
    const int64_t regular_left =
        regular_tile_bytes > 0 ? num_regular - regular_before(index) * tile_tokens : 0;
    const int64_t zero = 0;
    return {
        page, static_cast<uint16_t>(most(zero, least(salient_left, salient_room * tile_tokens))),
        static_cast<uint16_t>(most(zero, least(regular_left, regular_room(index) * tile_tokens)))};
  }

  /// The plan with the fewest pages that hold all tiles. Every tile must fit into a page by itself.
  ZIPCACHE_HOST_DEVICE static constexpr page_plan make(int64_t page_bytes,
                                                       int64_t salient_tile_bytes,
                                                       int64_t regular_tile_bytes,
                                                       int64_t salient_tiles,
                                                       int64_t regular_tiles) {
    page_plan plan{page_bytes, salient_tile_bytes, regular_tile_bytes,
                   salient_tile_bytes > 0 ? salient_tiles : 0,
                   regular_tile_bytes > 0 ? regular_tiles : 0};
    const int64_t total =
        plan.salient_tiles * salient_tile_bytes + plan.regular_tiles * regular_tile_bytes;
    for (plan.num_pages = ceil_div(total, page_bytes); plan.num_pages > 0; ++plan.num_pages) {
      int64_t room = 0;
      bool fits = true;
      for (int64_t page = 0; page < plan.num_pages && fits; ++page) {
        const int64_t here = plan.regular_room(page);
        fits = here >= 0;
        room += here;
      }
      if (fits && room >= plan.regular_tiles) break;
    }
    return plan;
  }
};

/// 16-bit tokens in a page of rows.
ZIPCACHE_HOST_DEVICE constexpr int64_t rows_per_page(int64_t page_bytes, int32_t head_dim) {
  return page_bytes / (int64_t{4} * head_dim);
}

}  // namespace zipcache

// Pages: fixed bytes, whatever is in them. A page of codes belongs to one segment and one KV head
// and holds some tiles of the salient class, then some of the regular class:
//   [salient tiles][regular tiles][unused]
// Both classes share every page, in about the same mix, for two reasons: a last page that is partly
// empty is paid once for a head instead of once for each class, and every page costs attention the
// same time. With the paper's ratio and an interval of 160 tokens, three 4-bit and two 2-bit tiles
// are a page (17024 bytes at head_dim 128), so a flush fills exactly one page of each head. A page
// of rows (the window, sinks) holds R = page_bytes / (4 * head_dim) tokens of one KV head in 16
// bits:
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

  /// Regular tiles that fit into what the salient ones leave of page `page`.
  ZIPCACHE_HOST_DEVICE constexpr int64_t regular_room(int64_t page) const {
    const int64_t left =
        page_bytes - (salient_before(page + 1) - salient_before(page)) * salient_tile_bytes;
    return left < 0 ? -1 : (regular_tile_bytes > 0 ? left / regular_tile_bytes : 0);
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

/// Walks over the pages of one head in order and says how many tokens of each class go into each.
class page_cursor {
 public:
  ZIPCACHE_HOST_DEVICE constexpr page_cursor(const page_plan& plan, int64_t num_salient,
                                             int64_t num_regular)
      : plan_(plan),
        salient_left_(plan.salient_tile_bytes > 0 ? num_salient : 0),
        regular_left_(plan.regular_tile_bytes > 0 ? num_regular : 0) {}

  /// The entry of the next page, which is `page` of the pool.
  ZIPCACHE_HOST_DEVICE constexpr page_entry next(uint32_t page) {
    const int64_t salient_room = plan_.salient_before(index_ + 1) - plan_.salient_before(index_);
    const int64_t salient = least(salient_left_, salient_room * tile_tokens);
    const int64_t regular = least(regular_left_, plan_.regular_room(index_) * tile_tokens);
    salient_left_ -= salient;
    regular_left_ -= regular;
    ++index_;
    return {page, static_cast<uint16_t>(salient), static_cast<uint16_t>(regular)};
  }

 private:
  page_plan plan_;
  int64_t salient_left_;
  int64_t regular_left_;
  int64_t index_ = 0;
};

/// 16-bit tokens in a page of rows.
ZIPCACHE_HOST_DEVICE constexpr int64_t rows_per_page(int64_t page_bytes, int32_t head_dim) {
  return page_bytes / (int64_t{4} * head_dim);
}

}  // namespace zipcache

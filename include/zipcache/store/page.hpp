// Pages: fixed bytes, whatever is in them. A page of codes belongs to one segment and one KV head
// and holds some tiles of the salient class, then some of the regular class:
//   [codes of salient tiles][codes of regular tiles]
//   [pairs of salient tiles][pairs of regular tiles][unused, or blocks: block_record.hpp]
// Codes come first because theirs are multiples of 128 bytes: on CUDA the codes of all pages are
// one plane of the pool and the pairs another, so that each tile's codes are aligned to 128 bytes,
// which the bulk copies of attention need to be fast. In a page with s salient and r regular tiles
// of SC + SP and RC + RP bytes (codes + pairs):
//   codes of salient tile i   i * SC               pairs of salient tile i   P0 + i * SP
//   codes of regular tile j   s * SC + j * RC      pairs of regular tile j   P0 + s * SP + j * RP
// with P0 = s * SC + r * RC in a whole page and P0 = 0 in the plane of pairs. Both classes share
// every page, in about the same mix, for two reasons: a last page that is partly empty is paid once
// for a head instead of once for each class, and every page costs attention the same time. With the
// paper's ratio and an interval of 160 tokens, two 4-bit tiles are a page, or one and two 2-bit
// tiles (8336 bytes at head_dim 128), so a flush fills two pages of each head. A page of rows (the
// window, sinks) holds R = page_bytes / (4 * head_dim) tokens of one KV head in 16 bits:
//   [keys, R x head_dim][values, R x head_dim][unused]
#pragma once

#include <cstddef>
#include <cstdint>

#include <zipcache/config.hpp>
#include <zipcache/core/numerics.hpp>
#include <zipcache/policy/policies.hpp>
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

/// Where a tile lies: its codes (keys, then values) and its pairs (those of keys, then of values).
struct tile_place {
  std::byte* codes;
  std::byte* pairs;
};

/// Bytes of a tile, or of all tiles of a page.
struct tile_size {
  int64_t codes;
  int64_t pairs;

  ZIPCACHE_HOST_DEVICE constexpr int64_t bytes() const { return codes + pairs; }
};

/// The place so many bytes further.
ZIPCACHE_HOST_DEVICE inline tile_place operator+(tile_place place, tile_size skipped) {
  return {place.codes + skipped.codes, place.pairs + skipped.pairs};
}

/// Where the tiles of a page lie: the only definition, for both backends.
struct page_layout {
  tile_size salient;
  tile_size regular;

  /// Codes and pairs in front of tile `index` of a class, each counted from the page's first ones.
  template <token_class Class>
  ZIPCACHE_HOST_DEVICE constexpr tile_size before(int64_t salient_tiles, int64_t index) const {
    if constexpr (Class == token_class::salient) {
      return {index * salient.codes, index * salient.pairs};
    } else {
      return {salient_tiles * salient.codes + index * regular.codes,
              salient_tiles * salient.pairs + index * regular.pairs};
    }
  }
  /// All tiles of a page.
  ZIPCACHE_HOST_DEVICE constexpr tile_size size(const page_entry& entry) const {
    return before<token_class::regular>(entry.salient_tiles(), entry.regular_tiles());
  }
  /// Tile `index` of a class in a page that is one block of bytes.
  template <token_class Class>
  tile_place place(std::byte* page, const page_entry& entry, int64_t index) const {
    return tile_place{page, page + size(entry).codes} + before<Class>(entry.salient_tiles(), index);
  }

  /// Bytes of a page in the two planes: the most that any mix of tiles has which fits `page_bytes`.
  constexpr tile_size planes(int64_t page_bytes) const {
    tile_size largest{0, 0};
    for (int64_t s = 0; s == 0 || (salient.bytes() > 0 && s * salient.bytes() <= page_bytes); ++s) {
      const int64_t r =
          regular.bytes() > 0 ? (page_bytes - s * salient.bytes()) / regular.bytes() : 0;
      const tile_size mix = before<token_class::regular>(s, r);
      largest = {most(largest.codes, mix.codes), most(largest.pairs, mix.pairs)};
    }
    return {round_up<int64_t>(largest.codes, 128), round_up<int64_t>(largest.pairs, 16)};
  }
};

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

// A segment: tokens that were quantized together. It owns its pages, is immutable once sealed, and
// is shared by the forks of a sequence.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include <zipcache/policy/policies.hpp>
#include <zipcache/store/block_record.hpp>
#include <zipcache/store/page.hpp>
#include <zipcache/store/page_pool.hpp>
#include <zipcache/store/tile.hpp>

namespace zipcache {

/// Sizes that follow from a segment's token counts. The counts are equal for all heads.
template <class Policies>
struct segment_shape {
  int32_t num_kv_heads = 0;
  int32_t head_dim = 0;
  int64_t num_tokens = 0;
  int64_t num_salient = 0;
  segment_origin origin = segment_origin::prompt;

  ZIPCACHE_HOST_DEVICE static constexpr int64_t salient_tile_bytes(int32_t head_dim) {
    return tile_record<Policies, token_class::salient>::bytes(head_dim);
  }
  ZIPCACHE_HOST_DEVICE static constexpr int64_t regular_tile_bytes(int32_t head_dim) {
    return tile_record<Policies, token_class::regular>::bytes(head_dim);
  }

  template <token_class Class>
  int64_t class_tokens() const {
    return Class == token_class::salient ? num_salient : num_tokens - num_salient;
  }
  ZIPCACHE_HOST_DEVICE page_plan plan(int64_t page_bytes) const {
    return page_plan::make(page_bytes, salient_tile_bytes(head_dim), regular_tile_bytes(head_dim),
                           ceil_div<int64_t>(num_salient, tile_tokens),
                           ceil_div<int64_t>(num_tokens - num_salient, tile_tokens));
  }
  block_shape block() const { return {num_tokens, head_dim, origin}; }
  /// The entry of page `index` of a head, which is `page` of the pool.
  page_entry entry(const page_plan& tiles, int64_t index, uint32_t page) const {
    if (index >= tiles.num_pages) return {page, 0, 0};
    return tiles.entry(index, page, num_salient, num_tokens - num_salient);
  }
  /// Pages of tiles, and those that blocks need beyond what tiles leave free.
  int64_t pages_per_head(int64_t page_bytes) const {
    const page_plan tiles = plan(page_bytes);
    const int64_t blocks = block_record<Policies>::bytes(block());
    if (blocks == 0) return tiles.num_pages;
    const int64_t taken = tiles.salient_tiles * tiles.salient_tile_bytes +
                          tiles.regular_tiles * tiles.regular_tile_bytes;
    return most(tiles.num_pages, ceil_div(taken + blocks, page_bytes));
  }
  /// Bytes of a page that tiles take.
  int64_t tile_bytes(const page_entry& entry) const {
    return page_layout_of<Policies>(head_dim).size(entry).bytes();
  }
  int64_t num_pages(int64_t page_bytes) const { return num_kv_heads * pages_per_head(page_bytes); }
  /// 32-bit words of the bitmap that says which tokens of one head are salient (bit token % 32 of
  /// word token / 32).
  int64_t bitmap_words() const { return ceil_div<int64_t>(num_tokens, 32); }
};

/// @brief One sealed segment of one layer of one sequence, on the CPU.
template <class Policies>
struct segment {
  segment_shape<Policies> shape;
  int64_t first_position = 0;  ///< position of its first token; sinks may lie between its tokens
  const page_pool* pool = nullptr;
  page_list pages;  ///< owns what the table names
  int64_t pages_per_head = 0;
  std::vector<page_entry> table;         ///< [num_kv_heads, pages_per_head]
  std::vector<std::byte> records;        ///< [num_kv_heads, segment_record::bytes]
  std::vector<uint32_t> salient_bitmap;  ///< [num_kv_heads, bitmap_words]

  std::byte* record(int32_t head) {
    return records.data() + head * segment_record<Policies>::bytes(shape.head_dim);
  }
  const std::byte* record(int32_t head) const {
    return records.data() + head * segment_record<Policies>::bytes(shape.head_dim);
  }

  bool is_salient(int32_t head, int64_t token) const {
    return (salient_bitmap[static_cast<size_t>(head * shape.bitmap_words() + token / 32)] >>
                (token % 32) &
            1u) != 0;
  }

  /// Calls visit(bytes, count) for the pieces of one head's blocks, in order.
  template <class Visit>
  void for_each_block_piece(int32_t head, Visit&& visit) const {
    int64_t left = block_record<Policies>::bytes(shape.block());
    for (int64_t page = 0; left > 0; ++page) {
      const page_entry entry = table[static_cast<size_t>(head * pages_per_head + page)];
      const int64_t offset = shape.tile_bytes(entry);
      const int64_t count = least(left, pool->page_bytes() - offset);
      visit(pool->data(entry.page) + offset, count);
      left -= count;
    }
  }

  /// Calls visit(tile_place, number of tokens in it) for the tiles of one class of one head, in
  /// token order.
  template <token_class Class, class Visit>
  void for_each_tile(int32_t head, Visit&& visit) const {
    constexpr bool is_salient_class = Class == token_class::salient;
    if (tile_record<Policies, Class>::bytes(shape.head_dim) == 0) return;
    const page_layout layout = page_layout_of<Policies>(shape.head_dim);
    for (int64_t page = 0; page < pages_per_head; ++page) {
      const page_entry entry = table[static_cast<size_t>(head * pages_per_head + page)];
      std::byte* const bytes = pool->data(entry.page);
      const int32_t tokens = is_salient_class ? entry.salient_tokens : entry.regular_tokens;
      for (int32_t first = 0; first < tokens; first += tile_tokens) {
        visit(layout.place<Class>(bytes, entry, first / tile_tokens),
              least(tile_tokens, tokens - first));
      }
    }
  }
};

}  // namespace zipcache

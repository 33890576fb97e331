// Everything that one layer of one sequence is made of, in host memory: how a sequence moves from
// one cache to another (store/transfer.cuh). Pages, records and bitmaps are the bytes of page.hpp
// and tile.hpp, the same on every backend; where they lie is not part of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include <zipcache/core/error.hpp>
#include <zipcache/core/types.hpp>
#include <zipcache/core/view.hpp>
#include <zipcache/store/page.hpp>
#include <zipcache/store/segment.hpp>

namespace zipcache {

/// 16-bit tokens, oldest first.
template <class Storage>
struct row_content {
  int64_t num_tokens = 0;
  std::vector<Storage> keys, values;  ///< [num_kv_heads, num_tokens, head_dim]

  void resize(int32_t num_kv_heads, int64_t tokens, int32_t head_dim) {
    num_tokens = tokens;
    keys.resize(static_cast<size_t>(num_kv_heads * tokens * head_dim));
    values.resize(keys.size());
  }
  tensor_view<const Storage> k(int32_t num_kv_heads, int32_t head_dim) const {
    return hnd(keys.data(), num_kv_heads, num_tokens, head_dim);
  }
  tensor_view<const Storage> v(int32_t num_kv_heads, int32_t head_dim) const {
    return hnd(values.data(), num_kv_heads, num_tokens, head_dim);
  }
};

/// A sealed segment.
template <class Policies>
struct segment_content {
  segment_shape<Policies> shape;
  int64_t page_bytes = 0;
  std::vector<std::byte> pages;    ///< [num_kv_heads, pages of a head, page_bytes]
  std::vector<std::byte> records;  ///< [num_kv_heads, segment_record::bytes]
  std::vector<uint32_t> bitmaps;   ///< [num_kv_heads, shape.bitmap_words()]

  /// A segment of this shape with room for its bytes.
  void resize(const segment_shape<Policies>& given, int64_t bytes_of_page) {
    shape = given;
    page_bytes = bytes_of_page;
    pages.resize(static_cast<size_t>(shape.num_pages(page_bytes) * page_bytes));
    records.resize(
        static_cast<size_t>(shape.num_kv_heads * segment_record<Policies>::bytes(shape.head_dim)));
    bitmaps.resize(static_cast<size_t>(shape.num_kv_heads * shape.bitmap_words()));
  }
  /// The entries of one head's page table but for the pages' numbers.
  std::vector<page_entry> entries() const {
    const page_plan plan = shape.plan(page_bytes);
    std::vector<page_entry> table;
    const int64_t num_pages = shape.pages_per_head(page_bytes);
    for (int64_t page = 0; page < num_pages; ++page) table.push_back(shape.entry(plan, page, 0));
    return table;
  }
};

/// One layer of one sequence.
template <class Element, class Policies>
struct layer_content {
  using storage = storage_element<Element>;

  row_content<storage> sinks;
  std::vector<int64_t> sink_positions;  ///< ascending; empty: the first tokens of the sequence
  std::vector<segment_content<Policies>> segments;
  row_content<storage> window;
  int64_t interval_start = 0;            ///< tokens that were there when the window began to fill
  std::vector<int64_t> probe_positions;  ///< of decode queries kept for the interval, ascending
  std::vector<Element> probe_q;          ///< [probes, num_qo_heads, head_dim]
  std::vector<float> probe_lse;          ///< [probes, num_qo_heads]

  int64_t sealed() const {
    int64_t tokens = sinks.num_tokens;
    for (const auto& segment : segments) tokens += segment.shape.num_tokens;
    return tokens;
  }
};

}  // namespace zipcache

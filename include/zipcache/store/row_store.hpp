// Tokens in 16 bits: the window of recent tokens, and pinned sinks. Rows lie in pages of the common
// pool, taken only as rows arrive, so that an empty window costs nothing. Format of a page:
// page.hpp.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include <zipcache/core/types.hpp>
#include <zipcache/core/view.hpp>
#include <zipcache/store/page.hpp>
#include <zipcache/store/page_pool.hpp>

namespace zipcache {

/// @brief A queue of tokens of all KV heads of one layer of one sequence.
template <class Storage>
class row_store {
 public:
  row_store(page_pool& pool, int32_t num_kv_heads, int32_t head_dim)
      : pool_(&pool),
        head_dim_(head_dim),
        rows_per_page_(rows_per_page(pool.page_bytes(), head_dim)) {
    for (int32_t head = 0; head < num_kv_heads; ++head) pages_.emplace_back(pool);
  }

  int64_t size() const { return size_; }
  int64_t num_pages() const {
    return pages_.empty() ? 0 : static_cast<int64_t>(pages_.size()) * pages_[0].size();
  }

  const Storage* key_row(int32_t head, int64_t token) const { return row(head, token, 0); }
  const Storage* value_row(int32_t head, int64_t token) const {
    return row(head, token, rows_per_page_);
  }

  /// Takes pages for `count` more tokens, which come after the first `dropped` tokens have gone and
  /// left their pages to them; does nothing if it throws.
  void reserve(int64_t count, int64_t dropped = 0) {
    const int64_t first = first_row_after(dropped);
    const int64_t needed = ceil_div<int64_t>(first + size_ - dropped + count, rows_per_page_);
    const int64_t before = pages_.empty() ? 0 : pages_[0].size();
    try {
      for (page_list& pages : pages_) {
        while (pages.size() < needed) pages.grow();
      }
    } catch (...) {
      for (page_list& pages : pages_) pages.shrink_to(before);
      throw;
    }
  }

  /// Appends tokens for which pages were reserved. k, v [num_kv_heads, n, head_dim], rounded to 16
  /// bits.
  template <class Element>
  void push(tensor_view<const Element> k, tensor_view<const Element> v) noexcept {
    for (int64_t token = 0; token < k.num_tokens; ++token, ++size_) {
      for (int32_t head = 0; head < k.num_heads; ++head) {
        copy_row(k.row(head, token), row(head, size_, 0));
        copy_row(v.row(head, token), row(head, size_, rows_per_page_));
      }
    }
  }

  /// Forgets the first tokens. Pages that this empties wait for the next tokens, or for
  /// `release_unused`.
  void drop_front(int64_t count) noexcept {
    const int64_t first = first_row_after(count);
    for (page_list& pages : pages_) pages.rotate((offset_ + count - first) / rows_per_page_);
    size_ -= count;
    offset_ = first;
  }

  void drop_back(int64_t count) noexcept {
    size_ -= count;
    if (size_ == 0) offset_ = 0;
    release_unused();
  }

  /// Gives back pages that were reserved and not used.
  void release_unused() noexcept {
    for (page_list& pages : pages_)
      pages.shrink_to(size_ == 0 ? 0 : ceil_div<int64_t>(offset_ + size_, rows_per_page_));
  }

  /// A copy in pages of its own.
  row_store clone() const {
    row_store copy(*pool_, static_cast<int32_t>(pages_.size()), head_dim_);
    copy.reserve(size_);
    copy.size_ = size_;
    for (int32_t head = 0; head < static_cast<int32_t>(pages_.size()); ++head) {
      for (int64_t token = 0; token < size_; ++token) {
        std::copy_n(key_row(head, token), head_dim_, copy.row(head, token, 0));
        std::copy_n(value_row(head, token), head_dim_, copy.row(head, token, rows_per_page_));
      }
    }
    return copy;
  }

 private:
  /// Rows before the first token once `count` tokens were dropped: less than a page, none if no
  /// token is left.
  int64_t first_row_after(int64_t count) const {
    return count == size_ ? (count == 0 ? offset_ : 0) : (offset_ + count) % rows_per_page_;
  }
  Storage* row(int32_t head, int64_t token, int64_t first_row) const {
    const int64_t index = offset_ + token;
    std::byte* page = pool_->data(pages_[static_cast<size_t>(head)][index / rows_per_page_]);
    return reinterpret_cast<Storage*>(page) + (first_row + index % rows_per_page_) * head_dim_;
  }
  template <class Element>
  void copy_row(const Element* from, Storage* to) const noexcept {
    for (int32_t channel = 0; channel < head_dim_; ++channel)
      to[channel] = from_float<Storage>(to_float(from[channel]));
  }

  page_pool* pool_;
  int32_t head_dim_;
  int64_t rows_per_page_;
  int64_t offset_ = 0;  ///< rows of the first page that were dropped
  int64_t size_ = 0;
  std::vector<page_list> pages_;  ///< one list for each KV head
};

}  // namespace zipcache

// The pool of pages on the CPU: one size, one free list. Pages are owned by handles, so whatever
// throws gives its pages back; sealed pages are shared by forks through the segment that owns them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include <zipcache/core/error.hpp>

namespace zipcache {

/// @brief Pages of `page_bytes`, aligned to 128 bytes, taken from the system in slabs. Not
/// synchronized: one thread at a time takes or returns pages; the bytes of different pages may be
/// used by different threads.
class page_pool {
 public:
  /// @param max_pages  capacity; 0 for as many as memory holds
  page_pool(int64_t page_bytes, int64_t max_pages)
      : page_bytes_(page_bytes), max_pages_(max_pages) {}
  page_pool(const page_pool&) = delete;
  page_pool& operator=(const page_pool&) = delete;

  int64_t page_bytes() const { return page_bytes_; }
  int64_t num_used() const { return num_pages_ - static_cast<int64_t>(free_.size()); }
  int64_t reserved_bytes() const {
    return static_cast<int64_t>(slabs_.size()) * slab_pages * page_bytes_;
  }

  /// Pages that can still be taken; the largest number there is when the pool has no capacity.
  int64_t num_available() const { return max_pages_ > 0 ? max_pages_ - num_used() : INT64_MAX; }

  std::byte* data(uint32_t page) const {
    return slabs_[page / slab_pages].get() + static_cast<int64_t>(page % slab_pages) * page_bytes_;
  }

  /// @throws capacity_error  the capacity is used up
  uint32_t allocate() {
    if (!free_.empty()) {
      const uint32_t page = free_.back();
      free_.pop_back();
      return page;
    }
    if (max_pages_ > 0 && num_pages_ >= max_pages_) {
      throw capacity_error(
          "zipcache: all " + std::to_string(max_pages_) +
          " pages of the pool are in use; raise cache_options::max_pages or release sequences");
    }
    if (num_pages_ % slab_pages == 0) {
      // Returning a page must never fail, so the free list has room for all pages before they
      // exist.
      free_.reserve(static_cast<size_t>(num_pages_ + slab_pages));
      slabs_.reserve(slabs_.size() + 1);  // so that a new slab has an owner at once
      slabs_.emplace_back(static_cast<std::byte*>(
          ::operator new(static_cast<size_t>(slab_pages * page_bytes_), alignment)));
    }
    return static_cast<uint32_t>(num_pages_++);
  }

  void release(uint32_t page) noexcept { free_.push_back(page); }

 private:
  static constexpr int64_t slab_pages = 16;
  static constexpr std::align_val_t alignment{128};
  struct slab_delete {
    void operator()(std::byte* slab) const { ::operator delete(slab, alignment); }
  };

  int64_t page_bytes_;
  int64_t max_pages_;
  int64_t num_pages_ = 0;
  std::vector<uint32_t> free_;
  std::vector<std::unique_ptr<std::byte, slab_delete>> slabs_;
};

/// A list of pages that goes back to the pool with its owner.
class page_list {
 public:
  page_list() = default;
  explicit page_list(page_pool& pool) : pool_(&pool) {}
  page_list(page_list&& other) noexcept
      : pool_(other.pool_), pages_(std::exchange(other.pages_, {})) {}
  page_list& operator=(page_list&& other) noexcept {
    std::swap(pool_, other.pool_);
    std::swap(pages_, other.pages_);
    return *this;
  }
  ~page_list() {
    for (const uint32_t page : pages_) pool_->release(page);
  }

  int64_t size() const { return static_cast<int64_t>(pages_.size()); }
  uint32_t operator[](int64_t index) const { return pages_[static_cast<size_t>(index)]; }

  void grow() {
    pages_.reserve(pages_.size() + 1);
    pages_.push_back(pool_->allocate());
  }
  /// Puts the first `count` pages behind the others.
  void rotate(int64_t count) noexcept {
    std::rotate(pages_.begin(), pages_.begin() + count, pages_.end());
  }
  void shrink_to(int64_t count) noexcept {
    while (size() > count) {
      pool_->release(pages_.back());
      pages_.pop_back();
    }
  }

 private:
  page_pool* pool_ = nullptr;
  std::vector<uint32_t> pages_;
};

}  // namespace zipcache

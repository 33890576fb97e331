// The host's side of pages in device memory: which are free, how many sequences share each, and
// writing page numbers into tables. Numbers travel as kernel arguments, so that nothing waits and
// nothing has to be kept alive.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <zipcache/core/cuda.cuh>
#include <zipcache/core/numerics.hpp>
#include <zipcache/store/page.hpp>

namespace zipcache::detail {

/// Reference counts and the free list of a fixed number of pages.
class page_ledger {
 public:
  explicit page_ledger(int64_t num_pages) : shares_(static_cast<size_t>(num_pages), 0) {
    for (int64_t page = num_pages - 1; page >= 0; --page)
      free_.push_back(static_cast<uint32_t>(page));
  }

  int64_t num_pages() const { return static_cast<int64_t>(shares_.size()); }
  int64_t num_available() const { return static_cast<int64_t>(free_.size()); }

  /// @throws capacity_error  fewer than `count` pages are free
  void require_available(int64_t count) const {
    if (count > num_available()) {
      throw capacity_error("zipcache: " + std::to_string(count) + " pages are needed, and " +
                           std::to_string(num_available()) + " of the pool's " +
                           std::to_string(num_pages()) +
                           " are free; raise cache_options::max_pages or release sequences");
    }
  }
  /// @throws capacity_error  fewer than `count` pages are free; none was taken
  std::vector<uint32_t> take(int64_t count) {
    require_available(count);
    std::vector<uint32_t> pages(free_.end() - count, free_.end());
    free_.resize(free_.size() - static_cast<size_t>(count));
    for (const uint32_t page : pages) shares_[page] = 1;
    return pages;
  }
  void share(uint32_t page) { ++shares_[page]; }
  void give_back(uint32_t page) {
    if (--shares_[page] == 0) free_.push_back(page);
  }

 private:
  std::vector<uint32_t> shares_;
  std::vector<uint32_t> free_;
};

/// 32-bit words that travel with a launch.
struct carried_words {
  static constexpr int32_t capacity = 960;
  int32_t count = 0;
  uint32_t words[capacity];
};

/// Page `index * num_heads + head` of the words becomes entry `first + index` of the head's table,
/// without tokens.
static __global__ void write_pages_kernel(page_entry* table, int32_t max_pages, int32_t num_heads,
                                          int32_t first_word, carried_words carried) {
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < carried.count;
       i += static_cast<int32_t>(blockDim.x)) {
    const int32_t place = first_word + i;
    table[static_cast<int64_t>(place % num_heads) * max_pages + place / num_heads] = {
        carried.words[i], 0, 0};
  }
}

static __global__ void write_words_kernel(uint32_t* target, carried_words carried) {
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < carried.count;
       i += static_cast<int32_t>(blockDim.x))
    target[i] = carried.words[i];
}

/// Calls launch(first, carried) for the words in parts that fit into a launch.
template <class Launch>
void carry_words(const std::vector<uint32_t>& words, Launch&& launch) {
  for (size_t first = 0; first < words.size(); first += carried_words::capacity) {
    carried_words carried;
    carried.count =
        static_cast<int32_t>(least<size_t>(carried_words::capacity, words.size() - first));
    for (int32_t i = 0; i < carried.count; ++i)
      carried.words[i] = words[first + static_cast<size_t>(i)];
    launch(first, carried);
    check_launch("a kernel that writes tables");
  }
}

/// Entries from `first_entry` on of the table of all heads of one sequence. pages [entries,
/// num_heads]
inline void write_pages(cudaStream_t stream, page_entry* table, int32_t max_pages,
                        int32_t num_heads, int32_t first_entry,
                        const std::vector<uint32_t>& pages) {
  carry_words(pages, [&](size_t first, const carried_words& carried) {
    write_pages_kernel<<<1, 256, 0, stream>>>(table + first_entry, max_pages, num_heads,
                                              static_cast<int32_t>(first), carried);
  });
}

inline void write_words(cudaStream_t stream, uint32_t* target, const std::vector<uint32_t>& words) {
  carry_words(words, [&](size_t first, const carried_words& carried) {
    write_words_kernel<<<1, 256, 0, stream>>>(target + first, carried);
  });
}

}  // namespace zipcache::detail

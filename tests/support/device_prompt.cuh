// A layer in device memory that holds one prompt for each of several sequences, and the bytes that
// a test compares with those of a segment on the CPU.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include <zipcache/store/device_layer.cuh>
#include <zipcache/store/segment.hpp>

#include "support/device.cuh"
#include "support/generators.hpp"

namespace zipcache_test {

template <class Policies, class Storage>
struct device_prompt {
  zipcache::segment_shape<Policies> shape;
  int32_t max_sequences;
  int64_t page_bytes;
  int64_t pages_per_head;
  std::vector<zipcache::page_entry> given_table;
  device_array<std::byte> pages, page_pairs, records;
  device_array<zipcache::page_entry> table;
  device_array<uint32_t> bitmaps;
  device_array<zipcache::sequence_counts> counts;
  device_array<Storage> sinks, window;
  zipcache::device_layer<Policies, Storage> layer{};

  /// Pages in shuffled order; all memory but the page numbers and counts is poisoned.
  device_prompt(const zipcache::segment_shape<Policies>& given, int32_t sequences,
                int64_t bytes_of_page)
      : shape(given), max_sequences(sequences), page_bytes(bytes_of_page) {
    pages_per_head = shape.plan(page_bytes).num_pages;
    const int64_t rows = int64_t{max_sequences} * shape.num_kv_heads;
    const int64_t max_pages = pages_per_head + 3;
    std::vector<uint32_t> numbers;
    for (int64_t i = 0; i < rows * max_pages; ++i) numbers.push_back(static_cast<uint32_t>(i));
    random_numbers random(17);
    for (size_t i = numbers.size(); i > 1; --i)
      std::swap(numbers[i - 1],
                numbers[static_cast<size_t>(random.below(static_cast<int64_t>(i)))]);
    for (const uint32_t number : numbers) given_table.push_back({number, 0xa5a5, 0xa5a5});
    table = upload(given_table);
    const int64_t record_bytes = zipcache::segment_record<Policies>::bytes(shape.head_dim);
    const int32_t max_segments = 2;
    records = poisoned<std::byte>(static_cast<size_t>(rows * max_segments * record_bytes));
    const int64_t bitmap_words = shape.bitmap_words() + 2;
    bitmaps = poisoned<uint32_t>(static_cast<size_t>(rows * bitmap_words));
    counts = upload(std::vector<zipcache::sequence_counts>(static_cast<size_t>(max_sequences)));
    layer.num_qo_heads = shape.num_kv_heads;
    layer.num_kv_heads = shape.num_kv_heads;
    layer.head_dim = shape.head_dim;
    layer.max_sequences = max_sequences;
    layer.sm_scale = 1.0f;
    layer.set_page_bytes(page_bytes);
    const int64_t num_pages = rows * max_pages;
    pages = poisoned<std::byte>(static_cast<size_t>(num_pages * layer.page_code_bytes));
    page_pairs = poisoned<std::byte>(static_cast<size_t>(num_pages * layer.page_pair_bytes));
    layer.pages = pages.data();
    layer.page_pairs = page_pairs.data();
    layer.table = table.data();
    layer.max_pages = static_cast<int32_t>(max_pages);
    layer.records = records.data();
    layer.max_segments = max_segments;
    layer.bitmaps = bitmaps.data();
    layer.bitmap_words = static_cast<int32_t>(bitmap_words);
    layer.counts = counts.data();
    layer.interval = 32;
    layer.interval_pages = 1;
  }
};

/// The first byte of a plane of a page that differs from `wanted`, or that was touched behind them;
/// -1 if there is none.
inline int64_t first_difference_of_plane(const std::byte* plane, int64_t plane_bytes,
                                         const std::byte* wanted, int64_t count) {
  for (int64_t i = 0; i < plane_bytes; ++i)
    if (plane[i] != (i < count ? wanted[i] : std::byte{poison_byte})) return i;
  return -1;
}

/// The first difference between what the device holds of a sequence and a segment of the CPU, as a
/// sentence; empty when they are the same, unused bytes untouched.
template <class Policies, class Storage>
std::string first_difference(const device_prompt<Policies, Storage>& device, int32_t sequence,
                             const zipcache::segment<Policies>& expected) {
  const auto& layer = device.layer;
  const auto pages = download(device.pages);
  const auto page_pairs = download(device.page_pairs);
  const zipcache::page_layout layout = zipcache::page_layout_of<Policies>(layer.head_dim);
  const auto records = download(device.records);
  const auto table = download(device.table);
  const auto bitmaps = download(device.bitmaps);
  const auto counts = download(device.counts)[static_cast<size_t>(sequence)];
  const int64_t pages_per_head = expected.pages_per_head;
  const auto at = [&](const char* what, int32_t head, int64_t index) {
    return std::string(what) + " of head " + std::to_string(head) + ", " + std::to_string(index);
  };
  if (counts.prompt_tokens != expected.shape.num_tokens || counts.prompt_pages != pages_per_head ||
      counts.pages != pages_per_head || counts.sealed != counts.sinks + counts.prompt_tokens ||
      counts.segments != (counts.prompt_tokens > 0 ? 1 : 0))
    return "counts";
  for (int32_t head = 0; head < layer.num_kv_heads; ++head) {
    const int64_t row = int64_t{sequence} * layer.num_kv_heads + head;
    for (int64_t page = 0; page < layer.max_pages; ++page) {
      const auto& given = device.given_table[static_cast<size_t>(row * layer.max_pages + page)];
      const auto& entry = table[static_cast<size_t>(row * layer.max_pages + page)];
      zipcache::tile_size used{0, 0};
      const std::byte* wanted_bytes = nullptr;
      zipcache::page_entry wanted = given;
      if (page < pages_per_head) {
        wanted = expected.table[static_cast<size_t>(head * pages_per_head + page)];
        used = layout.size(wanted);
        wanted_bytes = expected.pool->data(wanted.page);
      }
      if (entry.page != given.page || entry.salient_tokens != wanted.salient_tokens ||
          entry.regular_tokens != wanted.regular_tokens)
        return at("table entry", head, page);
      const int64_t code =
          first_difference_of_plane(pages.data() + entry.page * layer.page_code_bytes,
                                    layer.page_code_bytes, wanted_bytes, used.codes);
      if (code >= 0) return at("codes of page", head, page) + ", byte " + std::to_string(code);
      const int64_t pair =
          first_difference_of_plane(page_pairs.data() + entry.page * layer.page_pair_bytes,
                                    layer.page_pair_bytes, wanted_bytes + used.codes, used.pairs);
      if (pair >= 0) return at("pairs of page", head, page) + ", byte " + std::to_string(pair);
    }
    const int64_t record_bytes = layer.record_bytes();
    const std::byte* record =
        records.data() +
        (int64_t{sequence} * layer.max_segments * layer.num_kv_heads + head) * record_bytes;
    for (int64_t i = 0; i < record_bytes; ++i)
      if (record[i] != expected.record(head)[i]) return at("byte of record", head, i);
    for (int64_t word = 0; word < layer.bitmap_words; ++word) {
      const uint32_t bits = bitmaps[static_cast<size_t>(row * layer.bitmap_words + word)];
      const int64_t words = expected.shape.bitmap_words();
      const uint32_t wanted =
          word < words ? expected.salient_bitmap[static_cast<size_t>(head * words + word)]
                       : 0xa5a5a5a5u;
      if (bits != wanted) return at("bitmap word", head, word);
    }
  }
  return {};
}

}  // namespace zipcache_test

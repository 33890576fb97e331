// What attention on packed codes with AVX-512 keeps between tiles: memory of one class of a
// segment.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include <zipcache/store/layout.hpp>

namespace zipcache::detail {

/// Floats that begin at a cache line, so that no vector lies across two.
class aligned_floats {
 public:
  void resize(size_t size) {
    if (memory_.size() < size + 16) memory_.resize(size + 16);
    const size_t misplaced = reinterpret_cast<uintptr_t>(memory_.data()) / sizeof(float) % 16;
    first_ = memory_.data() + (16 - misplaced) % 16;
  }
  float* data() { return first_; }
  const float* data() const { return first_; }

 private:
  std::vector<float> memory_;
  float* first_ = nullptr;
};

/// Where the third digits of a chunk of queries are met by codes.
enum class third_digits {
  none,      ///< there are none
  gathered,  ///< codes of their channels are gathered in one vector
  in_place,  ///< in the blocks of channels that have some: too many to be gathered
};

/// What one class of a segment needs beside attend_rows; reused from call to call.
struct packed_scratch {
  static constexpr int32_t most_rows = 16;
  static constexpr int32_t digits = 3;
  static constexpr int32_t row_chunk = 4;

  static constexpr int32_t most_chunks = most_rows / row_chunk;
  static constexpr int32_t most_blocks = 16;

  aligned_floats key_digits;       ///< [rows, head_dim / 16, digits] vectors of 64 bytes
  aligned_floats gathers;          ///< [most_chunks, most_blocks] vectors: which bytes of a block
  aligned_floats gathered_digits;  ///< [most_rows] vectors: third digits of the gathered channels
  aligned_floats sums;             ///< [rows, head_dim / 2] vectors: weighted values, in word order
  aligned_floats weights;          ///< [rows, 4] vectors: probabilities in word order
  aligned_floats totals;    ///< [rows, 2] vectors: sums of probabilities, and of them x minima
  aligned_floats scores;    ///< [rows, 32]
  float maxima[most_rows];  ///< what the probabilities are relative to
  float scales[most_rows];  ///< of the integers that stand for the queries

  void reset(int32_t rows, int32_t head_dim) {
    const size_t count = static_cast<size_t>(rows);
    sums.resize(count * static_cast<size_t>(8 * head_dim));
    weights.resize(count * 64);
    totals.resize(count * 32);
    scores.resize(count * tile_tokens);
    std::fill_n(sums.data(), rows * 8 * head_dim, 0.0f);
    std::fill_n(totals.data(), rows * 32, 0.0f);
    std::fill_n(maxima, rows, -std::numeric_limits<float>::infinity());
  }
  third_digits third[most_chunks];
  /// The channels of a block in which some row of a chunk has a third digit, one bit each.
  uint16_t third_channels[most_chunks][most_blocks];
};

}  // namespace zipcache::detail

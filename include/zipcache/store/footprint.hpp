// What a cache really occupies, by purpose.
#pragma once

#include <cstdint>

namespace zipcache {

/// @brief Bytes held for some tokens. `total_bytes()` is everything that is allocated for them.
struct footprint {
  int64_t code_bytes = 0;       ///< packed codes of real tokens, and 16-bit values of sealed tokens
  int64_t parameter_bytes = 0;  ///< (step, min) pairs of real tokens, segment records, and what
                                ///< else block codecs call parameters
  int64_t padding_bytes = 0;    ///< unused tokens of tiles, unused bytes of pages
  int64_t table_bytes = 0;      ///< page tables, class bitmaps, segment headers
  int64_t window_bytes = 0;     ///< pages of tokens in 16 bits: window and sinks
  int64_t num_tokens = 0;       ///< tokens of the sequences, times layers
  int64_t uncompressed_bytes = 0;  ///< the same tokens in a plain 16-bit cache

  int64_t total_bytes() const {
    return code_bytes + parameter_bytes + padding_bytes + table_bytes + window_bytes;
  }
  /// Uncompressed bytes over allocated bytes; 1 for an empty cache.
  double ratio() const {
    return total_bytes() > 0
               ? static_cast<double>(uncompressed_bytes) / static_cast<double>(total_bytes())
               : 1.0;
  }

  footprint& operator+=(const footprint& other) {
    code_bytes += other.code_bytes;
    parameter_bytes += other.parameter_bytes;
    padding_bytes += other.padding_bytes;
    table_bytes += other.table_bytes;
    window_bytes += other.window_bytes;
    num_tokens += other.num_tokens;
    uncompressed_bytes += other.uncompressed_bytes;
    return *this;
  }
};

}  // namespace zipcache

// Where the blocks of a segment lie (quantize/block_codec.hpp): behind the tiles of a head, as one
// string of bytes that is cut at the ends of pages,
//   [tiles ...][tiles, key block, value block begins][value block ends, unused]
// Either block is there only if its side has a block codec. The string begins at a multiple of 16
// behind the head's last tile, and so does the value block in the string; pages without tiles have
// no tokens in their entries of the page table. Tokens are in the order of tiles: those of the
// salient class, then those of the regular one.
#pragma once

#include <cstdint>

#include <zipcache/policy/policies.hpp>
#include <zipcache/quantize/block_codec.hpp>

namespace zipcache {

/// Sizes of the blocks of one head.
template <class Policies>
struct block_record {
  using key_quantizer = typename Policies::key_quantizer_policy;
  using value_quantizer = typename Policies::value_quantizer_policy;
  static constexpr bool has_keys = codes_blocks<key_quantizer>;
  static constexpr bool has_values = codes_blocks<value_quantizer>;
  static constexpr bool has_blocks = has_keys || has_values;

  static block_size key_size(const block_shape& shape) {
    if constexpr (has_keys) {
      if (shape.num_tokens > 0) return key_quantizer::granularity::size(shape);
    }
    return {};
  }
  static block_size value_size(const block_shape& shape) {
    if constexpr (has_values) {
      if (shape.num_tokens > 0) return value_quantizer::granularity::size(shape);
    }
    return {};
  }
  static int64_t value_offset(const block_shape& shape) {
    return round_up<int64_t>(key_size(shape).bytes(), 16);
  }
  static int64_t bytes(const block_shape& shape) {
    return value_offset(shape) + value_size(shape).bytes();
  }
};

/// Where the string of a head begins, and the pages of the head with it.
struct block_place {
  int64_t page;       ///< of the head
  int64_t offset;     ///< in that page
  int64_t num_pages;  ///< of the head, of tiles and blocks together
};

}  // namespace zipcache

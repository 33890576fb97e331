// The blocks of a segment (quantize/block_codec.hpp): one string of bytes for each head, which
// fills what the head's tiles leave free, page after page, and then as many pages as it needs,
//   [tiles][string begins]  [tiles][goes on]  [goes on]  [ends, unused]
// so that a page which tiles do not fill is not lost. The string is the key block and, at a
// multiple of 16 bytes, the value block, each only if its side has a block codec. Pages without
// tiles have no tokens in their entries of the page table. Tokens are in the order of tiles: those
// of the salient class, then those of the regular one.
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

}  // namespace zipcache

// A tile: 32 tokens of one class of one KV head with everything that belongs to them, and the
// segment record: what belongs to all tokens of a segment. Both are byte formats, the same on every
// backend.
//
// Tile at head_dim 128 under the paper's policies (bytes):
//                     4-bit class            2-bit class
//   key codes         0    .. 2047           0    .. 1023       order: layout.hpp
//   value codes       2048 .. 4095           1024 .. 2047
//   key pairs         none (segment)         none (segment)
//   value pairs       0    .. 47             0    .. 47         32 steps of 8 bits, at slot
//                                                               token_parameter_slot(token), then
//                                                               32 zeros of 4: compact_zero_place
//   size              4096 + 48              2048 + 48          codes + pairs
// Codes and pairs lie apart in a page (page.hpp), so their offsets are counted apart. Codes of any
// tile are a multiple of 128 bytes, pairs of 16.
// Parameters that vary by token and group, where they are not compact: pair of 4 bytes of (token,
// group) at group * 32 + slot. By channel: pair at channel. Unused tokens of the last tile have
// codes and parameters 0 when written, and may hold anything when read.
//
// Segment record of one head, in this order, each part present only if some class has such
// parameters:
//   salient key pairs [head_dim], regular key pairs [head_dim], salient value pairs, regular value
//   pairs, key magnitudes [head_dim] of 16 bits, value magnitudes; the record is padded to 16
//   bytes.
#pragma once

#include <cstddef>
#include <cstdint>

#include <zipcache/policy/policies.hpp>
#include <zipcache/quantize/affine.hpp>
#include <zipcache/quantize/compact_pairs.hpp>
#include <zipcache/quantize/granularity.hpp>
#include <zipcache/store/layout.hpp>
#include <zipcache/store/page.hpp>

namespace zipcache {

inline constexpr int64_t pair_bytes = 4;

/// Whether a side with these bits has (step, min) pairs at all.
ZIPCACHE_HOST_DEVICE constexpr bool has_pairs(int bits) { return bits >= 1 && bits <= 8; }

template <class Granularity, int Bits>
ZIPCACHE_HOST_DEVICE constexpr int64_t tile_pairs(int32_t head_dim) {
  if (!has_pairs(Bits) || Granularity::home == parameter_home::segment) return 0;
  return Granularity::axis == parameter_axis::token
             ? tile_tokens * groups_per_token<Granularity>(head_dim)
             : head_dim;
}

template <class Granularity, int Bits>
ZIPCACHE_HOST_DEVICE constexpr int64_t segment_pairs(int32_t head_dim) {
  return has_pairs(Bits) && Granularity::home == parameter_home::segment ? head_dim : 0;
}

/// Bytes of a tile's pairs. Compact pairs of 32 tokens: 32 steps, then 32 zeros of half a byte.
template <class Granularity, int Bits>
ZIPCACHE_HOST_DEVICE constexpr int64_t tile_pair_bytes(int32_t head_dim) {
  const int64_t pairs = tile_pairs<Granularity, Bits>(head_dim);
  return has_compact_pairs<Granularity> ? pairs * 3 / 2 : pairs * pair_bytes;
}

/// What tiles and records have of one side: all of a group layout, nothing of a side that is coded
/// in blocks.
template <class Quantizer>
struct tile_side {
  using granularity = typename Quantizer::granularity;
  template <token_class Class>
  static constexpr int bits = Quantizer::template bits<Class>;
};
template <class Quantizer>
requires codes_blocks<Quantizer>
struct tile_side<Quantizer> {
  using granularity = tokenwise;
  template <token_class>
  static constexpr int bits = 0;
};

/// Byte offsets in a tile of `Class`: of codes from its first code, of pairs from its first pair.
template <class Policies, token_class Class>
struct tile_record {
  using key_side = tile_side<typename Policies::key_quantizer_policy>;
  using value_side = tile_side<typename Policies::value_quantizer_policy>;
  using key_granularity = typename key_side::granularity;
  using value_granularity = typename value_side::granularity;
  static constexpr int key_bits = key_side::template bits<Class>;
  static constexpr int value_bits = value_side::template bits<Class>;
  using key_codes = code_tile<key_layout, key_bits>;
  using value_codes = code_tile<value_layout, value_bits>;

  ZIPCACHE_HOST_DEVICE static constexpr int64_t value_codes_offset(int32_t head_dim) {
    return int64_t{4} * key_codes::words(head_dim);
  }
  ZIPCACHE_HOST_DEVICE static constexpr int64_t code_bytes(int32_t head_dim) {
    return value_codes_offset(head_dim) + int64_t{4} * value_codes::words(head_dim);
  }
  ZIPCACHE_HOST_DEVICE static constexpr int64_t value_pairs_offset(int32_t head_dim) {
    return tile_pair_bytes<key_granularity, key_bits>(head_dim);
  }
  ZIPCACHE_HOST_DEVICE static constexpr int64_t pair_bytes(int32_t head_dim) {
    return value_pairs_offset(head_dim) + tile_pair_bytes<value_granularity, value_bits>(head_dim);
  }
  /// Codes and pairs.
  ZIPCACHE_HOST_DEVICE static constexpr int64_t bytes(int32_t head_dim) {
    return code_bytes(head_dim) + pair_bytes(head_dim);
  }
};

/// Where the tiles of these policies lie in a page.
template <class Policies>
ZIPCACHE_HOST_DEVICE constexpr page_layout page_layout_of(int32_t head_dim) {
  using salient = tile_record<Policies, token_class::salient>;
  using regular = tile_record<Policies, token_class::regular>;
  return {{salient::code_bytes(head_dim), salient::pair_bytes(head_dim)},
          {regular::code_bytes(head_dim), regular::pair_bytes(head_dim)}};
}

/// Byte offsets in one head's segment record.
template <class Policies>
struct segment_record {
  using key_side = tile_side<typename Policies::key_quantizer_policy>;
  using value_side = tile_side<typename Policies::value_quantizer_policy>;
  using key_granularity = typename key_side::granularity;
  using value_granularity = typename value_side::granularity;
  static constexpr token_class salient = token_class::salient;
  static constexpr token_class regular = token_class::regular;

  template <class Granularity>
  ZIPCACHE_HOST_DEVICE static constexpr int64_t magnitude_bytes(int32_t head_dim, int salient_bits,
                                                                int regular_bits) {
    return Granularity::has_channel_magnitudes &&
                   (has_pairs(salient_bits) || has_pairs(regular_bits))
               ? 2 * head_dim
               : 0;
  }

  template <token_class Class>
  ZIPCACHE_HOST_DEVICE static constexpr int64_t key_pairs_offset(int32_t head_dim) {
    return Class == salient
               ? 0
               : pair_bytes *
                     segment_pairs<key_granularity, key_side::template bits<salient>>(head_dim);
  }
  template <token_class Class>
  ZIPCACHE_HOST_DEVICE static constexpr int64_t value_pairs_offset(int32_t head_dim) {
    const int64_t keys_end =
        key_pairs_offset<regular>(head_dim) +
        pair_bytes * segment_pairs<key_granularity, key_side::template bits<regular>>(head_dim);
    return Class == salient
               ? keys_end
               : keys_end +
                     pair_bytes *
                         segment_pairs<value_granularity, value_side::template bits<salient>>(
                             head_dim);
  }
  ZIPCACHE_HOST_DEVICE static constexpr int64_t key_magnitudes_offset(int32_t head_dim) {
    return value_pairs_offset<regular>(head_dim) +
           pair_bytes *
               segment_pairs<value_granularity, value_side::template bits<regular>>(head_dim);
  }
  ZIPCACHE_HOST_DEVICE static constexpr int64_t value_magnitudes_offset(int32_t head_dim) {
    return key_magnitudes_offset(head_dim) +
           magnitude_bytes<key_granularity>(head_dim, key_side::template bits<salient>,
                                            key_side::template bits<regular>);
  }
  ZIPCACHE_HOST_DEVICE static constexpr int64_t bytes(int32_t head_dim) {
    return round_up<int64_t>(
        value_magnitudes_offset(head_dim) +
            magnitude_bytes<value_granularity>(head_dim, value_side::template bits<salient>,
                                               value_side::template bits<regular>),
        16);
  }
};

}  // namespace zipcache

// The quantizer policies, for keys and for values separately: a group layout and the bits of each
// class, or a block codec, which codes both classes alike.
#pragma once

#include <string>

#include <zipcache/policy/roles.hpp>
#include <zipcache/quantize/block_codec.hpp>
#include <zipcache/quantize/compact_pairs.hpp>
#include <zipcache/quantize/granularity.hpp>
#include <zipcache/quantize/rotation.hpp>

namespace zipcache {

/// Salient tokens (high bits) and regular tokens (low bits).
enum class token_class { salient, regular };
inline constexpr int num_token_classes = 2;

namespace detail {

constexpr bool is_supported_bits(int bits) {
  return bits == 0 || bits == 1 || bits == 2 || bits == 3 || bits == 4 || bits == 8 || bits == 16;
}

template <class Granularity, int SalientBits, int RegularBits>
struct class_quantizer {
  static_assert(is_supported_bits(SalientBits) && is_supported_bits(RegularBits),
                "zipcache: bits of a class are 0 (evicted), 1, 2, 3, 4, 8 or 16");
  static_assert(!has_compact_pairs<Granularity> || (SalientBits != 8 && RegularBits != 8),
                "zipcache: compact_pairs are for codes of at most 4 bits");
  using granularity = Granularity;
  template <token_class Class>
  static constexpr int bits = Class == token_class::salient ? SalientBits : RegularBits;
  static std::string name() {
    return Granularity::name() + "_" + std::to_string(SalientBits) + "_" +
           std::to_string(RegularBits);
  }
};

/// What a block codec must have is asked one by one, so that the one that lacks is named.
template <class Codec>
struct block_quantizer {
  static_assert(says_plain_bits<Codec>,
                "zipcache: a block codec needs static constexpr int bits, those of a plain code");
  static_assert(says_block_size<Codec>,
                "zipcache: a block codec needs static block_size size(const block_shape&)");
  static_assert(encodes_blocks<Codec>,
                "zipcache: a block codec needs template <class Storage> static void encode(const "
                "float* x, const block_shape&, std::byte* out)");
  static_assert(decodes_blocks<Codec>,
                "zipcache: a block codec needs template <class Storage> static void decode(const "
                "std::byte* in, const block_shape&, int64_t first, int64_t count, float* out)");
  using granularity = Codec;
  template <token_class>
  static constexpr int bits = Codec::bits;
  static std::string name() { return Codec::name(); }
};

}  // namespace detail

/// Keys in `SalientBits` for salient tokens and `RegularBits` for the others; 16 keeps the 16-bit
/// values, 0 evicts.
template <class Granularity, int SalientBits, int RegularBits>
struct keys : detail::class_quantizer<Granularity, SalientBits, RegularBits> {
  using role = key_quantizer_role;
};

/// Values, likewise.
template <class Granularity, int SalientBits, int RegularBits>
struct values : detail::class_quantizer<Granularity, SalientBits, RegularBits> {
  using role = value_quantizer_role;
};

/// Keys as a block codec codes them, tokens of both classes in one block.
template <class Codec>
struct coded_keys : detail::block_quantizer<Codec> {
  using role = key_quantizer_role;
};

/// Values, likewise.
template <class Codec>
struct coded_values : detail::block_quantizer<Codec> {
  using role = value_quantizer_role;
};

/// Whether a quantizer policy codes blocks.
template <class Quantizer>
inline constexpr bool codes_blocks = block_codec<typename Quantizer::granularity>;

}  // namespace zipcache

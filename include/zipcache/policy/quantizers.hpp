// The two quantizer policies: a group layout and the bits of each class, for keys and for values
// separately.
#pragma once

#include <string>

#include <zipcache/policy/roles.hpp>
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
  using granularity = Granularity;
  template <token_class Class>
  static constexpr int bits = Class == token_class::salient ? SalientBits : RegularBits;
  static std::string name() {
    return Granularity::name() + "_" + std::to_string(SalientBits) + "_" +
           std::to_string(RegularBits);
  }
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

}  // namespace zipcache

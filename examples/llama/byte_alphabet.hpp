// The alphabet of byte-level BPE: a printable code point for each byte, so that vocabulary files
// are plain text. Bytes that are visible in Latin-1 stand for themselves; the other 68 take the
// code points from U+0100 on, in order.
#pragma once

#include <array>
#include <optional>

namespace zipcache_llama {

constexpr bool stands_for_itself(int byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) ||
         (byte >= 0xAE && byte <= 0xFF);
}

constexpr std::array<char32_t, 256> make_byte_alphabet() {
  std::array<char32_t, 256> alphabet{};
  char32_t next = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    alphabet[static_cast<std::size_t>(byte)] =
        stands_for_itself(byte) ? static_cast<char32_t>(byte) : next++;
  }
  return alphabet;
}

inline constexpr std::array<char32_t, 256> byte_alphabet = make_byte_alphabet();

// nullopt for a code point that stands for no byte.
constexpr std::optional<unsigned char> byte_of(char32_t code_point) {
  if (code_point < 0x100) {
    return stands_for_itself(static_cast<int>(code_point))
               ? std::optional<unsigned char>(static_cast<unsigned char>(code_point))
               : std::nullopt;
  }
  for (std::size_t byte = 0; byte < 256; ++byte) {
    if (byte_alphabet[byte] == code_point) {
      return static_cast<unsigned char>(byte);
    }
  }
  return std::nullopt;
}

}  // namespace zipcache_llama

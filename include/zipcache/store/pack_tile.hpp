// All codes of one tile side at once: rows of bytes become the words of layout.hpp, which says
// where each code lies. code_tile::save does the same code by code, and is what this is tested
// against. Neighbouring channels are neighbouring bytes of an integer, so one shift moves the codes
// of four (keys) or eight (values) channels.
#pragma once

#include <cstdint>
#include <cstring>

#include <zipcache/core/shape.hpp>
#include <zipcache/store/layout.hpp>

namespace zipcache::detail {

/// Codes of a tile before they are packed: one row of bytes a token, in the order of tokens.
struct tile_codes {
  const uint8_t* rows;  ///< [32, head_dim]
  int32_t head_dim;

  /// Bits [Shift, Shift + Bits) of `Integer`-many codes from `channel` on, each in its byte, the
  /// lowest byte first whatever the machine's order is.
  template <class Integer, int Bits, int Shift>
  Integer load(int32_t token, int32_t channel) const {
    const uint8_t* bytes = rows + token * head_dim + channel;
    constexpr Integer mask = static_cast<Integer>(~Integer{0}) / 255 * ((1u << Bits) - 1u);
    Integer codes = 0;
    for (size_t i = 0; i < sizeof(Integer); ++i)
      codes |= static_cast<Integer>(bytes[i]) << (8 * i);  // compilers make one load of this
    return codes >> Shift & mask;
  }
};

/// One plane of keys: the four bytes of a word are four channels of a row of each octet.
template <int Bits, int Shift>
void pack_keys(tile_codes codes, uint32_t* words) {
  using layout = key_layout<Bits>;
  constexpr int32_t octets = layout::octets_per_word;
  constexpr int32_t blocks_per_word = layout::blocks_per_word;
  const int32_t blocks = codes.head_dim / 16;
  const int32_t block_words = ceil_div(blocks, blocks_per_word);
  const int32_t words_per_lane = layout::words_per_lane(codes.head_dim);
  for (int32_t part = 0; part < 4 / octets; ++part) {
    for (int32_t lane = 0; lane < 32; ++lane) {
      for (int32_t block_word = 0; block_word < block_words; ++block_word) {
        uint32_t word = 0;
        for (int32_t i = 0; i < blocks_per_word; ++i) {
          const int32_t block = block_word * blocks_per_word + i;
          if (block == blocks) break;  // the last word of an odd number of blocks is half empty
          for (int32_t octet = 0; octet < octets; ++octet) {
            const int32_t token = 8 * (part * octets + octet) + lane / 4;
            word |= codes.load<uint32_t, Bits, Shift>(token, 16 * block + lane % 4 * 4)
                    << (Bits * (octet + octets * i));
          }
        }
        words[lane_word_index(lane, part * block_words + block_word, words_per_lane)] = word;
      }
    }
  }
}

/// Codes of eight neighbouring channels each, as the four bytes of eight words: byte `k` of word g
/// is byte g of bytes[k].
inline void store_value_words(const uint64_t (&bytes)[4], int32_t t, int32_t word,
                              int32_t words_per_lane, uint32_t* words) {
  for (int32_t g = 0; g < 8; ++g) {
    uint32_t value = 0;
    for (int k = 0; k < 4; ++k)
      value |= static_cast<uint32_t>(bytes[k] >> (8 * g) & 0xffu) << (8 * k);
    words[lane_word_index(4 * g + t, word, words_per_lane)] = value;
  }
}

/// One plane of values. Every word of lane 4 * g + t has two tokens 2 * t and 2 * t + 1 in its
/// halves; which other tokens and channels share a byte is the layout's, asked for g = 0.
template <int Bits, int Shift>
void pack_values(tile_codes codes, uint32_t* words) {
  using layout = value_layout<Bits>;
  const int32_t words_per_lane = layout::words_per_lane(codes.head_dim);
  for (int32_t word = 0; word < words_per_lane; ++word) {
    for (int32_t t = 0; t < 4; ++t) {
      uint64_t bytes[4] = {};
      for (int32_t field = 0; field < 32 / Bits; ++field) {
        const tile_element e = layout::element(codes.head_dim, lane_word{t, word}, field);
        if (e.channel >= codes.head_dim) continue;
        bytes[field * Bits / 8] |= codes.load<uint64_t, Bits, Shift>(e.token, e.channel)
                                   << (field * Bits % 8);
      }
      store_value_words(bytes, t, word, words_per_lane, words);
    }
  }
}

inline uint32_t join_halves(uint16_t low, uint16_t high) {
  return low | static_cast<uint32_t>(high) << 16;
}

/// Keys in 16 bits: the halves of a word are two neighbouring channels. A lane has a multiple of
/// four words. rows [32, head_dim]
inline void pack_wide_keys(const uint16_t* rows, int32_t head_dim, uint32_t* words) {
  const int32_t blocks = head_dim / 16;
  for (int32_t token = 0; token < 32; ++token) {
    const int32_t octet = token / 8;
    for (int32_t block = 0; block < blocks; ++block) {
      const uint16_t* x = rows + token * head_dim + 16 * block;
      const int32_t word = (octet / 2 * blocks + block) * 4 + octet % 2;
      for (int32_t i = 0; i < 8; ++i)
        words[lane_word_index(token % 8 * 4 + i % 4, word + 2 * (i / 4), 4)] =
            join_halves(x[2 * i], x[2 * i + 1]);
    }
  }
}

/// Values in 16 bits: the halves of a word are two neighbouring tokens. rows [32, head_dim]
inline void pack_wide_values(const uint16_t* rows, int32_t head_dim, uint32_t* words) {
  for (int32_t token = 0; token < 32; token += 2) {
    const uint16_t* x = rows + token * head_dim;
    for (int32_t octet = 0; octet < head_dim / 8; ++octet) {
      const int32_t word = (octet / 2 * 2 + token / 16) * 4 + octet % 2 + 2 * (token % 16 / 8);
      for (int32_t g = 0; g < 8; ++g)
        words[lane_word_index(4 * g + token % 8 / 2, word, 4)] =
            join_halves(x[8 * octet + g], x[head_dim + 8 * octet + g]);
    }
  }
}

template <template <int> class Layout>
inline constexpr bool packs_keys = false;
template <>
inline constexpr bool packs_keys<key_layout> = true;

template <template <int> class Layout, int Bits, int Shift>
void pack_plane(tile_codes codes, uint32_t* words) {
  if constexpr (packs_keys<Layout>) {
    pack_keys<Bits, Shift>(codes, words);
  } else {
    pack_values<Bits, Shift>(codes, words);
  }
}

/// @brief Writes every word of a tile side.
/// @param[out] words  [code_tile<Layout, Bits>::words(head_dim)]
template <template <int> class Layout, int Bits>
void pack_tile(tile_codes codes, uint32_t* words) {
  if constexpr (Bits == 3) {
    pack_plane<Layout, 2, 0>(codes, words);
    pack_plane<Layout, 1, 2>(codes, words + Layout<2>::words(codes.head_dim));
  } else {
    pack_plane<Layout, Bits, 0>(codes, words);
  }
}

/// The same for values in 16 bits. rows [32, head_dim]
template <template <int> class Layout>
void pack_wide_tile(const uint16_t* rows, int32_t head_dim, uint32_t* words) {
  if constexpr (packs_keys<Layout>) {
    pack_wide_keys(rows, head_dim, words);
  } else {
    pack_wide_values(rows, head_dim, words);
  }
}

}  // namespace zipcache::detail

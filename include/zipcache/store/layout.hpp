// The order of codes in a tile. This file is the only place that knows it; positions depend on
// token, channel and bits alone.
//
// A tile holds 32 tokens x head_dim channels of one class, first the keys, then the values, then
// the parameters that belong to those tokens. Codes lie in the operand order of a warp's matrix
// instruction: a lane (0..31) is 4 * g + t with g in 0..7 and t in 0..3, a lane's 16-byte load is
// four of its words, and the fields of a word are rows of the instruction, so that one AND makes
// several operands. Token n of the tile is written as 8 * octet + g.
//
//   keys, 1 to 8 bits    word (cb, ...): byte j holds channel 16*cb + 4*t + j; its fields are token
//   octets
//     8 bits             one octet a word                       words run over cb, then octet
//     4 bits             low nibble octet 0 (2), high 1 (3)     words run over cb, then octet pair
//     2 bits             crumb o is octet o                     words run over cb
//     1 bit              bit 4*(cb & 1) + octet                 words run over pairs of cb
//   values, 1 to 8 bits  word: its 16-bit half e holds token 16*h + 8*k + 2*t + e
//     8 bits             bytes are channels g, g+8              words run over k, h, channel block
//     of 16 4 bits             nibbles: (g, g+8) for k = 0, then 1    words run over h, channel
//     block of 16 2 bits             crumbs: (g, g+8, g+16, g+24) for k = 0, then 1      words run
//     over h, channel block of 32 1 bit              bits: the same four channels for (h, k) = 00,
//     10, 01, 11       words run over blocks of 32 A last block of 16 channels at 2 bits packs (g,
//     g+8) for (h, k) = 00, 10, 01, 11 in one word; at 1 bit its word is half empty, and empty bits
//     are 0.
//   3 bits               the two low bits as a 2-bit tile, then the high bit as a 1-bit tile
//   16 bits              the 16-bit values in operand order of m16n8k16, two to a word
//
// Words of a lane are numbered in the order given (the first index runs fastest). V neighbouring
// words of a lane lie together, V = the largest of 4, 2, 1 that divides their number W: word w of a
// lane is at word (w / V * 32 + lane) * V + w % V of the tile.
#pragma once

#include <cstddef>
#include <cstdint>

#include <zipcache/config.hpp>
#include <zipcache/core/numerics.hpp>
#include <zipcache/core/shape.hpp>
#include <zipcache/store/bit_pack.hpp>

namespace zipcache {

/// One tile word's place, from its lane and its number among the lane's `words_per_lane` words.
ZIPCACHE_HOST_DEVICE constexpr int32_t lane_word_index(int32_t lane, int32_t word,
                                                       int32_t words_per_lane) {
  const int32_t vector = words_per_lane % 4 == 0 ? 4 : (words_per_lane % 2 == 0 ? 2 : 1);
  return (word / vector * 32 + lane) * vector + word % vector;
}

/// The inverse: whose word, and its number among that lane's words.
struct lane_word {
  int32_t lane;
  int32_t word;
};
ZIPCACHE_HOST_DEVICE constexpr lane_word lane_word_of(int32_t index, int32_t words_per_lane) {
  const int32_t vector = words_per_lane % 4 == 0 ? 4 : (words_per_lane % 2 == 0 ? 2 : 1);
  return {index / vector % 32, index / (32 * vector) * vector + index % vector};
}

/// Whose value a field of a word holds.
struct tile_element {
  int32_t token;
  int32_t channel;  ///< head_dim or more in a field that stays empty
};

/// Keys of one tile at 1, 2, 4, 8 or 16 bits.
template <int Bits>
struct key_layout {
  static constexpr int32_t octets_per_word = Bits == 16 ? 1 : least(4, 8 / Bits);
  static constexpr int32_t blocks_per_word = Bits == 1 ? 2 : 1;

  ZIPCACHE_HOST_DEVICE static constexpr int32_t words_per_lane(int32_t head_dim) {
    const int32_t blocks = head_dim / 16;
    return Bits == 16 ? blocks * 8 : ceil_div(blocks, blocks_per_word) * (4 / octets_per_word);
  }
  ZIPCACHE_HOST_DEVICE static constexpr int32_t words(int32_t head_dim) {
    return words_per_lane(head_dim) * 32;
  }

  ZIPCACHE_HOST_DEVICE static constexpr code_position position(int32_t head_dim, int32_t token,
                                                               int32_t channel) {
    const int32_t block = channel / 16;
    const int32_t in_block = channel % 16;
    const int32_t row = token % 8;
    const int32_t octet = token / 8;
    if constexpr (Bits == 16) {
      // Operand A of m16n8k16: registers are (row, row + 8) x (columns 0..7, 8..15).
      const int32_t lane = row * 4 + in_block % 8 / 2;
      const int32_t word =
          (octet / 2 * (head_dim / 16) + block) * 4 + octet % 2 + 2 * (in_block / 8);
      return {lane_word_index(lane, word, words_per_lane(head_dim)), 16 * (in_block % 2)};
    } else {
      const int32_t lane = row * 4 + in_block / 4;
      const int32_t blocks = ceil_div(head_dim / 16, blocks_per_word);
      const int32_t word = octet / octets_per_word * blocks + block / blocks_per_word;
      const int32_t field = octet % octets_per_word + octets_per_word * (block % blocks_per_word);
      return {lane_word_index(lane, word, words_per_lane(head_dim)),
              8 * (in_block % 4) + Bits * field};
    }
  }

  /// The inverse of `position`, field f of a word being its bits [Bits * f, Bits * (f + 1)).
  ZIPCACHE_HOST_DEVICE static constexpr tile_element element(int32_t head_dim, int32_t index,
                                                             int32_t field) {
    return element(head_dim, lane_word_of(index, words_per_lane(head_dim)), field);
  }
  ZIPCACHE_HOST_DEVICE static constexpr tile_element element(int32_t head_dim, lane_word place,
                                                             int32_t field) {
    const int32_t row = place.lane / 4;
    if constexpr (Bits == 16) {
      const int32_t tile = place.word / 4;
      const int32_t octet = tile / (head_dim / 16) * 2 + place.word % 2;
      const int32_t in_block = place.word % 4 / 2 * 8 + place.lane % 4 * 2 + field;
      return {8 * octet + row, 16 * (tile % (head_dim / 16)) + in_block};
    } else {
      const int32_t blocks = ceil_div(head_dim / 16, blocks_per_word);
      const int32_t in_byte = field % (8 / Bits);
      const int32_t octet = place.word / blocks * octets_per_word + in_byte % octets_per_word;
      const int32_t block = place.word % blocks * blocks_per_word + in_byte / octets_per_word;
      return {8 * octet + row, 16 * block + place.lane % 4 * 4 + field / (8 / Bits)};
    }
  }
};

/// Values of one tile at 1, 2, 4, 8 or 16 bits.
template <int Bits>
struct value_layout {
  ZIPCACHE_HOST_DEVICE static constexpr int32_t words_per_lane(int32_t head_dim) {
    return Bits == 1 ? ceil_div(head_dim, 32) : head_dim * Bits / 32;
  }
  ZIPCACHE_HOST_DEVICE static constexpr int32_t words(int32_t head_dim) {
    return words_per_lane(head_dim) * 32;
  }

  ZIPCACHE_HOST_DEVICE static constexpr code_position position(int32_t head_dim, int32_t token,
                                                               int32_t channel) {
    const int32_t half_tile = token / 16;
    const int32_t upper = token % 16 / 8;
    const int32_t parity = token % 2;
    const int32_t lane = channel % 8 * 4 + token % 8 / 2;
    const int32_t block = channel / 16;
    const int32_t octet = channel % 16 / 8;
    int32_t word = 0;
    int32_t field = 0;
    if constexpr (Bits == 16) {
      word = (block * 2 + half_tile) * 4 + octet + 2 * upper;
    } else if constexpr (Bits == 8) {
      word = (block * 2 + half_tile) * 2 + upper;
      field = octet;
    } else if constexpr (Bits == 4) {
      word = block * 2 + half_tile;
      field = octet + 2 * upper;
    } else if constexpr (Bits == 2) {
      const bool paired = channel < head_dim / 32 * 32;
      word = block / 2 * 2 + (paired ? half_tile : 0);
      field = paired ? octet + 2 * (block % 2) + 4 * upper : octet + 2 * half_tile + 4 * upper;
    } else {
      word = block / 2;
      field = octet + 2 * (block % 2) + 4 * half_tile + 8 * upper;
    }
    return {lane_word_index(lane, word, words_per_lane(head_dim)),
            16 * parity + (Bits == 16 ? 0 : Bits * field)};
  }

  /// The inverse of `position`, field f of a word being its bits [Bits * f, Bits * (f + 1)).
  ZIPCACHE_HOST_DEVICE static constexpr tile_element element(int32_t head_dim, int32_t index,
                                                             int32_t field) {
    return element(head_dim, lane_word_of(index, words_per_lane(head_dim)), field);
  }
  ZIPCACHE_HOST_DEVICE static constexpr tile_element element(int32_t head_dim, lane_word place,
                                                             int32_t field) {
    const int32_t parity = field / (16 / Bits);
    const int32_t in_half = field % (16 / Bits);
    int32_t block = 0;
    int32_t half_tile = 0;
    int32_t octet = in_half % 2;
    int32_t upper = 0;
    if constexpr (Bits == 16) {
      block = place.word / 8;
      half_tile = place.word / 4 % 2;
      octet = place.word % 2;
      upper = place.word % 4 / 2;
    } else if constexpr (Bits == 8) {
      block = place.word / 4;
      half_tile = place.word / 2 % 2;
      upper = place.word % 2;
    } else if constexpr (Bits == 4) {
      block = place.word / 2;
      half_tile = place.word % 2;
      upper = in_half / 2;
    } else if constexpr (Bits == 2) {
      const bool paired = place.word / 2 < head_dim / 32;
      block = place.word / 2 * 2 + (paired ? in_half / 2 % 2 : 0);
      half_tile = paired ? place.word % 2 : in_half / 2 % 2;
      upper = in_half / 4;
    } else {
      block = place.word * 2 + in_half / 2 % 2;
      half_tile = in_half / 4 % 2;
      upper = in_half / 8;
    }
    return {16 * half_tile + 8 * upper + place.lane % 4 * 2 + parity,
            16 * block + 8 * octet + place.lane / 4};
  }
};

/// One side (keys or values) of a tile at any supported number of bits. 3 bits are two planes of 2
/// and 1; 0 bits (evicted tokens) take no room.
template <template <int> class Layout, int Bits>
struct code_tile {
  static_assert(Bits == 0 || Bits == 1 || Bits == 2 || Bits == 3 || Bits == 4 || Bits == 8 ||
                    Bits == 16,
                "zipcache: codes have 0, 1, 2, 3, 4, 8 or 16 bits");

  ZIPCACHE_HOST_DEVICE static constexpr int32_t words(int32_t head_dim) {
    if constexpr (Bits == 0) {
      return 0;
    } else if constexpr (Bits == 3) {
      return Layout<2>::words(head_dim) + Layout<1>::words(head_dim);
    } else {
      return Layout<Bits>::words(head_dim);
    }
  }

  ZIPCACHE_HOST_DEVICE static uint32_t load(const uint32_t* tile, int32_t head_dim, int32_t token,
                                            int32_t channel) {
    if constexpr (Bits == 3) {
      const code_position low = Layout<2>::position(head_dim, token, channel);
      const code_position high = Layout<1>::position(head_dim, token, channel);
      return bit_pack<2>::extract(tile[low.word], low.shift) |
             bit_pack<1>::extract(tile[Layout<2>::words(head_dim) + high.word], high.shift) << 2;
    } else {
      const code_position p = Layout<Bits>::position(head_dim, token, channel);
      return bit_pack<Bits>::extract(tile[p.word], p.shift);
    }
  }

  /// Writes one code. Codes of one word must be written by one thread.
  ZIPCACHE_HOST_DEVICE static void save(uint32_t* tile, int32_t head_dim, int32_t token,
                                        int32_t channel, uint32_t code) {
    if constexpr (Bits == 3) {
      const code_position low = Layout<2>::position(head_dim, token, channel);
      const code_position high = Layout<1>::position(head_dim, token, channel);
      uint32_t& high_word = tile[Layout<2>::words(head_dim) + high.word];
      tile[low.word] = bit_pack<2>::insert(tile[low.word], low.shift, code);
      high_word = bit_pack<1>::insert(high_word, high.shift, code >> 2);
    } else {
      const code_position p = Layout<Bits>::position(head_dim, token, channel);
      tile[p.word] = bit_pack<Bits>::insert(tile[p.word], p.shift, code);
    }
  }
};

/// A token's place among the parameters of its tile: octets of one row lie together, so that a lane
/// that scores tokens g, g + 8, g + 16 and g + 24 reads their four pairs in one 16-byte load.
ZIPCACHE_HOST_DEVICE constexpr int32_t token_parameter_slot(int32_t token) {
  return token % 8 * 4 + token / 8;
}

/// Where the zero of a token's compact pair lies: tokens 2 n and 2 n + 1 share a byte, and the
/// bytes of one row's octets lie together, as its steps do.
struct compact_zero_place {
  int32_t byte;
  int32_t shift;
};
ZIPCACHE_HOST_DEVICE constexpr compact_zero_place compact_zero_place_of(int32_t token) {
  return {token % 8 / 2 * 4 + token / 8, 4 * (token % 2)};
}

static_assert(key_layout<4>::words(128) * 4 == 2048 && key_layout<2>::words(128) * 4 == 1024,
              "zipcache: a 4-bit key tile of 128 channels has 2048 bytes, a 2-bit one 1024");
static_assert(value_layout<4>::words(128) * 4 == 2048 && value_layout<2>::words(80) * 4 == 640,
              "zipcache: value tiles have no padding at 2 bits and more");

}  // namespace zipcache

// The order of codes in a tile: a bijection at every number of bits and head_dim, and the table of
// layout.hpp spot-checked with numbers worked out by hand.
#include <set>
#include <vector>

#include <zipcache/store/layout.hpp>

#include "support/catch.hpp"
#include "support/generators.hpp"

using namespace zipcache;

namespace {

/// No two codes of a tile share a bit, none lies outside, and the number of unused bits is
/// `unused`.
template <template <int> class Layout, int Bits>
void check_bijection(int32_t head_dim, int64_t unused) {
  INFO(Bits << " bits, head_dim " << head_dim);
  std::vector<uint32_t> taken(static_cast<size_t>(Layout<Bits>::words(head_dim)), 0);
  for (int32_t token = 0; token < tile_tokens; ++token) {
    for (int32_t channel = 0; channel < head_dim; ++channel) {
      const code_position p = Layout<Bits>::position(head_dim, token, channel);
      REQUIRE(p.word >= 0);
      REQUIRE(p.word < static_cast<int32_t>(taken.size()));
      REQUIRE(p.shift >= 0);
      REQUIRE(p.shift + Bits <= 32);
      REQUIRE(p.shift % Bits == 0);
      const uint32_t field = bit_pack<Bits>::mask << p.shift;
      REQUIRE((taken[static_cast<size_t>(p.word)] & field) == 0);
      taken[static_cast<size_t>(p.word)] |= field;
    }
  }
  CHECK(static_cast<int64_t>(taken.size()) * 32 - int64_t{32} * head_dim * Bits == unused);
}

/// `element` is the inverse of `position`, and says which fields stay empty.
template <template <int> class Layout, int Bits>
void check_inverse(int32_t head_dim) {
  INFO(Bits << " bits, head_dim " << head_dim);
  int64_t wrong = 0;
  int64_t filled = 0;
  for (int32_t word = 0; word < Layout<Bits>::words(head_dim); ++word) {
    for (int32_t field = 0; field < 32 / Bits; ++field) {
      const tile_element e = Layout<Bits>::element(head_dim, word, field);
      if (e.channel >= head_dim) continue;
      const code_position p = Layout<Bits>::position(head_dim, e.token, e.channel);
      ++filled;
      wrong += p.word == word && p.shift == Bits * field ? 0 : 1;
    }
  }
  CHECK(wrong == 0);
  CHECK(filled == int64_t{32} * head_dim);
}

/// Codes of the largest and of random values survive a full tile.
template <template <int> class Layout, int Bits>
void check_round_trip(int32_t head_dim) {
  using tile = code_tile<Layout, Bits>;
  INFO(Bits << " bits, head_dim " << head_dim);
  // A guard word behind the tile.
  std::vector<uint32_t> words(static_cast<size_t>(tile::words(head_dim)) + 1, 0xdeadbeefu);
  zipcache_test::random_numbers random(Bits);
  std::vector<uint32_t> codes;
  for (int32_t i = 0; i < 32 * head_dim; ++i)
    codes.push_back(static_cast<uint32_t>(random.bits()) & ((1u << Bits) - 1u));
  for (int32_t token = 0; token < tile_tokens; ++token)
    for (int32_t channel = 0; channel < head_dim; ++channel)
      tile::save(words.data(), head_dim, token, channel,
                 codes[static_cast<size_t>(token * head_dim + channel)]);
  int64_t wrong = 0;
  for (int32_t token = 0; token < tile_tokens; ++token)
    for (int32_t channel = 0; channel < head_dim; ++channel)
      wrong += tile::load(words.data(), head_dim, token, channel) ==
                       codes[static_cast<size_t>(token * head_dim + channel)]
                   ? 0
                   : 1;
  CHECK(wrong == 0);
  CHECK(words.back() == 0xdeadbeefu);
}

template <int Bits>
code_position key_at(int32_t token, int32_t channel, int32_t head_dim = 128) {
  return key_layout<Bits>::position(head_dim, token, channel);
}
template <int Bits>
code_position value_at(int32_t token, int32_t channel, int32_t head_dim = 128) {
  return value_layout<Bits>::position(head_dim, token, channel);
}
bool is_at(code_position p, int32_t word, int32_t shift) {
  return p.word == word && p.shift == shift;
}

}  // namespace

TEMPLATE_TEST_CASE_SIG("store: positions are a bijection into the tile for every head_dim",
                       "[store][layout]", ((int Bits), Bits), 1, 2, 4, 8, 16) {
  for (int32_t head_dim = 16; head_dim <= 256; head_dim += 16) {
    // At 1 bit two blocks of 16 channels share words, so an odd last block leaves half of them
    // empty.
    const int64_t unused = Bits == 1 && head_dim % 32 != 0 ? 32 * 16 : 0;
    check_bijection<key_layout, Bits>(head_dim, unused);
    check_bijection<value_layout, Bits>(head_dim, unused);
  }
}

TEMPLATE_TEST_CASE_SIG("store: from a word's field back to its token and channel",
                       "[store][layout]", ((int Bits), Bits), 1, 2, 4, 8, 16) {
  for (int32_t head_dim = 16; head_dim <= 256; head_dim += 16) {
    check_inverse<key_layout, Bits>(head_dim);
    check_inverse<value_layout, Bits>(head_dim);
  }
}

TEMPLATE_TEST_CASE_SIG("store: a full tile comes out as it went in", "[store][layout]",
                       ((int Bits), Bits), 1, 2, 3, 4, 8, 16) {
  for (int32_t head_dim = 16; head_dim <= 256; head_dim += 16) {
    check_round_trip<key_layout, Bits>(head_dim);
    check_round_trip<value_layout, Bits>(head_dim);
  }
}

TEST_CASE("store: 3 bits are the 2-bit tile of the low bits, then the 1-bit tile of the high one",
          "[store][layout]") {
  constexpr int32_t head_dim = 48;
  using tile = code_tile<key_layout, 3>;
  const int32_t low_words = key_layout<2>::words(head_dim);
  CHECK(tile::words(head_dim) == low_words + key_layout<1>::words(head_dim));
  for (const auto& [token, channel] : {std::pair{0, 0}, {31, 47}, {13, 20}}) {
    std::vector<uint32_t> words(static_cast<size_t>(tile::words(head_dim)), 0);
    tile::save(words.data(), head_dim, token, channel, 4);
    const code_position low = key_layout<2>::position(head_dim, token, channel);
    const code_position high = key_layout<1>::position(head_dim, token, channel);
    CHECK(words[static_cast<size_t>(low.word)] == 0);
    CHECK(words[static_cast<size_t>(low_words + high.word)] == 1u << high.shift);
    tile::save(words.data(), head_dim, token, channel, 3);
    CHECK(words[static_cast<size_t>(low.word)] == 3u << low.shift);
    CHECK(words[static_cast<size_t>(low_words + high.word)] == 0);
  }
}

TEST_CASE("store: evicted tokens take no room", "[store][layout]") {
  CHECK(code_tile<key_layout, 0>::words(128) == 0);
  CHECK(code_tile<value_layout, 0>::words(256) == 0);
}

TEST_CASE("store: tiles have the documented sizes", "[store][layout]") {
  CHECK(key_layout<8>::words(128) * 4 == 4096);
  CHECK(key_layout<4>::words(128) * 4 == 2048);
  CHECK(key_layout<2>::words(128) * 4 == 1024);
  CHECK(key_layout<1>::words(128) * 4 == 512);
  CHECK(key_layout<16>::words(128) * 4 == 8192);
  CHECK(key_layout<1>::words(48) * 4 == 256);  // one and a half pairs of blocks
  CHECK(value_layout<2>::words(80) * 4 == 640);
  CHECK(code_tile<value_layout, 3>::words(128) * 4 == 1536);
}

// By hand from the table: token 13 = 8 * 1 + 5 is octet 1, row g = 5. Channel 38 = 16 * 2 + 4 * 1 +
// 2 is channel block 2, t = 1, byte 2; the lane is 4 * 5 + 1 = 21.
TEST_CASE("store: key codes lie where the format's table says", "[store][layout]") {
  // 8 words a lane at 2 bits: word 2 of the lane is in the first vector of four.
  CHECK(is_at(key_at<2>(13, 38), 21 * 4 + 2, 8 * 2 + 2 * 1));
  // 16 words a lane at 4 bits; octet 1 is the high nibble of octet pair 0.
  CHECK(is_at(key_at<4>(13, 38), 21 * 4 + 2, 8 * 2 + 4));
  // Octet 3 of the same row is in pair 1: word 8 + 2 = 10, so the third vector.
  CHECK(is_at(key_at<4>(29, 38), (10 / 4 * 32 + 21) * 4 + 10 % 4, 8 * 2 + 4));
  // 32 words a lane at 8 bits, one octet each: word 8 + 2.
  CHECK(is_at(key_at<8>(13, 38), (10 / 4 * 32 + 21) * 4 + 10 % 4, 16));
  // 1 bit: block 2 is the even half of pair 1.
  CHECK(is_at(key_at<1>(13, 38), 21 * 4 + 1, 16 + 1));
  CHECK(is_at(key_at<1>(13, 54), 21 * 4 + 1, 16 + 4 + 1));
  // 16 bits, m16n8k16 A: channel 38 is in-block 6, lane 5 * 4 + 6 / 2 = 23; register octet 1 + 0.
  CHECK(is_at(key_at<16>(13, 38), (9 / 4 * 32 + 23) * 4 + 9 % 4, 0));
  CHECK(is_at(key_at<16>(13, 39), (9 / 4 * 32 + 23) * 4 + 9 % 4, 16));
}

// Token 29 = 16 * 1 + 8 * 1 + 2 * 2 + 1: h = 1, k = 1, t = 2, e = 1. Channel 43 = 32 + 8 + 3 is
// block 2, upper octet, g = 3; the lane is 4 * 3 + 2 = 14.
TEST_CASE("store: value codes lie where the format's table says", "[store][layout]") {
  CHECK(is_at(value_at<8>(29, 43), (11 / 4 * 32 + 14) * 4 + 11 % 4, 16 + 8));
  CHECK(is_at(value_at<4>(29, 43), (5 / 4 * 32 + 14) * 4 + 5 % 4, 16 + 4 * 3));
  // Channel block of 32 number 1; of its channels g, g+8, g+16, g+24 this is the second.
  CHECK(is_at(value_at<2>(29, 43), 14 * 4 + 3, 16 + 2 * (1 + 4)));
  CHECK(is_at(value_at<2>(29, 59), 14 * 4 + 3, 16 + 2 * (3 + 4)));
  // (h, k) = 11 is the fourth of 00, 10, 01, 11.
  CHECK(is_at(value_at<1>(29, 43), 14 * 4 + 1, 16 + 1 + 4 * 3));
  CHECK(is_at(value_at<1>(21, 43), 14 * 4 + 1, 16 + 1 + 4 * 1));  // h = 1, k = 0
}

TEST_CASE("store: a last block of 16 channels at 2 bits packs both halves of the tokens",
          "[store][layout]") {
  // head_dim 48: 3 words a lane, so vectors of one; channel 43 is in the odd block 2.
  CHECK(is_at(value_at<2>(29, 43, 48), 2 * 32 + 14, 16 + 2 * (1 + 2 + 4)));
  CHECK(is_at(value_at<2>(13, 43, 48), 2 * 32 + 14, 16 + 2 * (1 + 0 + 4)));
  CHECK(is_at(value_at<2>(21, 43, 48), 2 * 32 + 14, 16 + 2 * (1 + 2 + 0)));
}

TEST_CASE("store: a token's parameter slot is a permutation of 32 with octets together",
          "[store][layout]") {
  std::set<int32_t> slots;
  for (int32_t token = 0; token < 32; ++token) slots.insert(token_parameter_slot(token));
  CHECK(slots.size() == 32);
  CHECK(*slots.begin() == 0);
  CHECK(*slots.rbegin() == 31);
  for (int32_t row = 0; row < 8; ++row)
    for (int32_t octet = 0; octet < 4; ++octet)
      CHECK(token_parameter_slot(8 * octet + row) == 4 * row + octet);
}

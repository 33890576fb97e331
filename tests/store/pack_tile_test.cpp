// Whole tiles packed at once against the definition, code_tile::save.
#include <cstdint>
#include <vector>

#include <zipcache/store/pack_tile.hpp>

#include "support/catch.hpp"
#include "support/generators.hpp"

using namespace zipcache;

namespace {

/// Words that start as garbage, so that one that is not written shows.
std::vector<uint32_t> unwritten(int32_t count) {
  return std::vector<uint32_t>(static_cast<size_t>(count), 0xdeadbeefu);
}

template <template <int> class Layout, int Bits>
void check_layout(int32_t head_dim) {
  INFO(Bits << " bits, " << head_dim << " channels");
  using tile = code_tile<Layout, Bits>;
  zipcache_test::random_numbers random(static_cast<uint64_t>(Bits * 1000 + head_dim));
  std::vector<uint16_t> codes(static_cast<size_t>(32 * head_dim));
  for (uint16_t& code : codes) code = static_cast<uint16_t>(random.below(1 << Bits));
  std::vector<uint32_t> expected(static_cast<size_t>(tile::words(head_dim)), 0);
  for (int32_t token = 0; token < 32; ++token)
    for (int32_t channel = 0; channel < head_dim; ++channel)
      tile::save(expected.data(), head_dim, token, channel,
                 codes[static_cast<size_t>(token * head_dim + channel)]);
  std::vector<uint32_t> packed = unwritten(tile::words(head_dim));
  if constexpr (Bits == 16) {
    detail::pack_wide_tile<Layout>(codes.data(), head_dim, packed.data());
  } else {
    const std::vector<uint8_t> bytes(codes.begin(), codes.end());
    detail::pack_tile<Layout, Bits>({bytes.data(), head_dim}, packed.data());
  }
  CHECK(packed == expected);
}

template <int Bits>
void check_both_sides() {
  for (int32_t head_dim = 16; head_dim <= 256; head_dim += 16) {
    check_layout<key_layout, Bits>(head_dim);
    check_layout<value_layout, Bits>(head_dim);
  }
}

}  // namespace

TEST_CASE("store: a tile packed at once has the words of codes saved one by one",
          "[store][pack_tile]") {
  check_both_sides<1>();
  check_both_sides<2>();
  check_both_sides<3>();
  check_both_sides<4>();
  check_both_sides<8>();
  check_both_sides<16>();
}

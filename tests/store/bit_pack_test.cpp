#include <zipcache/store/bit_pack.hpp>

#include "support/catch.hpp"
#include "support/generators.hpp"

using namespace zipcache;

TEMPLATE_TEST_CASE_SIG("store: a code comes out as it went in, and its neighbours stay",
                       "[store][bit_pack]", ((int Bits), Bits), 1, 2, 4, 8, 16) {
  zipcache_test::random_numbers random(Bits);
  for (int round = 0; round < 200; ++round) {
    const uint32_t before = static_cast<uint32_t>(random.bits());
    for (int32_t shift = 0; shift < 32; shift += Bits) {
      const uint32_t code = static_cast<uint32_t>(random.bits()) & bit_pack<Bits>::mask;
      const uint32_t after = bit_pack<Bits>::insert(before, shift, code);
      REQUIRE(bit_pack<Bits>::extract(after, shift) == code);
      for (int32_t other = 0; other < 32; other += Bits) {
        if (other == shift) continue;
        REQUIRE(bit_pack<Bits>::extract(after, other) == bit_pack<Bits>::extract(before, other));
      }
    }
  }
}

TEST_CASE("store: a code that is too large does not reach its neighbour", "[store][bit_pack]") {
  CHECK(bit_pack<4>::insert(0, 4, 0xffu) == 0xf0u);
  CHECK(bit_pack<2>::insert(0xffffffffu, 2, 4u) == 0xfffffff3u);
}

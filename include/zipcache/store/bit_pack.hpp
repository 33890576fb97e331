// Putting a code into a 32-bit word and taking it out.
#pragma once

#include <cstdint>

#include <zipcache/config.hpp>

namespace zipcache {

/// Where one code's bits lie: which word, and how far they are shifted in it.
struct code_position {
  int32_t word;
  int32_t shift;
};

template <int Bits>
struct bit_pack {
  static_assert(Bits == 1 || Bits == 2 || Bits == 4 || Bits == 8 || Bits == 16,
                "zipcache: a field of a word has 1, 2, 4, 8 or 16 bits");
  static constexpr uint32_t mask = (1u << Bits) - 1u;

  ZIPCACHE_HOST_DEVICE static uint32_t insert(uint32_t word, int32_t shift, uint32_t code) {
    return (word & ~(mask << shift)) | ((code & mask) << shift);
  }
  ZIPCACHE_HOST_DEVICE static uint32_t extract(uint32_t word, int32_t shift) {
    return (word >> shift) & mask;
  }
};

}  // namespace zipcache

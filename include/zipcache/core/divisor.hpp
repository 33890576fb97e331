// Division by a number that the host knows, as a product and a shift: what indices of work are
// taken apart with on the device, where a division takes some twenty instructions.
#pragma once

#include <cstdint>

#include <zipcache/config.hpp>

namespace zipcache {

/// Divides numbers in [0, 2^31) by `value`, 1 at least. With 2^l the power of two that is not less
/// than it, n / value = floor(n * (floor(2^(31 + l) / value) + 1) / 2^(31 + l)): the product is
/// too large by n / 2^(31 + l) < 1 / value at most, and n / value is that far from the next
/// integer.
struct divisor {
  int32_t value = 1;
  int32_t shift = 31;
  uint32_t factor = 0x80000001u;

  divisor() = default;
  explicit divisor(int32_t divide_by) : value(divide_by) {
    while ((int64_t{1} << (shift - 31)) < value) ++shift;
    // Of one there is 2^31 + 1; of more the factor has 32 bits at most.
    factor = static_cast<uint32_t>((uint64_t{1} << shift) / static_cast<uint64_t>(value) + 1);
  }

  ZIPCACHE_HOST_DEVICE int32_t quotient(int32_t n) const {
    return static_cast<int32_t>(static_cast<uint64_t>(static_cast<uint32_t>(n)) * factor >> shift);
  }
};

}  // namespace zipcache

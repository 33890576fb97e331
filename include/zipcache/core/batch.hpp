// Several sequences in one call.
#pragma once

#include <cstdint>

namespace zipcache {

/// Sequences [first, first + count).
struct sequence_batch {
  int32_t first = 0;
  int32_t count = 1;
};

}  // namespace zipcache

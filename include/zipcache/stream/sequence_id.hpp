// The name of a sequence, the same on both backends.
#pragma once

#include <cstdint>

namespace zipcache {

/// Names a sequence of one cache. Ids of released sequences are recognized and refused.
struct sequence_id {
  uint32_t index = 0xffffffffu;
  uint32_t generation = 0;
  bool operator==(const sequence_id&) const = default;
};

}  // namespace zipcache

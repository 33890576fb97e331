// Seeded random numbers that are the same on every platform and standard library (the distributions
// of <random> are not).
#pragma once

#include <cstdint>

namespace zipcache_llama {

// SplitMix64: a counter through a bijective mix.
class random_stream {
 public:
  explicit random_stream(std::uint64_t seed) : state_(seed) {}

  std::uint64_t next() {
    state_ += 0x9E3779B97F4A7C15U;
    std::uint64_t z = state_;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9U;
    z = (z ^ z >> 27) * 0x94D049BB133111EBU;
    return z ^ z >> 31;
  }

  // In [0, 1), all 53 bits of a double's fraction.
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }

  // In [0, bound). @pre bound > 0. The lowest remainders are dropped, so that no number is more
  // likely than another.
  std::uint64_t below(std::uint64_t bound) {
    const std::uint64_t uneven = (0 - bound) % bound;  // 2^64 mod bound
    std::uint64_t drawn = next();
    while (drawn < uneven) {
      drawn = next();
    }
    return drawn % bound;
  }

 private:
  std::uint64_t state_;
};

}  // namespace zipcache_llama

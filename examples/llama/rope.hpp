// Rotary position embedding: the pair i of a head's channels is turned by position · base^(−2i /
// rope_dim).
#pragma once

#include <cmath>
#include <cstddef>
#include <span>
#include <vector>

#include "hyper_parameters.hpp"

namespace zipcache_llama {

// Cosine and sine of every angle for positions [start, start + len), computed in double: at
// position 8192 a float angle would be off by its own rounding.
class rope_table {
 public:
  rope_table(const hyper_parameters& parameters, std::span<const float> divisors, int start,
             int len)
      : layout_(parameters.rope), pairs_(static_cast<std::size_t>(parameters.rope_dim) / 2) {
    const auto count = static_cast<std::size_t>(len);
    cosines_.resize(count * pairs_);
    sines_.resize(count * pairs_);
    for (std::size_t pair = 0; pair < pairs_; ++pair) {
      const double exponent = -2.0 * static_cast<double>(pair) / parameters.rope_dim;
      const double divisor = divisors.empty() ? 1.0 : static_cast<double>(divisors[pair]);
      const double frequency = std::pow(parameters.rope_base, exponent) / divisor;
      for (std::size_t token = 0; token < count; ++token) {
        const double angle = (static_cast<double>(start) + static_cast<double>(token)) * frequency;
        cosines_[token * pairs_ + pair] = static_cast<float>(std::cos(angle));
        sines_[token * pairs_ + pair] = static_cast<float>(std::sin(angle));
      }
    }
  }

  // Turns one head of the token at start + `token`, in place.
  void turn(std::size_t token, float* head) const {
    const float* cosine = cosines_.data() + token * pairs_;
    const float* sine = sines_.data() + token * pairs_;
    const bool interleaved = layout_ == rope_layout::interleaved;
    const std::size_t step = interleaved ? 2 : 1;
    const std::size_t distance = interleaved ? 1 : pairs_;
    for (std::size_t pair = 0; pair < pairs_; ++pair) {
      float& x = head[pair * step];
      float& y = head[pair * step + distance];
      const float turned = x * cosine[pair] - y * sine[pair];
      y = x * sine[pair] + y * cosine[pair];
      x = turned;
    }
  }

 private:
  rope_layout layout_;
  std::size_t pairs_;
  std::vector<float> cosines_;  // [len, pairs]
  std::vector<float> sines_;    // [len, pairs]
};

}  // namespace zipcache_llama

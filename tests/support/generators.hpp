// Inputs for tests: seeded tensors with the shapes that break quantizers. The numbers come from
// std::mt19937_64, whose sequence the standard fixes, and are the same on every platform up to the
// rounding of log and cos.
#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include <zipcache/core/types.hpp>

namespace zipcache_test {

class random_numbers {
 public:
  explicit random_numbers(uint64_t seed) : engine_(seed) {}

  double uniform() { return static_cast<double>(engine_() >> 11) * 0x1p-53; }
  double uniform(double low, double high) { return low + (high - low) * uniform(); }
  double normal() {
    const double radius = std::sqrt(-2.0 * std::log(1.0 - uniform()));
    return radius * std::cos(6.283185307179586 * uniform());
  }
  int64_t below(int64_t bound) {
    return static_cast<int64_t>(engine_() % static_cast<uint64_t>(bound));
  }
  uint64_t bits() { return engine_(); }

 private:
  std::mt19937_64 engine_;
};

enum class content {
  gaussian,
  outlier_channels,   // every 13th channel is a hundred times larger, as in keys of real models
  token_norms,        // every 7th token is fifty times larger
  sinks,              // the first four tokens are a thousandth
  constant_channels,  // half of the channels are constant, a quarter zero
  signed_zeros,       // +0 and -0 only
  denormals,          // subnormal in half
  off_centre,         // all in [5, 6]
  tiny_range,         // 3 plus a few units of the last place
  extremes            // +-65504 among ordinary values
};

inline constexpr content all_contents[] = {
    content::gaussian,  content::outlier_channels,  content::token_norms,
    content::sinks,     content::constant_channels, content::signed_zeros,
    content::denormals, content::off_centre,        content::tiny_range,
    content::extremes,
};

inline const char* name_of(content what) {
  constexpr const char* names[] = {
      "gaussian",     "outlier channels", "token norms", "sinks",      "constant channels",
      "signed zeros", "denormals",        "off centre",  "tiny range", "extremes"};
  return names[static_cast<int>(what)];
}

/// [num_heads, num_tokens, head_dim], contiguous.
inline std::vector<float> make_values(content what, int32_t num_heads, int64_t num_tokens,
                                      int32_t head_dim, uint64_t seed) {
  random_numbers random(seed);
  std::vector<float> values;
  for (int32_t head = 0; head < num_heads; ++head) {
    for (int64_t token = 0; token < num_tokens; ++token) {
      for (int32_t channel = 0; channel < head_dim; ++channel) {
        double x = random.normal();
        switch (what) {
          case content::gaussian:
            break;
          case content::outlier_channels:
            x *= channel % 13 == 5 ? 100.0 : 1.0;
            break;
          case content::token_norms:
            x *= token % 7 == 3 ? 50.0 : 1.0;
            break;
          case content::sinks:
            x *= token < 4 ? 1e-3 : 1.0;
            break;
          case content::constant_channels:
            x = channel % 4 == 0 ? 0.0 : channel % 2 == 0 ? 1.5 + channel : x;
            break;
          case content::signed_zeros:
            x = x < 0.0 ? -0.0 : 0.0;
            break;
          case content::denormals:
            x *= 0x1p-18;
            break;
          case content::off_centre:
            x = random.uniform(5.0, 6.0);
            break;
          case content::tiny_range:
            x = 3.0 + static_cast<double>(random.below(3)) * 0x1p-9;
            break;
          case content::extremes:
            x = random.below(9) == 0 ? (x < 0.0 ? -65504.0 : 65504.0) : x;
            break;
        }
        values.push_back(static_cast<float>(x));
      }
    }
  }
  return values;
}

template <class Element>
std::vector<Element> round_to(const std::vector<float>& values) {
  std::vector<Element> rounded;
  for (const float x : values) rounded.push_back(zipcache::from_float<Element>(x));
  return rounded;
}

template <class Element>
std::vector<Element> make_tensor(content what, int32_t num_heads, int64_t num_tokens,
                                 int32_t head_dim, uint64_t seed) {
  return round_to<Element>(make_values(what, num_heads, num_tokens, head_dim, seed));
}

/// `count` of [0, num_tokens), ascending.
inline std::vector<int32_t> random_subset(int64_t num_tokens, int64_t count, uint64_t seed) {
  random_numbers random(seed);
  std::vector<int32_t> chosen;
  int64_t left = count;
  for (int64_t token = 0; token < num_tokens; ++token) {
    if (random.below(num_tokens - token) < left) {
      chosen.push_back(static_cast<int32_t>(token));
      --left;
    }
  }
  return chosen;
}

}  // namespace zipcache_test

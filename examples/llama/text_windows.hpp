// Seeded windows of a text.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include "random.hpp"

namespace zipcache_llama {

// How many windows of `length` tokens a text has that do not overlap.
inline std::size_t num_windows(std::size_t num_tokens, std::size_t length) {
  return num_tokens / length;
}

// `count` of them, drawn without replacement, in the order of the text. @pre count <= num_windows
inline std::vector<std::span<const int>> draw_windows(std::span<const int> tokens,
                                                      std::size_t length, std::size_t count,
                                                      std::uint64_t seed) {
  std::vector<std::size_t> places(num_windows(tokens.size(), length));
  std::iota(places.begin(), places.end(), std::size_t{0});
  random_stream random(seed);
  for (std::size_t i = 0; i < count; ++i) {
    std::swap(places[i], places[i + random.below(places.size() - i)]);
  }
  places.resize(count);
  std::sort(places.begin(), places.end());
  std::vector<std::span<const int>> windows;
  for (const std::size_t place : places) {
    windows.push_back(tokens.subspan(place * length, length));
  }
  return windows;
}

}  // namespace zipcache_llama

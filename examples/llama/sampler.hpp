// Picks the next token from a row of logits.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <span>
#include <vector>

#include "random.hpp"
#include "statistics.hpp"

namespace zipcache_llama {

struct sampling {
  float temperature = 0;  // 0: the most likely token
  float top_p = 1;        // the most likely tokens that together have this probability
  std::uint64_t seed = 0;
};

class sampler {
 public:
  explicit sampler(const sampling& settings) : settings_(settings), random_(settings.seed) {}

  int pick(std::span<const float> logits) {
    if (!(settings_.temperature > 0)) {
      return most_likely(logits);
    }
    order_.resize(logits.size());
    std::iota(order_.begin(), order_.end(), std::size_t{0});
    std::stable_sort(order_.begin(), order_.end(),
                     [&](std::size_t a, std::size_t b) { return logits[a] > logits[b]; });

    weights_.clear();
    double total = 0;
    for (const std::size_t token : order_) {
      const double distance =
          static_cast<double>(logits[token]) - static_cast<double>(logits[order_[0]]);
      weights_.push_back(std::exp(distance / static_cast<double>(settings_.temperature)));
      total += weights_.back();
    }
    double kept = 0;
    std::size_t count = 0;
    while (count < weights_.size() &&
           (count == 0 || kept < static_cast<double>(settings_.top_p) * total)) {
      kept += weights_[count++];
    }
    double left = random_.uniform() * kept;
    std::size_t i = 0;
    while (i + 1 < count && left >= weights_[i]) {
      left -= weights_[i++];
    }
    return static_cast<int>(order_[i]);
  }

 private:
  sampling settings_;
  random_stream random_;
  std::vector<std::size_t> order_;
  std::vector<double> weights_;
};

}  // namespace zipcache_llama

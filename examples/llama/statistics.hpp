// What is reported about a comparison, computed in double.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <stdexcept>
#include <vector>

#include "random.hpp"

namespace zipcache_llama {

// NaN for no values.
inline double mean(std::span<const double> values) {
  double sum = 0;
  for (const double value : values) {
    sum += value;
  }
  return sum / static_cast<double>(values.size());
}

struct interval {
  double mean = 0;
  double low = 0;
  double high = 0;
};

// Percentile bootstrap of the mean: the middle `level` of the means of `resamples` samples drawn
// with replacement. Values have to be independent of each other (documents, not neighbouring
// tokens).
inline interval bootstrap_interval(std::span<const double> values, std::uint64_t seed,
                                   int resamples = 2000, double level = 0.95) {
  if (values.empty() || resamples < 1) {
    throw std::invalid_argument("bootstrap_interval: needs values and at least one resample");
  }
  random_stream random(seed);
  std::vector<double> means(static_cast<std::size_t>(resamples));
  for (double& resampled : means) {
    double sum = 0;
    for (std::size_t i = 0; i < values.size(); ++i) {
      sum += values[random.below(values.size())];
    }
    resampled = sum / static_cast<double>(values.size());
  }
  std::sort(means.begin(), means.end());
  const auto quantile = [&means](double q) {  // linear between order statistics
    const double position = q * static_cast<double>(means.size() - 1);
    const auto below = static_cast<std::size_t>(position);
    const std::size_t above = std::min(below + 1, means.size() - 1);
    return means[below] + (position - static_cast<double>(below)) * (means[above] - means[below]);
  };
  return {mean(values), quantile((1 - level) / 2), quantile((1 + level) / 2)};
}

// Of the mean of a − b, resampling pairs: what two policies share on the same text cancels.
inline interval paired_difference_interval(std::span<const double> a, std::span<const double> b,
                                           std::uint64_t seed, int resamples = 2000,
                                           double level = 0.95) {
  if (a.size() != b.size()) {
    throw std::invalid_argument("paired_difference_interval: needs pairs");
  }
  std::vector<double> differences(a.size());
  std::transform(a.begin(), a.end(), b.begin(), differences.begin(),
                 [](double x, double y) { return x - y; });
  return bootstrap_interval(differences, seed, resamples, level);
}

// Wilson's interval of a share: `successes` of `trials`. Unlike a bootstrap it does not collapse to
// a point at 0 and 1.
inline interval wilson_interval(std::int64_t successes, std::int64_t trials) {
  if (trials < 1 || successes < 0 || successes > trials) {
    throw std::invalid_argument("wilson_interval: needs trials, and no more successes than those");
  }
  constexpr double z = 1.959963984540054;  // 95 %
  const double n = static_cast<double>(trials);
  const double share = static_cast<double>(successes) / n;
  const double centre = (share + z * z / (2 * n)) / (1 + z * z / n);
  const double reach =
      z / (1 + z * z / n) * std::sqrt(share * (1 - share) / n + z * z / (4 * n * n));
  return {share, std::max(0.0, centre - reach), std::min(1.0, centre + reach)};
}

inline double log_sum_exp(std::span<const float> logits) {
  float largest = -std::numeric_limits<float>::infinity();
  for (const float logit : logits) {
    largest = std::max(largest, logit);
  }
  double sum = 0;
  for (const float logit : logits) {
    sum += std::exp(static_cast<double>(logit) - static_cast<double>(largest));
  }
  return static_cast<double>(largest) + std::log(sum);
}

// Natural logarithm of the softmax at `token`.
inline double log_probability(std::span<const float> logits, int token) {
  return static_cast<double>(logits[static_cast<std::size_t>(token)]) - log_sum_exp(logits);
}

// From the natural log-probabilities of the tokens that came.
inline double perplexity(std::span<const double> log_probabilities) {
  return std::exp(-mean(log_probabilities));
}

// Sum of p · ln(p / q), p and q the softmax of the two rows. Not negative beyond rounding; clamped
// at 0.
inline double kl_divergence(std::span<const float> reference_logits,
                            std::span<const float> logits) {
  if (reference_logits.size() != logits.size()) {
    throw std::invalid_argument("kl_divergence: rows of different length");
  }
  const double reference_total = log_sum_exp(reference_logits);
  const double total = log_sum_exp(logits);
  double divergence = 0;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    const double log_p = static_cast<double>(reference_logits[i]) - reference_total;
    const double log_q = static_cast<double>(logits[i]) - total;
    const double p = std::exp(log_p);
    if (p > 0) {  // 0 · ln 0 = 0, also where both logits are -inf
      divergence += p * (log_p - log_q);
    }
  }
  return std::max(divergence, 0.0);
}

// Of equal ones the lowest index. @pre not empty
inline int most_likely(std::span<const float> logits) {
  return static_cast<int>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

inline bool top1_agrees(std::span<const float> reference_logits, std::span<const float> logits) {
  return most_likely(reference_logits) == most_likely(logits);
}

}  // namespace zipcache_llama

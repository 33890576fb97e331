// The online softmax as a type: a running maximum, the sum of exponentials and the weighted sum of
// values. Partial results over any split of the tokens (pages, segments, the window, another cache)
// merge exactly. Scores are in base 2: score = (q . k) * sm_scale * log2(e).
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include <zipcache/core/numerics.hpp>

namespace zipcache {

/// Maximum and sum; the weighted values belong to whoever owns the state.
struct softmax_state {
  float maximum = -std::numeric_limits<float>::infinity();
  float sum = 0.0f;

  /// Raises the maximum to `score` if that is larger; returns the factor for everything accumulated
  /// so far.
  ZIPCACHE_HOST_DEVICE float raise(float score) {
    if (!(score > maximum)) return 1.0f;
    const float factor =
        exp2_poly(maximum - score);  // 0 for the first score, since exp2_poly(-inf) is 0
    maximum = score;
    sum *= factor;
    return factor;
  }

  /// Natural log-sum-exp; -inf where no token was seen.
  float lse() const {
    return sum > 0.0f ? (maximum + std::log2(sum)) * ln_2 : -std::numeric_limits<float>::infinity();
  }
};

/// Merges (other, other_out) into (state, out). out, other_out [head_dim], both not yet divided by
/// the sum.
inline void merge(softmax_state& state, float* out, const softmax_state& other,
                  const float* other_out, int32_t head_dim) {
  if (!(other.sum > 0.0f)) return;
  const float own = state.raise(other.maximum);
  const float theirs = exp2_poly(other.maximum - state.maximum);
  state.sum += other.sum * theirs;
  for (int32_t channel = 0; channel < head_dim; ++channel)
    out[channel] = out[channel] * own + other_out[channel] * theirs;
}

}  // namespace zipcache

// The three inner loops of attention on the CPU, over a block of 32 tokens. Everything that takes
// time runs here, so this is where vector kernels take over; the versions below are the scalar
// reference, written so that the innermost loop has independent iterations. `rows` are query rows
// (query heads of one KV head, times query tokens).
#pragma once

#include <cstdint>

#include <zipcache/core/numerics.hpp>

namespace zipcache::detail {

inline constexpr int32_t block_tokens = 32;

/// scores[row][token] += sum over channels of q[row][channel] * keys[channel][token], channels
/// [first, last). q [rows, head_dim]; keys [head_dim, 32]; scores [rows, 32]
inline void add_scores(const float* q, const float* keys, int32_t rows, int32_t head_dim,
                       int32_t first, int32_t last, float* scores) {
  for (int32_t row = 0; row < rows; ++row) {
    float sums[block_tokens] = {};
    for (int32_t channel = first; channel < last; ++channel) {
      const float factor = q[row * head_dim + channel];
      const float* key = keys + channel * block_tokens;
      for (int32_t token = 0; token < block_tokens; ++token) sums[token] += factor * key[token];
    }
    for (int32_t token = 0; token < block_tokens; ++token)
      scores[row * block_tokens + token] += sums[token];
  }
}

/// out[row][channel] += sum over tokens of weights[row][token] * values[token][channel], channels
/// [first, last). weights [rows, 32]; values [32, head_dim]; out [rows, head_dim]
inline void add_weighted_values(const float* weights, const float* values, int32_t rows,
                                int32_t head_dim, int32_t first, int32_t last, float* out) {
  for (int32_t row = 0; row < rows; ++row) {
    float* sums = out + row * head_dim;
    for (int32_t token = 0; token < block_tokens; ++token) {
      const float weight = weights[row * block_tokens + token];
      const float* value = values + token * head_dim;
      for (int32_t channel = first; channel < last; ++channel)
        sums[channel] += weight * value[channel];
    }
  }
}

/// Turns scores in base 2 into probabilities against `maximum`, in place, and returns their sum.
/// scores [32]
inline float exponentiate(float* scores, float maximum) {
  for (int32_t token = 0; token < block_tokens; ++token)
    scores[token] = exp2_poly(scores[token] - maximum);
  float sum = 0.0f;
  for (int32_t token = 0; token < block_tokens; ++token) sum += scores[token];
  return sum;
}

}  // namespace zipcache::detail

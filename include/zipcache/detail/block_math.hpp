// The inner loops of attention and saliency on the CPU, over a block of 32 tokens. Everything that
// takes time runs here. The overloads for scalar_isa are the reference, written so that the
// innermost loop has independent iterations; block_math_avx2.hpp and block_math_avx512.hpp overload
// them. `rows` are query rows (query heads of one KV head, times query tokens). A row's result does
// not depend on how many rows there are.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include <zipcache/core/numerics.hpp>
#include <zipcache/core/types.hpp>
#include <zipcache/detail/cpu_features.hpp>

namespace zipcache::detail {

inline constexpr int32_t block_tokens = 32;

/// scores[row][token] += sum over channels of q[row][channel] * keys[channel][token], channels
/// [first, last), multiples of 16. q [rows, head_dim]; keys [head_dim, 32]; scores [rows, 32]
inline void add_scores(scalar_isa, const float* q, const float* keys, int32_t rows,
                       int32_t head_dim, int32_t first, int32_t last, float* scores) {
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
/// [first, last), multiples of 16. weights [rows, 32]; values [32, head_dim]; out [rows, head_dim]
inline void add_weighted_values(scalar_isa, const float* weights, const float* values, int32_t rows,
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

/// The largest of 32 scores.
inline float largest_score(scalar_isa, const float* scores) {
  float largest = -std::numeric_limits<float>::infinity();
  for (int32_t token = 0; token < block_tokens; ++token) largest = most(largest, scores[token]);
  return largest;
}

/// Turns scores in base 2 into probabilities against `maximum`, in place, and returns their sum.
/// scores [32]
inline float exponentiate(scalar_isa, float* scores, float maximum) {
  for (int32_t token = 0; token < block_tokens; ++token)
    scores[token] = exp2_poly(scores[token] - maximum);
  float sum = 0.0f;
  for (int32_t token = 0; token < block_tokens; ++token) sum += scores[token];
  return sum;
}

/// Scores of codes whose pairs vary by token: scores[row][token] += steps[token] *
/// dots[row][token] + mins[token] * sums[row * stride]. steps, mins [32]; dots, scores [rows, 32]
inline void add_scaled_scores(scalar_isa, const float* dots, const float* steps, const float* mins,
                              const float* sums, int32_t rows, int32_t stride, float* scores) {
  for (int32_t row = 0; row < rows; ++row) {
    for (int32_t token = 0; token < block_tokens; ++token)
      scores[row * block_tokens + token] +=
          steps[token] * dots[row * block_tokens + token] + mins[token] * sums[row * stride];
  }
}

/// Weights of values whose pairs vary by token: weights[row][token] = steps[token] *
/// probabilities[row][token], and zeros[row * stride] += sum over tokens of mins[token] *
/// probabilities[row][token]. steps, mins [32]; probabilities, weights [rows, 32]
inline void weigh_tokens(scalar_isa, const float* probabilities, const float* steps,
                         const float* mins, int32_t rows, int32_t stride, float* weights,
                         float* zeros) {
  for (int32_t row = 0; row < rows; ++row) {
    for (int32_t token = 0; token < block_tokens; ++token) {
      const float probability = probabilities[row * block_tokens + token];
      weights[row * block_tokens + token] = steps[token] * probability;
      zeros[row * stride] += mins[token] * probability;
    }
  }
}

/// A row in 16 bits (or float) as floats.
template <class Element>
void widen(scalar_isa, const Element* row, int32_t head_dim, float* wide) {
  for (int32_t channel = 0; channel < head_dim; ++channel) wide[channel] = to_float(row[channel]);
}

/// Transposes up to 32 rows into block [head_dim, 32]; tokens from `count` on are zeros.
template <class Element>
void transpose_rows(scalar_isa, const Element* const* rows, int32_t count, int32_t head_dim,
                    float* block) {
  for (int32_t channel = 0; channel < head_dim; ++channel) {
    for (int32_t token = 0; token < block_tokens; ++token)
      block[channel * block_tokens + token] = token < count ? to_float(rows[token][channel]) : 0.0f;
  }
}

/// Whether no |x| of the row is above `limit`, or NaN.
template <class Element>
bool is_within(scalar_isa, const Element* row, int32_t head_dim, float limit) {
  bool within = true;
  for (int32_t channel = 0; channel < head_dim; ++channel)
    within = within && std::fabs(to_float(row[channel])) <= limit;
  return within;
}

}  // namespace zipcache::detail

#if ZIPCACHE_X86_VECTORS
#include <zipcache/detail/block_math_avx2.hpp>
#include <zipcache/detail/block_math_avx512.hpp>
#endif

namespace zipcache::detail {

// The same names without a tag use the set that active_cpu() names.

inline void add_scores(const float* q, const float* keys, int32_t rows, int32_t head_dim,
                       int32_t first, int32_t last, float* scores) {
  with_isa([&](auto isa) { add_scores(isa, q, keys, rows, head_dim, first, last, scores); });
}
inline void add_weighted_values(const float* weights, const float* values, int32_t rows,
                                int32_t head_dim, int32_t first, int32_t last, float* out) {
  with_isa([&](auto isa) {
    add_weighted_values(isa, weights, values, rows, head_dim, first, last, out);
  });
}
inline float largest_score(const float* scores) {
  return with_isa([&](auto isa) { return largest_score(isa, scores); });
}
inline float exponentiate(float* scores, float maximum) {
  return with_isa([&](auto isa) { return exponentiate(isa, scores, maximum); });
}
inline void add_scaled_scores(const float* dots, const float* steps, const float* mins,
                              const float* sums, int32_t rows, int32_t stride, float* scores) {
  with_isa(
      [&](auto isa) { add_scaled_scores(isa, dots, steps, mins, sums, rows, stride, scores); });
}
inline void weigh_tokens(const float* probabilities, const float* steps, const float* mins,
                         int32_t rows, int32_t stride, float* weights, float* zeros) {
  with_isa([&](auto isa) {
    weigh_tokens(isa, probabilities, steps, mins, rows, stride, weights, zeros);
  });
}
template <class Element>
void widen(const Element* row, int32_t head_dim, float* wide) {
  with_isa([&](auto isa) { widen(isa, row, head_dim, wide); });
}
template <class Element>
void transpose_rows(const Element* const* rows, int32_t count, int32_t head_dim, float* block) {
  with_isa([&](auto isa) { transpose_rows(isa, rows, count, head_dim, block); });
}
template <class Element>
bool is_within(const Element* row, int32_t head_dim, float limit) {
  return with_isa([&](auto isa) { return is_within(isa, row, head_dim, limit); });
}

}  // namespace zipcache::detail

// Tensors for the tests of kv_cache: random ones with the traits of real keys and values, and
// attention over them in double precision, written without the library.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include <zipcache/kv_cache.hpp>

namespace zipcache_test {

/// A [heads, tokens, dim] tensor that owns its values.
template <class Element>
struct tensor {
  int32_t heads = 0;
  int64_t tokens = 0;
  int32_t dim = 0;
  std::vector<Element> values;

  tensor(int32_t num_heads, int64_t num_tokens, int32_t head_dim)
      : heads(num_heads),
        tokens(num_tokens),
        dim(head_dim),
        values(static_cast<size_t>(num_heads * num_tokens * head_dim)) {}

  zipcache::tensor_view<Element> view() { return zipcache::hnd(values.data(), heads, tokens, dim); }
  zipcache::tensor_view<const Element> view() const {
    return zipcache::hnd(values.data(), heads, tokens, dim);
  }
  zipcache::tensor_view<const Element> part(int64_t first, int64_t count) const {
    return view().tokens(first, count);
  }
  zipcache::tensor_view<Element> part(int64_t first, int64_t count) {
    return view().tokens(first, count);
  }
  Element& at(int32_t head, int64_t token, int32_t channel) {
    return values[static_cast<size_t>((head * tokens + token) * dim + channel)];
  }
  const Element& at(int32_t head, int64_t token, int32_t channel) const {
    return values[static_cast<size_t>((head * tokens + token) * dim + channel)];
  }
};

/// A small generator of its own (xorshift64*), so that test data does not hang on the library's.
class generator {
 public:
  explicit generator(uint64_t seed) : state_(seed * 2862933555777941757ull + 3037000493ull) {}
  uint64_t next() {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return state_ * 2685821657736338717ull;
  }
  /// [0, 1)
  double uniform() { return static_cast<double>(next() >> 11) * 0x1.0p-53; }
  int64_t below(int64_t n) { return static_cast<int64_t>(next() % static_cast<uint64_t>(n)); }
  /// Roughly normal, within +-6.
  double normal() {
    double sum = -6.0;
    for (int i = 0; i < 12; ++i) sum += uniform();
    return sum;
  }

 private:
  uint64_t state_;
};

/// Normal values; every eighth channel is larger and off centre, as channels of real keys are.
template <class Element>
tensor<Element> random_tensor(int32_t heads, int64_t tokens, int32_t dim, uint64_t seed) {
  tensor<Element> x(heads, tokens, dim);
  generator random(seed);
  for (int32_t head = 0; head < heads; ++head) {
    for (int64_t token = 0; token < tokens; ++token) {
      for (int32_t channel = 0; channel < dim; ++channel) {
        const double scale = channel % 8 == 3 ? 3.0 : 1.0;
        const double center = channel % 16 == 5 ? 2.0 : 0.0;
        x.at(head, token, channel) =
            zipcache::from_float<Element>(static_cast<float>(center + scale * random.normal()));
      }
    }
  }
  return x;
}

/// Queries, keys and values of a stretch of tokens of one layer.
template <class Element>
struct token_data {
  tensor<Element> q, k, v;

  token_data(const zipcache::cache_shape& shape, int64_t tokens, uint64_t seed)
      : q(random_tensor<Element>(shape.num_qo_heads, tokens, shape.head_dim, 3 * seed)),
        k(random_tensor<Element>(shape.num_kv_heads, tokens, shape.head_dim, 3 * seed + 1)),
        v(random_tensor<Element>(shape.num_kv_heads, tokens, shape.head_dim, 3 * seed + 2)) {}
  int64_t size() const { return k.tokens; }
};

/// Bits of a value, for comparisons that tell -0 from +0.
inline uint32_t bits_of(float x) { return zipcache::bits_of(x); }
inline uint32_t bits_of(zipcache::half x) { return x.bits; }
inline uint32_t bits_of(zipcache::bfloat16 x) { return x.bits; }

template <class Element>
bool same_bits(const std::vector<Element>& a, const std::vector<Element>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](Element x, Element y) { return bits_of(x) == bits_of(y); });
}

/// Largest relative error of rounding a real number to the type: half a unit in the last place.
template <class Element>
constexpr double rounding_unit() {
  if constexpr (std::is_same_v<Element, zipcache::half>) return 0x1.0p-11;
  if constexpr (std::is_same_v<Element, zipcache::bfloat16>) return 0x1.0p-8;
  return 0x1.0p-24;
}

/// One query row's exact attention, and how far 32-bit arithmetic may be from it.
struct exact_row {
  std::vector<double> out;
  double lse = -std::numeric_limits<double>::infinity();
  double score_error = 0.0;  ///< bound on the error of one score
  double largest_value = 0.0;
  int64_t num_tokens = 0;

  /// Bound on |out - exact| before `out` is rounded to its type. Every probability is a quotient of
  /// exponentials of scores that are wrong by at most e = score_error, so relative to the exact one
  /// it is wrong by at most exp(2 e) - 1; exp2_poly (2e-7), the sums over n tokens and a handful of
  /// rescalings add (n + 16) units of 2^-24. Values come apart into min and code * step, each at
  /// most 3 times the largest value (|min| <= m, code * step <= 2 m).
  double out_error() const {
    const double relative =
        std::expm1(2.0 * score_error) + 1e-6 + static_cast<double>(num_tokens + 16) * 0x1.0p-24;
    return 3.0 * largest_value * relative;
  }
  /// The sum of exponentials carries the same relative errors, and the logarithm of a value near
  /// lse is rounded to float some times.
  double lse_error() const {
    return score_error + 1e-6 + static_cast<double>(num_tokens + 16) * 0x1.0p-24 +
           4.0 * std::fabs(lse) * 0x1.0p-24;
  }
};

/// Attention of query `q` [dim] over the first `num_tokens` tokens of head `kv_head` for which
/// is_visible(token).
template <class Element, class Visible>
exact_row exact_attention(const Element* q, const tensor<float>& k, const tensor<float>& v,
                          int32_t kv_head, int64_t num_tokens, double scale, Visible&& is_visible) {
  exact_row row;
  row.out.assign(static_cast<size_t>(k.dim), 0.0);
  std::vector<double> scores;
  std::vector<int64_t> tokens;
  std::vector<double> largest_key(static_cast<size_t>(k.dim), 0.0);
  for (int64_t token = 0; token < num_tokens; ++token) {
    if (!is_visible(token)) continue;
    double score = 0.0;
    for (int32_t channel = 0; channel < k.dim; ++channel) {
      const double key = k.at(kv_head, token, channel);
      score += static_cast<double>(zipcache::to_float(q[channel])) * key;
      double& largest = largest_key[static_cast<size_t>(channel)];
      largest = std::max(largest, std::fabs(key));
      row.largest_value = std::max(row.largest_value,
                                   std::fabs(static_cast<double>(v.at(kv_head, token, channel))));
    }
    tokens.push_back(token);
    scores.push_back(score * scale);
  }
  row.num_tokens = static_cast<int64_t>(tokens.size());
  if (tokens.empty()) return row;
  // A sum of d products with partial sums within S = sum |q| * (|min| + code * step) is wrong by at
  // most (d + 8) * 2^-24 * S; the 8 covers the folded factors and the bias.
  double magnitude = 0.0;
  for (int32_t channel = 0; channel < k.dim; ++channel)
    magnitude += std::fabs(static_cast<double>(zipcache::to_float(q[channel]))) * 3.0 *
                 largest_key[static_cast<size_t>(channel)];
  row.score_error = (k.dim + 8) * 0x1.0p-24 * magnitude * scale;
  const double peak = *std::max_element(scores.begin(), scores.end());
  double sum = 0.0;
  for (size_t i = 0; i < tokens.size(); ++i) {
    const double weight = std::exp(scores[i] - peak);
    sum += weight;
    for (int32_t channel = 0; channel < k.dim; ++channel)
      row.out[static_cast<size_t>(channel)] += weight * v.at(kv_head, tokens[i], channel);
  }
  for (double& x : row.out) x /= sum;
  row.lse = peak + std::log(sum);
  return row;
}

}  // namespace zipcache_test

// The oracle: the method's formulas as naive loops in double. It shares no code with the library
// and is slow on purpose. Tensors are contiguous [num_heads, num_tokens, head_dim].
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace zipcache_test::oracle {

inline constexpr double infinity = std::numeric_limits<double>::infinity();

// --- 16-bit numbers
// -------------------------------------------------------------------------------

/// Value of a binary floating-point pattern of 16 bits with so many exponent bits; NaN for NaNs.
inline double value_of_bits(uint32_t bits, int exponent_bits) {
  const int mantissa_bits = 15 - exponent_bits;
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = static_cast<int>(bits >> mantissa_bits) & ((1 << exponent_bits) - 1);
  const int mantissa = static_cast<int>(bits & ((1u << mantissa_bits) - 1u));
  const double sign = (bits & 0x8000u) != 0 ? -1.0 : 1.0;
  if (exponent == (1 << exponent_bits) - 1)
    return mantissa != 0 ? std::numeric_limits<double>::quiet_NaN() : sign * infinity;
  if (exponent == 0) return sign * std::ldexp(mantissa, 1 - bias - mantissa_bits);
  return sign * std::ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits);
}
inline double value_of_half(uint16_t bits) { return value_of_bits(bits, 5); }
inline double value_of_bfloat16(uint16_t bits) { return value_of_bits(bits, 8); }

/// Half the distance of neighbouring 16-bit numbers around x: what rounding x may change.
inline double rounding_of_half(double x) {
  return std::ldexp(1.0, std::max(std::ilogb(std::fabs(x) + 1e-300), -14) - 11);
}
inline double rounding_of_bfloat16(double x) {
  return std::ldexp(1.0, std::max(std::ilogb(std::fabs(x) + 1e-300), -126) - 8);
}

// --- uniform quantization
// -------------------------------------------------------------------------

/// The position of x among the codes, before rounding.
inline double position(double x, double min, double step, int bits) {
  if (step == 0.0) return 0.0;
  const double top = std::ldexp(1.0, bits) - 1.0;
  return std::fmin(std::fmax((x - min) / step, 0.0), top);
}

/// The code of x: nearest, ties to even.
inline int code(double x, double min, double step, int bits) {
  return static_cast<int>(std::nearbyint(position(x, min, step, bits)));
}

// --- rotation
// ---------------------------------------------------------------------------------------

/// Each row [head_dim] times the normalized Hadamard matrix of its blocks, whose entry (i, j) is
/// minus one to the number of bits that i and j have in common.
inline std::vector<double> hadamard(const std::vector<double>& x, int32_t head_dim, int32_t block) {
  std::vector<double> result(x.size(), 0.0);
  for (size_t i = 0; i < x.size(); ++i) {
    const size_t row = i / static_cast<size_t>(head_dim) * static_cast<size_t>(head_dim);
    const size_t first = row + (i - row) / static_cast<size_t>(block) * static_cast<size_t>(block);
    for (size_t j = 0; j < static_cast<size_t>(block); ++j) {
      int common = 0;
      for (size_t bits = (i - first) & j; bits != 0; bits &= bits - 1) ++common;
      result[i] += (common % 2 == 0 ? 1.0 : -1.0) * x[first + j] / std::sqrt(block);
    }
  }
  return result;
}

// --- attention
// ------------------------------------------------------------------------------------

struct attention_result {
  std::vector<double> out;  // [head_dim]
  double lse = -infinity;   // natural
};

/// Softmax attention of one query row over the tokens that `sees(token)` allows. k, v [num_tokens,
/// head_dim]
template <class Sees>
attention_result attend(const double* q, const double* k, const double* v, int64_t num_tokens,
                        int head_dim, double sm_scale, Sees&& sees) {
  attention_result result;
  result.out.assign(static_cast<size_t>(head_dim), 0.0);
  std::vector<double> scores(static_cast<size_t>(num_tokens), -infinity);
  double peak = -infinity;
  for (int64_t token = 0; token < num_tokens; ++token) {
    if (!sees(token)) continue;
    double dot = 0.0;
    for (int channel = 0; channel < head_dim; ++channel)
      dot += q[channel] * k[token * head_dim + channel];
    scores[static_cast<size_t>(token)] = dot * sm_scale;
    peak = std::fmax(peak, dot * sm_scale);
  }
  if (peak == -infinity) return result;
  double sum = 0.0;
  for (const double score : scores) sum += std::exp(score - peak);
  for (int64_t token = 0; token < num_tokens; ++token) {
    const double p = std::exp(scores[static_cast<size_t>(token)] - peak) / sum;
    if (p == 0.0) continue;
    for (int channel = 0; channel < head_dim; ++channel)
      result.out[static_cast<size_t>(channel)] += p * v[token * head_dim + channel];
  }
  result.lse = peak + std::log(sum);
  return result;
}

// --- saliency
// -------------------------------------------------------------------------------------

enum class metric { normalized, accumulated, normalized_by_length, recency };

/// Scores of every token of every KV head. q [num_qo_heads, num_probes, head_dim]; k [num_kv_heads,
/// kv_len, head_dim]; out [num_kv_heads, kv_len]
inline std::vector<double> saliency(const std::vector<double>& q, const std::vector<double>& k,
                                    const std::vector<int64_t>& positions, int num_qo_heads,
                                    int num_kv_heads, int64_t kv_len, int head_dim, double sm_scale,
                                    metric how, bool shared_by_heads) {
  const int64_t num_probes = static_cast<int64_t>(positions.size());
  const int group = num_qo_heads / num_kv_heads;
  std::vector<double> sums(static_cast<size_t>(num_kv_heads * kv_len), 0.0);
  for (int qo_head = 0; qo_head < num_qo_heads; ++qo_head) {
    const double* keys = k.data() + qo_head / group * kv_len * head_dim;
    for (int64_t probe = 0; probe < num_probes; ++probe) {
      const double* query = q.data() + (qo_head * num_probes + probe) * head_dim;
      const int64_t seen = std::min(kv_len, positions[static_cast<size_t>(probe)] + 1);
      std::vector<double> scores;
      double peak = -infinity;
      for (int64_t token = 0; token < seen; ++token) {
        double dot = 0.0;
        for (int channel = 0; channel < head_dim; ++channel)
          dot += query[channel] * keys[token * head_dim + channel];
        scores.push_back(dot * sm_scale);
        peak = std::fmax(peak, scores.back());
      }
      double total = 0.0;
      for (const double score : scores) total += std::exp(score - peak);
      for (int64_t token = 0; token < seen; ++token) {
        sums[static_cast<size_t>(qo_head / group * kv_len + token)] +=
            std::exp(scores[static_cast<size_t>(token)] - peak) / total;
      }
    }
  }
  std::vector<double> scores(sums.size());
  for (int head = 0; head < num_kv_heads; ++head) {
    for (int64_t token = 0; token < kv_len; ++token) {
      double sum = sums[static_cast<size_t>(head * kv_len + token)];
      if (shared_by_heads) {
        sum = 0.0;
        for (int other = 0; other < num_kv_heads; ++other)
          sum += sums[static_cast<size_t>(other * kv_len + token)];
      }
      double visible = 0.0;
      for (const int64_t row : positions) visible += row >= token ? 1.0 : 0.0;
      const double rows = static_cast<double>(kv_len - token);
      double score = 0.0;
      switch (how) {
        case metric::normalized:
          score = visible > 0.0 ? sum / visible : 0.0;
          break;
        case metric::accumulated:
          score = sum;
          break;
        case metric::normalized_by_length:
          score = sum / rows;
          break;
        case metric::recency:
          score = -rows;
          break;
      }
      scores[static_cast<size_t>(head * kv_len + token)] = score;
    }
  }
  return scores;
}

// --- selection
// ------------------------------------------------------------------------------------

/// The `count` best of the scores, one at a time: higher first, then the lower index; NaN last.
inline std::vector<int32_t> top_k(const std::vector<float>& scores, int64_t count) {
  std::vector<bool> taken(scores.size(), false);
  for (int64_t i = 0; i < count; ++i) {
    size_t best = scores.size();
    for (size_t token = 0; token < scores.size(); ++token) {
      if (taken[token]) continue;
      const bool better = best == scores.size() || scores[token] > scores[best] ||
                          (std::isnan(scores[best]) && !std::isnan(scores[token]));
      if (better) best = token;
    }
    taken[best] = true;
  }
  std::vector<int32_t> chosen;
  for (size_t token = 0; token < scores.size(); ++token)
    if (taken[token]) chosen.push_back(static_cast<int32_t>(token));
  return chosen;
}

/// Every value in double.
template <class Values, class ToDouble>
std::vector<double> widen(const Values& values, ToDouble&& to_double) {
  std::vector<double> widened;
  for (const auto& x : values) widened.push_back(static_cast<double>(to_double(x)));
  return widened;
}

}  // namespace zipcache_test::oracle

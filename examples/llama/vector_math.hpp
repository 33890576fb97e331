// Element-wise kernels of the transformer, written so that g++ -O3 turns each loop into vector instructions without
// -ffast-math: sums and maxima run in `lanes` independent accumulators, because the compiler may not reorder one.
#pragma once

#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

namespace zipcache_llama {

inline constexpr std::size_t lanes = 16;

// e^x within 2 ulp for |x| <= 87; below -87 it stays at e^-87 (about 1e-38), above 88 at e^88.
// x = n ln 2 + r with |r| <= ln 2 / 2: 2^n goes into the exponent bits, e^r is a polynomial. ln 2 is subtracted in two
// parts so that n ln 2 is exact.
inline float exponential(float x) {
  constexpr float log2_e = 1.44269504F;
  constexpr float ln2_high = 0.693359375F;
  constexpr float ln2_low = -2.12194440e-4F;
  constexpr float round_to_integer = 12582912.0F;  // 1.5 · 2^23: adding it leaves no bits for a fraction
  x = x < -87.0F ? -87.0F : x;
  x = x > 88.0F ? 88.0F : x;
  const float shifted = x * log2_e + round_to_integer;
  const float n = shifted - round_to_integer;
  const float r = (x - n * ln2_high) - n * ln2_low;
  float p = 1.0F / 5040;  // Taylor: the next term, r^8 / 8!, is below 6e-9
  p = p * r + 1.0F / 720;
  p = p * r + 1.0F / 120;
  p = p * r + 1.0F / 24;
  p = p * r + 1.0F / 6;
  p = p * r + 0.5F;
  p = p * r + 1.0F;
  p = p * r + 1.0F;
  const auto exponent = std::bit_cast<std::uint32_t>(shifted) << 23;
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(p) + exponent);
}

inline float sum_of_squares(const float* x, std::size_t count) {
  std::array<float, lanes> sums{};
  std::size_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    for (std::size_t lane = 0; lane < lanes; ++lane) {
      sums[lane] += x[i + lane] * x[i + lane];
    }
  }
  float total = 0;
  for (; i < count; ++i) {
    total += x[i] * x[i];
  }
  for (const float sum : sums) {
    total += sum;
  }
  return total;
}

// -inf for an empty row.
inline float maximum(const float* x, std::size_t count) {
  std::array<float, lanes> best;
  best.fill(-std::numeric_limits<float>::infinity());
  std::size_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    for (std::size_t lane = 0; lane < lanes; ++lane) {
      best[lane] = x[i + lane] > best[lane] ? x[i + lane] : best[lane];
    }
  }
  float result = -std::numeric_limits<float>::infinity();
  for (; i < count; ++i) {
    result = x[i] > result ? x[i] : result;
  }
  for (const float value : best) {
    result = value > result ? value : result;
  }
  return result;
}

// x[i] = e^(x[i] - shift); returns their sum.
inline float exponentiate(float* x, std::size_t count, float shift) {
  std::array<float, lanes> sums{};
  std::size_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    for (std::size_t lane = 0; lane < lanes; ++lane) {
      x[i + lane] = exponential(x[i + lane] - shift);
      sums[lane] += x[i + lane];
    }
  }
  float total = 0;
  for (; i < count; ++i) {
    x[i] = exponential(x[i] - shift);
    total += x[i];
  }
  for (const float sum : sums) {
    total += sum;
  }
  return total;
}

// y = x / sqrt(mean(x^2) + epsilon) · weight
inline void rms_norm(const float* x, const float* weight, std::size_t count, float epsilon, float* y) {
  const float scale = 1.0F / std::sqrt(sum_of_squares(x, count) / static_cast<float>(count) + epsilon);
  for (std::size_t i = 0; i < count; ++i) {
    y[i] = x[i] * scale * weight[i];
  }
}

// gate = gate · sigmoid(gate) · up
inline void swiglu(float* gate, const float* up, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    gate[i] = gate[i] / (1.0F + exponential(-gate[i])) * up[i];
  }
}

inline void add(float* x, const float* y, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    x[i] += y[i];
  }
}

}  // namespace zipcache_llama

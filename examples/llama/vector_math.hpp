// Element-wise kernels of the transformer.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

namespace zipcache_llama {

// e^x within 2 ulp for |x| <= 87; below -87 it stays at e^-87 (about 1e-38), above 88 at e^88.
// x = n ln 2 + r with |r| <= ln 2 / 2: 2^n goes into the exponent bits, e^r is a polynomial. ln 2
// is subtracted in two parts so that n ln 2 is exact.
inline float exponential(float x) {
  constexpr float log2_e = 1.44269504F;
  constexpr float ln2_high = 0.693359375F;
  constexpr float ln2_low = -2.12194440e-4F;
  constexpr float round_to_integer =
      12582912.0F;  // 1.5 · 2^23: adding it leaves no bits for a fraction
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

float sum_of_squares(const float* x, std::size_t count);

// -inf for an empty row.
float maximum(const float* x, std::size_t count);

// x[i] = e^(x[i] - shift); returns their sum.
float exponentiate(float* x, std::size_t count, float shift);

// Sum of e^(x[i] - shift).
double sum_of_exponentials(const float* x, std::size_t count, float shift);

// Sum of e^(x[i] - shift) · (x[i] - y[i]).
double weighted_difference(const float* x, const float* y, std::size_t count, float shift);

// y = x / sqrt(mean(x^2) + epsilon) · weight
void rms_norm(const float* x, const float* weight, std::size_t count, float epsilon, float* y);

// gate = gate · sigmoid(gate) · up
void swiglu(float* gate, const float* up, std::size_t count);

// x += y
void add(float* x, const float* y, std::size_t count);

// x *= factor
void scale(float* x, float factor, std::size_t count);

}  // namespace zipcache_llama

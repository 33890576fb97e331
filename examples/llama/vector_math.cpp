// Written so that g++ -O3 turns each loop into vector instructions without -ffast-math: sums and
// maxima run in `lanes` independent accumulators, because the compiler may not reorder a single
// one.
#include "vector_math.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

// Every x86-64 has 4 floats in a vector, most have 8: the loader picks. AVX2 without FMA, so that
// both round alike. A sanitizer's runtime is not up yet when the loader does so.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define ZIPCACHE_LLAMA_SANITIZED
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || \
    __has_feature(memory_sanitizer)
#define ZIPCACHE_LLAMA_SANITIZED
#endif
#endif
#if defined(__x86_64__) && defined(__linux__) && !defined(ZIPCACHE_LLAMA_SANITIZED)
#define ZIPCACHE_LLAMA_VECTORISE __attribute__((target_clones("default", "avx2")))
#else
#define ZIPCACHE_LLAMA_VECTORISE
#endif

namespace zipcache_llama {
namespace {

constexpr std::size_t lanes = 16;

// Elements whose exponentials are computed in a loop of their own. In one loop with what is done
// with them, g++ also does that, for every element, with what exponential() gives beyond its
// bounds, and products and quotients that become subnormal take a hundred cycles each.
constexpr std::size_t piece = 256;
static_assert(piece % lanes == 0);

}  // namespace

ZIPCACHE_LLAMA_VECTORISE float sum_of_squares(const float* x, std::size_t count) {
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

ZIPCACHE_LLAMA_VECTORISE float maximum(const float* x, std::size_t count) {
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

ZIPCACHE_LLAMA_VECTORISE float exponentiate(float* x, std::size_t count, float shift) {
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

ZIPCACHE_LLAMA_VECTORISE double sum_of_exponentials(const float* x, std::size_t count,
                                                    float shift) {
  std::array<double, lanes> sums{};
  std::size_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    for (std::size_t lane = 0; lane < lanes; ++lane) {
      sums[lane] += static_cast<double>(exponential(x[i + lane] - shift));
    }
  }
  double total = 0;
  for (; i < count; ++i) {
    total += static_cast<double>(exponential(x[i] - shift));
  }
  for (const double sum : sums) {
    total += sum;
  }
  return total;
}

ZIPCACHE_LLAMA_VECTORISE double weighted_difference(const float* x, const float* y,
                                                    std::size_t count, float shift) {
  std::array<double, lanes> sums{};
  std::array<float, piece> weights;
  const std::size_t whole = count / lanes * lanes;
  for (std::size_t first = 0; first < whole; first += piece) {
    const std::size_t size = std::min(piece, whole - first);
    for (std::size_t i = 0; i < size; ++i) {
      weights[i] = exponential(x[first + i] - shift);
    }
    for (std::size_t i = 0; i < size; i += lanes) {
      for (std::size_t lane = 0; lane < lanes; ++lane) {
        const std::size_t at = first + i + lane;
        sums[lane] += static_cast<double>(weights[i + lane] * (x[at] - y[at]));
      }
    }
  }
  double total = 0;
  for (std::size_t i = whole; i < count; ++i) {
    total += static_cast<double>(exponential(x[i] - shift) * (x[i] - y[i]));
  }
  for (const double sum : sums) {
    total += sum;
  }
  return total;
}

ZIPCACHE_LLAMA_VECTORISE void rms_norm(const float* x, const float* weight, std::size_t count,
                                       float epsilon, float* y) {
  const float factor =
      1.0F / std::sqrt(sum_of_squares(x, count) / static_cast<float>(count) + epsilon);
  for (std::size_t i = 0; i < count; ++i) {
    y[i] = x[i] * factor * weight[i];
  }
}

ZIPCACHE_LLAMA_VECTORISE void swiglu(float* gate, const float* up, std::size_t count) {
  std::array<float, piece> exponentials;
  for (std::size_t first = 0; first < count; first += piece) {
    const std::size_t size = std::min(piece, count - first);
    float* g = gate + first;
    for (std::size_t i = 0; i < size; ++i) {
      exponentials[i] = exponential(-g[i]);
    }
    for (std::size_t i = 0; i < size; ++i) {
      g[i] = g[i] / (1.0F + exponentials[i]) * up[first + i];
    }
  }
}

ZIPCACHE_LLAMA_VECTORISE void add(float* x, const float* y, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    x[i] += y[i];
  }
}

ZIPCACHE_LLAMA_VECTORISE void scale(float* x, float factor, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    x[i] *= factor;
  }
}

}  // namespace zipcache_llama

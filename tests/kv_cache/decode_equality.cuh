// The same prompt and the same new tokens on both backends.
//
// Bytes. Saliency differs between backends in its last bits, so a token at the edge of the salient
// set could fall on either side. Tokens are therefore made so that the edge is wide: a share of
// them, as large as the budget wants, is attended to e^13 times as much as the others.
//
// Outputs, with u = 2^-24, d = head_dim and n tokens: each backend is compared with the other by
// the sum of two bounds.
// 1. A score is a sum of d products with partial sums within S = sum_c |q_c| 3 K_c (K_c the
//    channel's largest key; a key comes apart into min and step * code): off by (d + 8) u S on
//    both. On tensor cores 16-bit keys meet the query as the sum of two 16-bit numbers, which is
//    off by w S with w = 2^-21 for half (two roundings to 11 bits) and 2^-16 for bfloat16.
// 2. A weight is a quotient of exponentials, off by expm1(2 e) for an error e of scores, 1e-6 for
//    the exponential functions, and (n + 16) u for the sums; on tensor cores it is split in two as
//    well, which adds w.
// 3. The output is a mean of values of at most 3 V by these weights, rounded to 16 bits.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/device_cache.cuh"

namespace zipcache_test {

/// Which tokens `separated_tokens` makes strong: those at multiples of `period` and the next
/// `strong - 1`. Nobody is where scores decide nothing.
struct strong_tokens {
  int64_t strong;
  int64_t period;
  bool operator()(int64_t token) const { return token % period < strong; }
};

template <class Policies>
strong_tokens strong_tokens_of() {
  using budget = typename Policies::budget_policy;
  // H2O: 40 % are salient, half of these as the last tokens and half (a quarter of the other 80 %)
  // by their score.
  if (budget::num_recent(100, {budget::default_ratio, 0}) > 0) return {1, 4};
  return {3, 5};
}

/// Tokens whose scores are far apart: all queries of a KV head point in one direction, along which
/// strong keys have logits from 4 to 6 and weak ones from -12 to -9. Values are random.
template <class Element>
token_data<Element> separated_tokens(const zipcache::cache_shape& shape, int64_t num_tokens,
                                     uint64_t seed, strong_tokens is_strong) {
  token_data<Element> data(shape, num_tokens, seed);
  generator random(seed + 99);
  const int32_t dim = shape.head_dim;
  const double scale = static_cast<double>(shape.softmax_scale());
  const auto sign_of = [](int32_t head, int32_t channel) {
    return (channel * 7 + head * 3) % 5 < 2 ? -1.0 : 1.0;
  };
  const auto round = [](double x) { return zipcache::from_float<Element>(static_cast<float>(x)); };
  for (int32_t head = 0; head < shape.num_kv_heads; ++head) {
    for (int64_t token = 0; token < num_tokens; ++token) {
      const double logit =
          is_strong(token) ? 4.0 + 2.0 * random.uniform() : -12.0 + 3.0 * random.uniform();
      for (int32_t channel = 0; channel < dim; ++channel) {
        data.k.at(head, token, channel) =
            round(sign_of(head, channel) * logit / (scale * dim) + 0.02 * random.normal());
      }
    }
  }
  for (int32_t head = 0; head < shape.num_qo_heads; ++head) {
    for (int64_t token = 0; token < num_tokens; ++token) {
      for (int32_t channel = 0; channel < dim; ++channel) {
        data.q.at(head, token, channel) =
            round(sign_of(head / shape.group(), channel) + 0.02 * random.normal());
      }
    }
  }
  return data;
}

/// Largest magnitudes in a layer's tokens.
template <class Element>
struct magnitudes {
  std::vector<double> keys;  ///< [num_kv_heads, head_dim]
  double values = 0.0;

  explicit magnitudes(const token_data<Element>& data)
      : keys(static_cast<size_t>(data.k.heads * data.k.dim), 0.0) {
    for (int32_t head = 0; head < data.k.heads; ++head) {
      for (int64_t token = 0; token < data.k.tokens; ++token) {
        for (int32_t channel = 0; channel < data.k.dim; ++channel) {
          double& largest = keys[static_cast<size_t>(head * data.k.dim + channel)];
          const auto key = static_cast<double>(zipcache::to_float(data.k.at(head, token, channel)));
          const auto value =
              static_cast<double>(zipcache::to_float(data.v.at(head, token, channel)));
          largest = std::max(largest, std::fabs(key));
          values = std::max(values, std::fabs(value));
        }
      }
    }
  }
};

/// Checks outputs of tokens [first, ...) of both backends against each other.
template <class Element>
void check_outputs(const zipcache::cache_shape& shape, const token_data<Element>& data,
                   const magnitudes<Element>& largest, int64_t first, const outputs<Element>& cpu,
                   const outputs<Element>& gpu) {
  constexpr double u = 0x1p-24;
  constexpr double split = rounding_unit<Element>() == 0x1p-11 ? 0x1p-21 : 0x1p-16;
  const int32_t dim = shape.head_dim;
  for (int64_t i = 0; i < cpu.out.tokens; ++i) {
    const auto n = static_cast<double>(first + i + 1);
    for (int32_t head = 0; head < shape.num_qo_heads; ++head) {
      INFO("token " << first + i << ", head " << head);
      double s = 0.0;
      for (int32_t channel = 0; channel < dim; ++channel) {
        s += std::fabs(
                 static_cast<double>(zipcache::to_float(data.q.at(head, first + i, channel)))) *
             3.0 * largest.keys[static_cast<size_t>(head / shape.group() * dim + channel)];
      }
      s *= static_cast<double>(shape.softmax_scale());
      const double e = (dim + 8) * u * s;
      const double sums = 1e-6 + (n + 16) * u;
      const double weights = std::expm1(2 * e) + std::expm1(2 * (e + split * s)) + 2 * sums + split;
      REQUIRE(weights < 0.05);  // or the comparison says little
      for (int32_t channel = 0; channel < dim; ++channel) {
        const auto a = static_cast<double>(zipcache::to_float(cpu.out.at(head, i, channel)));
        const auto b = static_cast<double>(zipcache::to_float(gpu.out.at(head, i, channel)));
        const double rounding = rounding_unit<Element>() * (std::fabs(a) + std::fabs(b)) + 0x1p-24;
        // Written so that a NaN fails.
        if (std::fabs(a - b) <= 3 * largest.values * weights + rounding) continue;
        INFO("channel " << channel << ": " << a << " on the CPU, " << b << " on the GPU");
        REQUIRE(std::fabs(a - b) <= 3 * largest.values * weights + rounding);
      }
      const size_t row = static_cast<size_t>(i * shape.num_qo_heads + head);
      const auto a = static_cast<double>(cpu.lse[row]);
      const auto b = static_cast<double>(gpu.lse[row]);
      REQUIRE(std::fabs(a - b) <= 2 * e + split * s + 2 * sums + 8 * std::fabs(a) * u);
    }
  }
}

struct decode_case {
  zipcache::cache_shape shape;
  int64_t prompt = 0;
  int64_t steps = 0;
  zipcache::cache_options options = {};
};

/// A prompt and decode steps on both backends: the same bytes, and outputs within the bound.
template <class Element, class Policies>
void check_decode(const decode_case& given, const token_data<Element>& data) {
  INFO(Policies::name() << ": " << given.prompt << " + " << given.steps << " tokens, "
                        << given.shape.num_qo_heads << " and " << given.shape.num_kv_heads
                        << " heads of " << given.shape.head_dim);
  zipcache::kv_cache<Element, Policies> cpu(given.shape, given.options);
  device_cache<Element, Policies> gpu(
      given.shape, {.max_sequences = 2, .max_tokens = given.prompt + given.steps}, given.options);
  REQUIRE(gpu.page_bytes() == cpu.page_bytes());
  const device_tokens<Element> on_device(data);
  const magnitudes<Element> largest(data);
  gpu.create();  // so that the sequence is not the first one
  const zipcache::sequence_id cpu_id = cpu.create();
  const zipcache::sequence_id gpu_id = gpu.create();
  if (given.prompt > 0) {
    prefill(cpu, cpu_id, data, given.prompt);
    prefill(gpu, gpu_id, on_device, given.prompt);
  }
  // Not compared by Catch, which would print both strings.
  const bool same_after_prompt = device_snapshot(gpu, gpu_id) == snapshot(cpu, cpu_id);
  REQUIRE(same_after_prompt);
  constexpr int64_t piece = 67;  // ends at all kinds of places of an interval
  for (int64_t first = given.prompt; first < given.prompt + given.steps; first += piece) {
    const int64_t last = std::min(first + piece, given.prompt + given.steps);
    const outputs<Element> expected = decode(cpu, cpu_id, data, first, last);
    const outputs<Element> got = decode(gpu, gpu_id, on_device, first, last);
    gpu.check();
    REQUIRE(gpu.length(gpu_id) == cpu.length(cpu_id));
    REQUIRE(gpu.sealed_length(gpu_id) == cpu.sealed_length(cpu_id));
    REQUIRE(gpu.read_length(gpu_id, 0) == cpu.length(cpu_id));
    INFO("after " << last << " tokens");
    check_outputs(given.shape, data, largest, first, expected, got);
    const bool same = device_snapshot(gpu, gpu_id) == snapshot(cpu, cpu_id);
    REQUIRE(same);
  }
}

/// Under policies that look at scores.
template <class Element, class Policies>
void check_separated(const decode_case& given) {
  check_decode<Element, Policies>(
      given, separated_tokens<Element>(given.shape, given.prompt + given.steps, 5,
                                       strong_tokens_of<Policies>()));
}

/// Under policies that look at none.
template <class Element, class Policies>
void check_random(const decode_case& given) {
  check_decode<Element, Policies>(given,
                                  token_data<Element>(given.shape, given.prompt + given.steps, 11));
}

/// One layer with so many query heads for each of two KV heads.
inline zipcache::cache_shape group_shape(int32_t group, int32_t head_dim) {
  return {.num_layers = 1, .num_qo_heads = 2 * group, .num_kv_heads = 2, .head_dim = head_dim};
}

}  // namespace zipcache_test

// The compression ratio as the paper counts it: codes and (step, min) pairs only, every number of a
// pair in 16 bits, token parameters shared by all heads, and no padding, page table, bitmap, window
// or record. Printed beside the real ratio (footprint) under its own name; never one for the other.
// Source: ZipCache, section 3 and table 1.
#pragma once

#include <cstdint>

#include <zipcache/policy/policies.hpp>
#include <zipcache/store/tile.hpp>

namespace zipcache {

/// What the paper's formula is evaluated at. `channels` is num_kv_heads * head_dim.
struct paper_shape {
  double batch;
  double channels;
  double tokens;
};

namespace detail {

template <class Quantizer>
double paper_parameters(const paper_shape& s, double salient_ratio) {
  using granularity = typename Quantizer::granularity;
  constexpr int salient_bits = Quantizer::template bits<token_class::salient>;
  constexpr int regular_bits = Quantizer::template bits<token_class::regular>;
  const double salient = has_pairs(salient_bits) ? salient_ratio : 0.0;
  const double regular = has_pairs(regular_bits) ? 1.0 - salient_ratio : 0.0;
  if (salient + regular == 0.0) return 0.0;
  const double quantized_tokens = s.batch * s.tokens * (salient + regular);
  if (granularity::axis == parameter_axis::token) {
    const double groups = granularity::group_size == 0 ? 1.0 : s.channels / granularity::group_size;
    return 2.0 * quantized_tokens * groups +
           (granularity::has_channel_magnitudes ? s.channels : 0.0);
  }
  const double classes = (salient > 0.0 ? 1.0 : 0.0) + (regular > 0.0 ? 1.0 : 0.0);
  if (granularity::home == parameter_home::segment) return 2.0 * s.channels * classes;
  return 2.0 * s.channels * quantized_tokens / tile_tokens;
}

}  // namespace detail

/// @brief The paper's ratio of `Policies` with a share `salient_ratio` of salient tokens.
template <class Policies>
double paper_ratio(const paper_shape& s, double salient_ratio) {
  const auto average_bits = [&](double salient_bits, double regular_bits) {
    return salient_ratio * salient_bits + (1.0 - salient_ratio) * regular_bits;
  };
  const double key_bits = average_bits(Policies::template key_bits<token_class::salient>,
                                       Policies::template key_bits<token_class::regular>);
  const double value_bits = average_bits(Policies::template value_bits<token_class::salient>,
                                         Policies::template value_bits<token_class::regular>);
  const double values = s.batch * s.channels * s.tokens;
  const double parameters =
      detail::paper_parameters<typename Policies::key_quantizer_policy>(s, salient_ratio) +
      detail::paper_parameters<typename Policies::value_quantizer_policy>(s, salient_ratio);
  return 32.0 * values / (values * (key_bits + value_bits) + 16.0 * parameters);
}

}  // namespace zipcache

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
  int32_t head_dim =
      0;  ///< for block codecs, whose sizes depend on it; 0: all channels are one head
};

namespace detail {

template <class Quantizer>
double paper_parameters(const paper_shape& s, double salient_ratio) {
  using side = tile_side<Quantizer>;
  using granularity = typename side::granularity;
  constexpr int salient_bits = side::template bits<token_class::salient>;
  constexpr int regular_bits = side::template bits<token_class::regular>;
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

/// Bits of a value's code; of a block codec, everything that is in a prompt's block.
template <class Quantizer>
double paper_code_bits(const paper_shape& s, double salient_ratio) {
  if constexpr (codes_blocks<Quantizer>) {
    const auto channels = static_cast<int32_t>(s.channels);
    const block_shape block{static_cast<int64_t>(s.tokens), s.head_dim > 0 ? s.head_dim : channels};
    return 8.0 * static_cast<double>(Quantizer::granularity::size(block).bytes()) /
           static_cast<double>(block.num_tokens * block.head_dim);
  } else {
    return salient_ratio * Quantizer::template bits<token_class::salient> +
           (1.0 - salient_ratio) * Quantizer::template bits<token_class::regular>;
  }
}

}  // namespace detail

/// @brief The paper's ratio of `Policies` with a share `salient_ratio` of salient tokens.
template <class Policies>
double paper_ratio(const paper_shape& s, double salient_ratio) {
  const double key_bits =
      detail::paper_code_bits<typename Policies::key_quantizer_policy>(s, salient_ratio);
  const double value_bits =
      detail::paper_code_bits<typename Policies::value_quantizer_policy>(s, salient_ratio);
  const double values = s.batch * s.channels * s.tokens;
  const double parameters =
      detail::paper_parameters<typename Policies::key_quantizer_policy>(s, salient_ratio) +
      detail::paper_parameters<typename Policies::value_quantizer_policy>(s, salient_ratio);
  return 32.0 * values / (values * (key_bits + value_bits) + 16.0 * parameters);
}

}  // namespace zipcache

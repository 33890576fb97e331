// Quantizing rows of one head on the CPU: statistics, parameters, codes and back. In: rows of a
// [tokens, head_dim] matrix. Out: one code a value, and (step, min) pairs laid out as the
// granularity says. The arithmetic is that of affine.hpp, in loops over channels by the vectors
// that the processor has (detail/quantize_math.hpp). Twin: quantize.cuh.
// @equality same_bytes
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

#include <zipcache/core/backend.hpp>
#include <zipcache/core/error.hpp>
#include <zipcache/core/shape.hpp>
#include <zipcache/core/view.hpp>
#include <zipcache/detail/block_math.hpp>
#include <zipcache/detail/quantize_math.hpp>
#include <zipcache/quantize/affine.hpp>
#include <zipcache/quantize/block_codec.hpp>
#include <zipcache/quantize/compact_pairs.hpp>
#include <zipcache/quantize/granularity.hpp>
#include <zipcache/quantize/rotation.hpp>

namespace zipcache {
namespace detail {

/// Rows [head_dim] of the tokens that are quantized together, in ascending token order.
template <class Element>
using row_span = std::span<const Element* const>;

/// Rows of one head as a quantizer of this layout takes them: the caller's, or rotated copies.
template <class Granularity, class Element>
struct quantizer_rows {
  using element = std::conditional_t<is_rotated<Granularity>, float, Element>;
  std::vector<float> copies;         ///< [num_tokens, head_dim] if rotated
  std::vector<const element*> rows;  ///< [num_tokens]

  quantizer_rows(tensor_view<const Element> x, int32_t head)
      : copies(is_rotated<Granularity> ? static_cast<size_t>(x.num_tokens * x.head_dim) : 0),
        rows(static_cast<size_t>(x.num_tokens)) {
    for (int64_t token = 0; token < x.num_tokens; ++token) {
      const Element* row = x.row(head, token);
      if constexpr (is_rotated<Granularity>) {
        float* copy = copies.data() + token * x.head_dim;
        for (int32_t channel = 0; channel < x.head_dim; ++channel)
          copy[channel] = to_float(row[channel]);
        rotate_channels(copy, x.head_dim);
        rows[static_cast<size_t>(token)] = copy;
      } else {
        rows[static_cast<size_t>(token)] = row;
      }
    }
  }
};

inline constexpr int32_t max_head_dim = 256;

/// c_j = sqrt(max_i |x_ij|) of every channel over all `rows`. magnitudes [head_dim]
template <class Storage, class Element>
void fit_channel_magnitudes(row_span<Element> rows, int32_t head_dim, Storage* magnitudes) {
  float largest[max_head_dim] = {};
  for (const Element* row : rows) include_magnitudes(row, head_dim, largest);
  for (int32_t channel = 0; channel < head_dim; ++channel)
    magnitudes[channel] = channel_magnitude<Storage>(largest[channel]);
}

/// One pair for each channel over all `rows`. params [head_dim]
template <int Bits, class Storage, class Element>
void fit_channels(row_span<Element> rows, int32_t head_dim, affine_params<Storage>* params) {
  float lowest[max_head_dim], highest[max_head_dim];
  std::fill_n(lowest, head_dim, value_range{}.lowest);
  std::fill_n(highest, head_dim, value_range{}.highest);
  for (const Element* row : rows) include_row(row, head_dim, lowest, highest);
  for (int32_t channel = 0; channel < head_dim; ++channel)
    params[channel] = affine<Bits>::template fit<Storage>({lowest[channel], highest[channel]});
}

/// Quantizes rows of one head, one after the other. Only rows that are quantized together may
/// share it: what belongs to a channel is widened once.
template <class Granularity, int Bits, class Storage>
class row_quantizer {
 public:
  /// @param channel_pairs  [head_dim], if parameters vary by channel
  /// @param magnitudes  [head_dim], if channels have them
  row_quantizer(int32_t head_dim, [[maybe_unused]] const affine_params<Storage>* channel_pairs,
                [[maybe_unused]] const Storage* magnitudes)
      : head_dim_(head_dim) {
    if constexpr (by_channel) widen_pairs(channel_pairs, head_dim, mins_, inverse_steps_);
    if constexpr (Granularity::has_channel_magnitudes) widen(magnitudes, head_dim, magnitudes_);
  }

  /// Codes of a row and, if parameters vary by token, its pairs. codes [head_dim]; pairs
  /// [groups_per_token]
  template <class Element>
  void quantize(const Element* row, uint8_t* codes,
                [[maybe_unused]] affine_params<Storage>* pairs) {
    if constexpr (Granularity::has_channel_magnitudes) {
      divide_row(row, magnitudes_, head_dim_, values_);
    } else {
      widen(row, head_dim_, values_);
    }
    if constexpr (by_channel) {
      quantize_each<Bits>(values_, head_dim_, mins_, inverse_steps_, codes);
    } else {
      const int32_t group_size = channels_per_group<Granularity>(head_dim_);
      for (int32_t group = 0; group < groups_per_token<Granularity>(head_dim_); ++group) {
        const float* values = values_ + group * group_size;
        pairs[group] = fit_pair<Granularity, Bits, Storage>(range_of(values, group_size));
        quantize_group<Bits>(values, group_size, affine<Bits>::widen(pairs[group]),
                             codes + group * group_size);
      }
    }
  }

 private:
  static constexpr bool by_channel = Granularity::axis == parameter_axis::channel;

  int32_t head_dim_;
  float values_[max_head_dim];
  float mins_[max_head_dim], inverse_steps_[max_head_dim];  ///< if by channel
  float magnitudes_[max_head_dim];                          ///< if channels have them
};

/// Values of one row's codes. `params` is indexed by channel or by group, as the granularity's
/// axis says. out [head_dim]
template <class Granularity, int Bits, class Storage>
void dequantize_row(const uint8_t* codes, int32_t head_dim, const affine_params<Storage>* params,
                    const Storage* magnitudes, float* out) {
  const int32_t run =
      Granularity::axis == parameter_axis::channel ? 1 : channels_per_group<Granularity>(head_dim);
  for (int32_t group = 0; group < head_dim / run; ++group) {
    const affine_scale scale = affine<Bits>::widen(params[group]);
    for (int32_t channel = group * run; channel < (group + 1) * run; ++channel) {
      const float x = affine<Bits>::dequantize(codes[channel], scale);
      out[channel] = Granularity::has_channel_magnitudes ? x * to_float(magnitudes[channel]) : x;
    }
  }
}

template <class Granularity>
void check_granularity(int32_t head_dim) {
  check_head_dim(head_dim);
  if constexpr (!block_codec<Granularity>)
    require(
        head_dim % channels_per_group<Granularity>(head_dim) == 0,
        Granularity::name() + " does not divide head_dim, which is " + std::to_string(head_dim));
}

}  // namespace detail

/// A quantized [num_heads, num_tokens, head_dim] tensor in memory of the caller, unpacked: one byte
/// a code.
template <class Granularity, int Bits, class Storage = half>
struct code_view {
  int32_t num_heads;
  int64_t num_tokens;
  int32_t head_dim;
  uint8_t* codes;                  ///< [num_heads, num_tokens, head_dim]
  affine_params<Storage>* params;  ///< [num_heads, params_per_head(num_tokens, head_dim)]
  Storage*
      magnitudes;  ///< [num_heads, head_dim]; may be null unless the layout is channel-separable

  ZIPCACHE_HOST_DEVICE static constexpr int64_t params_per_head(int64_t num_tokens,
                                                                int32_t head_dim) {
    if (Granularity::axis == parameter_axis::token)
      return num_tokens * groups_per_token<Granularity>(head_dim);
    return Granularity::home == parameter_home::segment
               ? head_dim
               : ceil_div<int64_t>(num_tokens, 32) * head_dim;
  }

  ZIPCACHE_HOST_DEVICE uint8_t* code_row(int64_t head, int64_t token) const {
    return codes + (head * num_tokens + token) * head_dim;
  }

  ZIPCACHE_HOST_DEVICE affine_params<Storage>* param_row(int64_t head, int64_t token) const {
    affine_params<Storage>* head_params = params + head * params_per_head(num_tokens, head_dim);
    if (Granularity::axis == parameter_axis::token)
      return head_params + token * groups_per_token<Granularity>(head_dim);
    return Granularity::home == parameter_home::segment ? head_params
                                                        : head_params + token / 32 * head_dim;
  }

  ZIPCACHE_HOST_DEVICE Storage* magnitude_row(int64_t head) const {
    return Granularity::has_channel_magnitudes ? magnitudes + head * head_dim : nullptr;
  }
};

/// @brief Quantizes a whole tensor as one segment of one class.
/// @param[in] x  [num_heads, num_tokens, head_dim]; non-finite values take no part in a range and
/// get an end code or 0
/// @param[out] out  codes, pairs and magnitudes, of the same shape
/// @throws argument_error  shapes that differ, a head_dim that is no multiple of 16 up to 256
/// @equality same_bytes
template <class Granularity, int Bits, class Storage, cache_element Element>
void quantize(cpu_backend, tensor_view<const Element> x,
              code_view<Granularity, Bits, Storage> out) {
  detail::check_granularity<Granularity>(x.head_dim);
  detail::require_equal("num_heads", out.num_heads, x.num_heads);
  detail::require_equal("num_tokens", out.num_tokens, x.num_tokens);
  detail::require_equal("head_dim", out.head_dim, x.head_dim);
  using rows_of_head = detail::quantizer_rows<Granularity, Element>;
  using row_element = typename rows_of_head::element;
  for (int32_t head = 0; head < x.num_heads; ++head) {
    const rows_of_head rows(x, head);
    const detail::row_span<row_element> all = rows.rows;
    Storage* magnitudes = out.magnitude_row(head);
    if constexpr (Granularity::has_channel_magnitudes)
      detail::fit_channel_magnitudes<Storage, row_element>(all, x.head_dim, magnitudes);
    // Rows that share parameters by channel; by token, all of them.
    const int64_t block =
        Granularity::home == parameter_home::tile && Granularity::axis == parameter_axis::channel
            ? 32
            : most<int64_t>(x.num_tokens, 1);
    for (int64_t first = 0; first < x.num_tokens; first += block) {
      const auto rows_of_block = all.subspan(
          static_cast<size_t>(first), static_cast<size_t>(least(block, x.num_tokens - first)));
      affine_params<Storage>* block_params = out.param_row(head, first);
      if constexpr (Granularity::axis == parameter_axis::channel)
        detail::fit_channels<Bits, Storage, row_element>(rows_of_block, x.head_dim, block_params);
      detail::row_quantizer<Granularity, Bits, Storage> quantizer(x.head_dim, block_params,
                                                                  magnitudes);
      int64_t token = first;
      for (const row_element* row : rows_of_block) {
        quantizer.quantize(row, out.code_row(head, token), out.param_row(head, token));
        ++token;
      }
    }
  }
}

/// @brief The values that the codes stand for. x [num_heads, num_tokens, head_dim]
template <class Granularity, int Bits, class Storage>
void dequantize(cpu_backend, code_view<Granularity, Bits, Storage> codes, tensor_view<float> x) {
  detail::require_equal("num_heads", x.num_heads, codes.num_heads);
  detail::require_equal("num_tokens", x.num_tokens, codes.num_tokens);
  detail::require_equal("head_dim", x.head_dim, codes.head_dim);
  for (int32_t head = 0; head < x.num_heads; ++head) {
    for (int64_t token = 0; token < x.num_tokens; ++token) {
      detail::dequantize_row<Granularity, Bits>(codes.code_row(head, token), x.head_dim,
                                                codes.param_row(head, token),
                                                codes.magnitude_row(head), x.row(head, token));
      if constexpr (is_rotated<Granularity>) rotate_channels(x.row(head, token), x.head_dim);
    }
  }
}

}  // namespace zipcache

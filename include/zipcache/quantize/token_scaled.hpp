// A scale for each token in front of another block codec: token_scaled<uniform_groups<channel, 2,
// 1024>> codes x_ij / t_i and decodes to t_i times what came back. Where tokens differ much in
// magnitude, as keys of first tokens do, a channel's range is that of its largest token, and the
// others fall onto few codes; divided by their own magnitude all tokens use the whole range.
// With a rotation in front, rotated<token_scaled<...>>, this is the core of OScaR (2025); the same
// imbalance is what OTT and sinks answer by keeping such tokens in 16 bits.
//
// t_i is the token's root mean square in 8 bits (short_scale.hpp), at least 2^-17. x is divided by
// the rounded t_i, so rounding it loses nothing.
//
// Block: the inner codec's block, then scales [num_tokens] of one byte.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <zipcache/core/numerics.hpp>
#include <zipcache/quantize/block_codec.hpp>
#include <zipcache/quantize/short_scale.hpp>

namespace zipcache {

template <class Codec>
struct token_scaled {
  static_assert(block_codec<Codec>,
                "zipcache: token_scaled takes a block codec, such as uniform_groups");
  static constexpr int bits = Codec::bits;

  static block_size size(const block_shape& shape) {
    block_size inner = Codec::size(shape);
    inner.parameter_bytes += shape.num_tokens;
    return inner;
  }

  template <class Storage>
  static void encode(const float* x, const block_shape& shape, std::byte* out) {
    std::byte* const scales = out + Codec::size(shape).bytes();
    std::vector<float> scaled(static_cast<size_t>(shape.num_tokens * shape.head_dim));
    for (int64_t token = 0; token < shape.num_tokens; ++token) {
      const float* row = x + token * shape.head_dim;
      scales[token] = scale_of(row, shape.head_dim);
      const float scale = widen(scales[token]);
      for (int32_t channel = 0; channel < shape.head_dim; ++channel)
        scaled[static_cast<size_t>(token * shape.head_dim + channel)] = row[channel] / scale;
    }
    Codec::template encode<Storage>(scaled.data(), shape, out);
  }

  template <class Storage>
  static void decode(const std::byte* in, const block_shape& shape, int64_t first, int64_t count,
                     float* out) {
    Codec::template decode<Storage>(in, shape, first, count, out);
    const std::byte* const scales = in + Codec::size(shape).bytes();
    for (int64_t token = first; token < first + count; ++token, out += shape.head_dim) {
      const float scale = widen(scales[token]);
      for (int32_t channel = 0; channel < shape.head_dim; ++channel) out[channel] *= scale;
    }
  }

  static std::string name() { return "token_scaled_" + Codec::name(); }

 private:
  static float widen(std::byte scale) {
    return widen_short_scale(std::to_integer<uint32_t>(scale));
  }

  /// Values that are not finite are left out. From 61440 on the scale stays what it is.
  static std::byte scale_of(const float* row, int32_t head_dim) {
    double sum = 0.0;
    for (int32_t channel = 0; channel < head_dim; ++channel)
      if (is_finite(row[channel])) sum += static_cast<double>(row[channel]) * row[channel];
    constexpr uint32_t largest = 0xf7;  // 61440
    const auto rms = static_cast<float>(std::sqrt(sum / head_dim));
    return static_cast<std::byte>(most(1u, short_scale_of(rms, largest)));
  }
};

}  // namespace zipcache

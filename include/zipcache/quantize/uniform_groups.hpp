// The plain block codec: uniform codes, one (step, min) pair for `GroupSize` values of a channel or
// of a token. What groupwise layouts do in tiles, as a block that other codecs can build on.
//
// Block: pairs [groups, head_dim] (by channel) or [num_tokens, groups] (by token) of 4 bytes, then
// codes [num_tokens, head_dim]. A last group may be smaller.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <zipcache/quantize/block_bytes.hpp>
#include <zipcache/quantize/block_codec.hpp>
#include <zipcache/quantize/granularity.hpp>

namespace zipcache {

/// @tparam Axis  along which pairs vary: `channel` groups consecutive tokens of one channel,
/// `token` consecutive channels of one token
template <parameter_axis Axis, int Bits, int GroupSize>
struct uniform_groups {
  static_assert(GroupSize > 0, "zipcache: a group has at least one value");
  static constexpr int bits = Bits;

  static block_size size(const block_shape& shape) {
    return {codes::bytes(shape.num_tokens * shape.head_dim), 4 * num_pairs(shape)};
  }

  template <class Storage>
  static void encode(const float* x, const block_shape& shape, std::byte* out) {
    std::memset(out, 0, static_cast<size_t>(size(shape).bytes()));
    std::vector<value_range> ranges(static_cast<size_t>(num_pairs(shape)));
    for_each_value(shape, [&](int64_t index, int64_t pair) {
      value_range& range = ranges[static_cast<size_t>(pair)];
      range = include(range, x[index]);
    });
    std::vector<affine_scale> scales;
    for (const value_range& range : ranges) {
      const auto pair = affine<Bits>::template fit<Storage>(range);
      save_number(out, static_cast<int64_t>(scales.size()), pair);
      scales.push_back(affine<Bits>::widen(pair));
    }
    std::byte* packed = out + 4 * num_pairs(shape);
    for_each_value(shape, [&](int64_t index, int64_t pair) {
      codes::save(packed, index,
                  affine<Bits>::quantize(x[index], scales[static_cast<size_t>(pair)]));
    });
  }

  template <class Storage>
  static void decode(const std::byte* in, const block_shape& shape, int64_t first, int64_t count,
                     float* out) {
    const std::byte* packed = in + 4 * num_pairs(shape);
    channel_scales scales(shape.head_dim);
    std::vector<uint8_t> row(static_cast<size_t>(shape.head_dim));
    for (int64_t token = first; token < first + count; ++token, out += shape.head_dim) {
      const bool keeps_pairs = Axis == parameter_axis::channel && token % GroupSize != 0;
      for (int32_t channel = 0; channel < shape.head_dim && (!keeps_pairs || token == first);
           ++channel)
        scales.set(channel,
                   load_number<affine_params<Storage>>(in, pair_of(shape, token, channel)));
      codes::unpack(packed, token * shape.head_dim, shape.head_dim, row.data());
      scales.dequantize(row.data(), out);
    }
  }

  static std::string name() {
    return (Axis == parameter_axis::channel ? "channel_groups" : "token_groups") +
           std::to_string(GroupSize) + "_" + std::to_string(Bits) + "bit";
  }

 private:
  using codes = packed_codes<Bits>;

  static int64_t num_pairs(const block_shape& shape) {
    return Axis == parameter_axis::channel
               ? ceil_div<int64_t>(shape.num_tokens, GroupSize) * shape.head_dim
               : shape.num_tokens * ceil_div(shape.head_dim, GroupSize);
  }

  static int64_t pair_of(const block_shape& shape, int64_t token, int32_t channel) {
    return Axis == parameter_axis::channel
               ? token / GroupSize * shape.head_dim + channel
               : token * ceil_div(shape.head_dim, GroupSize) + channel / GroupSize;
  }

  /// Calls visit(index of the value, index of its pair) for all values.
  template <class Visit>
  static void for_each_value(const block_shape& shape, Visit&& visit) {
    for (int64_t token = 0; token < shape.num_tokens; ++token) {
      for (int32_t channel = 0; channel < shape.head_dim; ++channel)
        visit(token * shape.head_dim + channel, pair_of(shape, token, channel));
    }
  }
};

}  // namespace zipcache

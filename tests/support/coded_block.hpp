// Values coded by a block codec, the bytes, and what they decode to.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include <zipcache/quantize/block_codec.hpp>

#include "support/generators.hpp"

namespace zipcache_test {

/// Bytes behind a block, to see that nothing is written there.
inline constexpr size_t guard_bytes = 64;
inline constexpr std::byte guard{0xa5};

template <class Codec, class Storage = zipcache::half>
struct coded_block {
  zipcache::block_shape shape;
  std::vector<float> x;  // [num_tokens, head_dim]
  std::vector<std::byte> bytes;
  std::vector<float> back;

  coded_block(const zipcache::block_shape& given, const std::vector<float>& values)
      : shape(given),
        x(values),
        bytes(static_cast<size_t>(Codec::size(given).bytes()) + guard_bytes, guard),
        back(decoded(0, given.num_tokens, true)) {}

  /// Of values as a cache has them, rounded to 16 bits.
  coded_block(const zipcache::block_shape& given, content what, uint64_t seed)
      : coded_block(given, rounded(make_values(what, 1, given.num_tokens, given.head_dim, seed))) {}

  std::vector<float> decoded(int64_t first, int64_t count, bool encode_first = false) {
    if (encode_first) Codec::template encode<Storage>(x.data(), shape, bytes.data());
    std::vector<float> out(static_cast<size_t>(count * shape.head_dim));
    Codec::template decode<Storage>(bytes.data(), shape, first, count, out.data());
    return out;
  }
  float at(int64_t token, int32_t channel) const { return x[index(token, channel)]; }
  double error(int64_t token, int32_t channel) const {
    return static_cast<double>(back[index(token, channel)]) -
           static_cast<double>(x[index(token, channel)]);
  }
  double squared_error() const {
    double sum = 0.0;
    for (int64_t token = 0; token < shape.num_tokens; ++token)
      for (int32_t channel = 0; channel < shape.head_dim; ++channel)
        sum += error(token, channel) * error(token, channel);
    return sum;
  }

  static std::vector<float> rounded(std::vector<float> values) {
    for (float& value : values) value = zipcache::to_float(zipcache::from_float<Storage>(value));
    return values;
  }

 private:
  size_t index(int64_t token, int32_t channel) const {
    return static_cast<size_t>(token * shape.head_dim + channel);
  }
};

/// What 16 bits lose: u of the type.
template <class Storage>
inline constexpr double unit_of = std::is_same_v<Storage, zipcache::half> ? 0x1p-11 : 0x1p-8;

}  // namespace zipcache_test

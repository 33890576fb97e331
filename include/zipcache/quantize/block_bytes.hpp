// What block codecs write and read their bytes with: numbers without alignment, packed codes, and
// the scales of a row. Parts of a block follow each other without padding.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include <zipcache/core/numerics.hpp>
#include <zipcache/core/types.hpp>
#include <zipcache/quantize/affine.hpp>

namespace zipcache {

/// Number `index` of those that begin at `from`.
template <class T>
T load_number(const std::byte* from, int64_t index) {
  T number;
  std::memcpy(&number, from + index * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return number;
}
/// Its inverse.
template <class T>
void save_number(std::byte* to, int64_t index, T number) {
  std::memcpy(to + index * static_cast<int64_t>(sizeof(T)), &number, sizeof(T));
}

/// `count` codes one behind the other, lowest bits first.
template <int Bits>
struct packed_codes {
  static_assert(Bits == 1 || Bits == 2 || Bits == 4 || Bits == 8,
                "zipcache: packed codes have 1, 2, 4 or 8 bits");
  static constexpr int64_t per_byte = 8 / Bits;

  static constexpr int64_t bytes(int64_t count) { return ceil_div(count, per_byte); }
  static uint32_t load(const std::byte* codes, int64_t index) {
    return std::to_integer<uint32_t>(codes[index / per_byte]) >> (index % per_byte * Bits) &
           ((1u << Bits) - 1);
  }
  /// The codes of whole bytes. @pre index and count are multiples of per_byte
  static void unpack(const std::byte* codes, int64_t index, int64_t count, uint8_t* out) {
    for (int64_t byte = index / per_byte; count > 0; ++byte, count -= per_byte, out += per_byte) {
      const auto packed = std::to_integer<uint32_t>(codes[byte]);
      for (int64_t i = 0; i < per_byte; ++i)
        out[i] = static_cast<uint8_t>(packed >> (i * Bits) & ((1u << Bits) - 1));
    }
  }
  /// @pre the code's bits are 0
  static void save(std::byte* codes, int64_t index, uint32_t code) {
    codes[index / per_byte] |= static_cast<std::byte>(code << (index % per_byte * Bits));
  }
};

/// The pairs of a row's channels, widened.
struct channel_scales {
  std::vector<float> steps, mins;

  explicit channel_scales(int32_t head_dim)
      : steps(static_cast<size_t>(head_dim)), mins(steps.size()) {}

  template <class Storage>
  void set(int32_t channel, affine_params<Storage> pair) {
    steps[static_cast<size_t>(channel)] = to_float(pair.step);
    mins[static_cast<size_t>(channel)] = to_float(pair.min);
  }
  /// affine::dequantize of codes of at most 8 bits in a loop that vectorizes without FMA: the
  /// product of 8 bits and a 16-bit type's mantissa is exact, so that fusing it changes nothing.
  void dequantize(const uint8_t* codes, float* out) const {
    for (size_t channel = 0; channel < steps.size(); ++channel)
      out[channel] = static_cast<float>(codes[channel]) * steps[channel] + mins[channel];
  }
};

/// A stand-in for values that must not spoil others.
inline float finite_or_zero(float x) { return is_finite(x) ? x : 0.0f; }

}  // namespace zipcache

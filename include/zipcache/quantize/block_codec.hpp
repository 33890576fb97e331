// Block codecs: quantizers that code all tokens of one side (keys or values) of one KV head of a
// segment as bytes of their own, where the (step, min) pairs of a group layout are not enough:
// boosted channels, element classes, outliers, low-rank residuals. In: values [num_tokens,
// head_dim] as floats. Out: a string of bytes whose length follows from the shape alone, so that
// pages and the footprint are known before anything is coded.
//
// A codec is a policy: coded_keys<Codec>, coded_values<Codec>. It has
//   static constexpr int bits                                   of a plain code; names, not sizes
//   static block_size size(const block_shape&)                  bytes of the block
//   template <class Storage> static void
//     encode(const float* x, const block_shape&, std::byte* out)
//     decode(const std::byte* in, const block_shape&, int64_t first, int64_t count, float* out)
//   static std::string name()
// Parameters are in `Storage`, the cache's 16-bit type. Non-finite values take no part in a range
// and come back as something finite; they spoil no other value. A block of no tokens is never
// asked for.
//
// Attention does not read a block's codes: it decodes 32 rows at a time into floats (store/
// decoded_rows.hpp). CPU only.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include <zipcache/core/numerics.hpp>
#include <zipcache/core/types.hpp>
#include <zipcache/quantize/affine.hpp>

namespace zipcache {

/// Whether tokens were compressed at the end of a prompt or came out of the window. Said by the
/// caller, never guessed from a length.
enum class segment_origin : uint8_t { prompt, streamed };

struct block_shape {
  int64_t num_tokens;
  int32_t head_dim;
  segment_origin origin = segment_origin::prompt;
};

/// Bytes of a block by purpose.
struct block_size {
  int64_t code_bytes = 0;       ///< what grows with the values: codes, exact outliers
  int64_t parameter_bytes = 0;  ///< steps, minima, factors, maps

  constexpr int64_t bytes() const { return code_bytes + parameter_bytes; }
};

template <class C>
concept says_plain_bits = requires {
  { C::bits } -> std::convertible_to<int>;
};
template <class C>
concept says_block_size = requires(const block_shape& shape) {
  { C::size(shape) } -> std::same_as<block_size>;
};
template <class C>
concept encodes_blocks = requires(const float* x, const block_shape& shape, std::byte* out) {
  C::template encode<half>(x, shape, out);
};
template <class C>
concept decodes_blocks = requires(const std::byte* in, const block_shape& shape, int64_t first,
                                  int64_t count, float* out) {
  C::template decode<half>(in, shape, first, count, out);
};
template <class C>
concept block_codec =
    says_plain_bits<C> && says_block_size<C> && encodes_blocks<C> && decodes_blocks<C>;

namespace detail {

// Parts of a block follow each other without padding, so numbers are read and written by memcpy.
template <class T>
T load_number(const std::byte* from, int64_t index) {
  T number;
  std::memcpy(&number, from + index * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return number;
}
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
  /// `count` codes from a whole byte on. @pre index * Bits is a multiple of 8
  static void unpack(const std::byte* codes, int64_t index, int64_t count, uint8_t* out) {
    for (int64_t i = 0; i < count; ++i) out[i] = static_cast<uint8_t>(load(codes, index + i));
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

inline float finite_or_zero(float x) { return is_finite(x) ? x : 0.0f; }

}  // namespace detail
}  // namespace zipcache

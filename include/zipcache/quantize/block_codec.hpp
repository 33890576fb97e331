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
// block_bytes.hpp has what codecs write and read blocks with. Attention does not read a block's
// codes: it decodes 32 rows at a time into floats (store/decoded_rows.hpp). CPU only.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>

#include <zipcache/core/types.hpp>

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

}  // namespace zipcache

#include "dequantize.hpp"

#include <cstdint>
#include <stdexcept>

#include "gguf_reader.hpp"
#include "half.hpp"

namespace zipcache_llama {
namespace {

float load_half(const std::byte* from) {
  return half_to_float(load_little_endian<std::uint16_t>(from));
}

int low_nibble(std::byte b) { return std::to_integer<int>(b) & 15; }
int high_nibble(std::byte b) { return std::to_integer<int>(b) >> 4; }

void decode_f32(const std::byte* block, float* out) { out[0] = load_little_endian<float>(block); }
void decode_f16(const std::byte* block, float* out) { out[0] = load_half(block); }
void decode_bf16(const std::byte* block, float* out) {
  out[0] = bfloat16_to_float(load_little_endian<std::uint16_t>(block));
}

// half scale | 16 bytes: byte j holds code j in its low and code j + 16 in its high nibble. value =
// (code − 8) · scale
void decode_q4_0(const std::byte* block, float* out) {
  const float scale = load_half(block);
  for (int j = 0; j < 16; ++j) {
    out[j] = static_cast<float>(low_nibble(block[2 + j]) - 8) * scale;
    out[j + 16] = static_cast<float>(high_nibble(block[2 + j]) - 8) * scale;
  }
}

// half scale | half minimum | nibbles as in q4_0. value = code · scale + minimum
void decode_q4_1(const std::byte* block, float* out) {
  const float scale = load_half(block);
  const float minimum = load_half(block + 2);
  for (int j = 0; j < 16; ++j) {
    out[j] = static_cast<float>(low_nibble(block[4 + j])) * scale + minimum;
    out[j + 16] = static_cast<float>(high_nibble(block[4 + j])) * scale + minimum;
  }
}

// half scale | 32 signed bytes. value = code · scale
void decode_q8_0(const std::byte* block, float* out) {
  const float scale = load_half(block);
  for (int j = 0; j < 32; ++j) {
    out[j] = static_cast<float>(static_cast<std::int8_t>(block[2 + j])) * scale;
  }
}

// half scale of scales | half scale of minima | 12 bytes: eight 6-bit scales and eight 6-bit minima
// | 128 bytes codes. Sub-block s of 32 values: value = scale · scales[s] · code − minimum ·
// minima[s]. Of the 12 bytes, 0–3 hold scales 0–3 and 4–7 minima 0–3 in their low six bits; byte 8
// + i holds the low nibbles of scale and minimum 4 + i, whose upper two bits are the upper two of
// bytes i and 4 + i. Codes: 32 bytes for each pair of sub-blocks, the even one in the low nibbles.
void decode_q4_k(const std::byte* block, float* out) {
  const float scale = load_half(block);
  const float minimum = load_half(block + 2);
  const std::byte* packed = block + 4;
  const std::byte* codes = block + 16;
  const auto byte_at = [packed](int i) { return std::to_integer<int>(packed[i]); };
  for (int s = 0; s < 8; ++s) {
    int sub_scale = 0;
    int sub_minimum = 0;
    if (s < 4) {
      sub_scale = byte_at(s) & 63;
      sub_minimum = byte_at(4 + s) & 63;
    } else {
      sub_scale = (byte_at(4 + s) & 15) | (byte_at(s - 4) >> 6 << 4);
      sub_minimum = (byte_at(4 + s) >> 4) | (byte_at(s) >> 6 << 4);
    }
    const float step = scale * static_cast<float>(sub_scale);
    const float offset = minimum * static_cast<float>(sub_minimum);
    const std::byte* from = codes + s / 2 * 32;
    for (int j = 0; j < 32; ++j) {
      const int code = s % 2 == 0 ? low_nibble(from[j]) : high_nibble(from[j]);
      out[s * 32 + j] = step * static_cast<float>(code) - offset;
    }
  }
}

// 128 bytes low nibbles | 64 bytes upper two bits | 16 signed scales | half scale.
// value i = scale · scales[i / 16] · (code − 32). In each half of 128 values, quarter p (32 values)
// takes its nibble from byte (p % 2) · 32 + l, low nibbles first, and its upper bits from bits 2p
// of byte l.
void decode_q6_k(const std::byte* block, float* out) {
  const std::byte* low = block;
  const std::byte* high = block + 128;
  const std::byte* scales = block + 192;
  const float scale = load_half(block + 208);
  for (int half = 0; half < 2; ++half) {
    for (int quarter = 0; quarter < 4; ++quarter) {
      for (int l = 0; l < 32; ++l) {
        const std::byte nibbles = low[half * 64 + quarter % 2 * 32 + l];
        const int upper = std::to_integer<int>(high[half * 32 + l]) >> (2 * quarter) & 3;
        const int code = (quarter < 2 ? low_nibble(nibbles) : high_nibble(nibbles)) | upper << 4;
        const int i = half * 128 + quarter * 32 + l;
        const float step = scale * static_cast<float>(static_cast<std::int8_t>(scales[i / 16]));
        out[i] = step * static_cast<float>(code - 32);
      }
    }
  }
}

template <class Decode>
void for_each_block(tensor_layout layout, std::span<const std::byte> data, std::span<float> values,
                    Decode decode) {
  const std::size_t blocks = data.size() / layout.block_bytes;
  for (std::size_t b = 0; b < blocks; ++b) {
    decode(data.data() + b * layout.block_bytes, values.data() + b * layout.block_elements);
  }
}

}  // namespace

void dequantize(tensor_type type, std::span<const std::byte> data, std::span<float> values) {
  const auto layout = layout_of(type);
  if (data.size() % layout.block_bytes != 0 ||
      data.size() / layout.block_bytes * layout.block_elements != values.size()) {
    throw std::invalid_argument("dequantize: the bytes do not hold that many elements of " +
                                tensor_type_name(type));
  }
  switch (type) {
    case tensor_type::f32:
      return for_each_block(layout, data, values, decode_f32);
    case tensor_type::f16:
      return for_each_block(layout, data, values, decode_f16);
    case tensor_type::bf16:
      return for_each_block(layout, data, values, decode_bf16);
    case tensor_type::q4_0:
      return for_each_block(layout, data, values, decode_q4_0);
    case tensor_type::q4_1:
      return for_each_block(layout, data, values, decode_q4_1);
    case tensor_type::q8_0:
      return for_each_block(layout, data, values, decode_q8_0);
    case tensor_type::q4_k:
      return for_each_block(layout, data, values, decode_q4_k);
    case tensor_type::q6_k:
      return for_each_block(layout, data, values, decode_q6_k);
  }
}

}  // namespace zipcache_llama

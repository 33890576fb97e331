#include "dequantize.hpp"

#include <cmath>
#include <limits>

#include "gguf_writer.hpp"
#include "support/catch.hpp"

using namespace zipcache_llama;
using namespace zipcache_llama_test;

namespace {

constexpr std::uint16_t half_one = 0x3C00;
constexpr std::uint16_t half_two = 0x4000;
constexpr std::uint16_t half_minus_half = 0xB800;

std::vector<float> decoded(tensor_type type, const bytes& data) {
  const auto layout = layout_of(type);
  std::vector<float> values(data.size() / layout.block_bytes * layout.block_elements);
  dequantize(type, data, values);
  return values;
}

}  // namespace

TEST_CASE("dequantize: 16-bit floats are exact, special values too", "[llama][dequantize]") {
  bytes halves;
  for (const int bits : {0x3C00, 0xC000, 0x0001, 0x03FF, 0x7BFF, 0x7C00, 0xFC00, 0x8000}) {
    put(halves, static_cast<std::uint16_t>(bits));
  }
  const auto values = decoded(tensor_type::f16, halves);
  CHECK(values[0] == 1.0F);
  CHECK(values[1] == -2.0F);
  CHECK(values[2] == 0x1p-24F);
  CHECK(values[3] == 1023 * 0x1p-24F);
  CHECK(values[4] == 65504.0F);
  CHECK(values[5] == std::numeric_limits<float>::infinity());
  CHECK(values[6] == -std::numeric_limits<float>::infinity());
  CHECK((values[7] == 0.0F && std::signbit(values[7])));
  CHECK(std::isnan(half_to_float(0x7E00)));
  bytes bfloat;
  put<std::uint16_t>(bfloat, 0x3FC0);
  CHECK(decoded(tensor_type::bf16, bfloat)[0] == 1.5F);
}

TEST_CASE("dequantize: 4-bit and 8-bit blocks follow their formula", "[llama][dequantize]") {
  bytes q4_0;
  put(q4_0, half_two);
  bytes q4_1;
  put(q4_1, half_two);
  put(q4_1, half_minus_half);
  bytes q8_0;
  put(q8_0, half_minus_half);
  for (int j = 0; j < 16; ++j) {  // code j low, 15 − j high
    const auto packed = static_cast<std::uint8_t>(j | (15 - j) << 4);
    put(q4_0, packed);
    put(q4_1, packed);
  }
  for (int j = 0; j < 32; ++j) {
    put(q8_0, static_cast<std::int8_t>(8 * j - 128));
  }
  for (int j = 0; j < 16; ++j) {
    const auto at = static_cast<std::size_t>(j);
    CHECK(decoded(tensor_type::q4_0, q4_0)[at] == 2.0F * static_cast<float>(j - 8));
    CHECK(decoded(tensor_type::q4_0, q4_0)[at + 16] == 2.0F * static_cast<float>(7 - j));
    CHECK(decoded(tensor_type::q4_1, q4_1)[at] == 2.0F * static_cast<float>(j) - 0.5F);
    CHECK(decoded(tensor_type::q4_1, q4_1)[at + 16] == 2.0F * static_cast<float>(15 - j) - 0.5F);
  }
  CHECK(decoded(tensor_type::q8_0, q8_0)[0] == 64.0F);
  CHECK(decoded(tensor_type::q8_0, q8_0)[31] == -60.0F);
}

// Scales 1, 2, 3, 4, 50, 38, 23, 63 and minima 5, 6, 7, 8, 33, 18, 47, 63, packed by hand as the
// format says: low six bits of the first eight bytes, the rest's low nibbles in bytes 8–11, its
// upper bits on top of bytes 0–7.
TEST_CASE("dequantize: Q4_K unpacks its 6-bit scales", "[llama][dequantize]") {
  bytes block;
  put(block, half_one);
  put(block, half_two);
  for (const int byte : {1 | 3 << 6, 2 | 2 << 6, 3 | 1 << 6,
                         4 | 3 << 6,  // 50 = 2 + 48, 38 = 6 + 32, 23 = 7 + 16, 63
                         5 | 2 << 6, 6 | 1 << 6, 7 | 2 << 6,
                         8 | 3 << 6,  // 33 = 1 + 32, 18 = 2 + 16, 47 = 15 + 32, 63
                         2 | 1 << 4, 6 | 2 << 4, 7 | 15 << 4, 15 | 15 << 4}) {
    put(block, static_cast<std::uint8_t>(byte));
  }
  for (int j = 0; j < 128; ++j) {
    put(block, static_cast<std::uint8_t>(3 | 9 << 4));  // even sub-blocks hold 3, odd ones 9
  }
  const std::vector<int> scales = {1, 2, 3, 4, 50, 38, 23, 63};
  const std::vector<int> minima = {5, 6, 7, 8, 33, 18, 47, 63};
  const auto values = decoded(tensor_type::q4_k, block);
  for (std::size_t i = 0; i < 256; ++i) {
    const int code = i / 32 % 2 == 0 ? 3 : 9;
    REQUIRE(values[i] == static_cast<float>(scales[i / 32] * code - 2 * minima[i / 32]));
  }
}

// Only value 75 differs from code 0: quarter 2, l = 11 of the first half.
TEST_CASE("dequantize: Q6_K finds its low and high bits", "[llama][dequantize]") {
  bytes block(210);
  block[11] = std::byte{0xA0};  // low nibbles of quarters 0 and 2; value 75 is in the high half
  block[128 + 11] = std::byte{0x03 << 4};  // bits 4–5 belong to quarter 2
  for (std::size_t s = 0; s < 16; ++s) {
    block[192 + s] = static_cast<std::byte>(static_cast<std::int8_t>(s) - 8);
  }
  block[208] = std::byte{0x00};
  block[209] = std::byte{0x40};  // scale 2
  const auto values = decoded(tensor_type::q6_k, block);
  for (std::size_t i = 0; i < 256; ++i) {
    const int code = i == 75 ? 10 + 48 : 0;
    REQUIRE(values[i] == 2.0F * static_cast<float>((static_cast<int>(i / 16) - 8) * (code - 32)));
  }
}

TEST_CASE("dequantize: sizes have to fit", "[llama][dequantize]") {
  std::vector<float> values(32);
  CHECK_THROWS_AS(dequantize(tensor_type::q4_0, bytes(17), values), std::invalid_argument);
  CHECK_THROWS_AS(dequantize(tensor_type::q4_0, bytes(36), values), std::invalid_argument);
}

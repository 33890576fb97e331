// 16-bit floats, widened exactly.
#pragma once

#include <bit>
#include <cstdint>

namespace zipcache_llama {

// IEEE binary16. The exponent and fraction are moved to where binary32 has them and the product
// with 2^112 rebiases the exponent; that also normalises subnormals, which a shift alone cannot do.
constexpr float half_to_float(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000U) << 16;
  const std::uint32_t magnitude = static_cast<std::uint32_t>(half & 0x7FFFU) << 13;
  constexpr std::uint32_t half_infinity = 0x7C00U << 13;
  if (magnitude >= half_infinity) {  // infinity and NaN keep an exponent of all ones
    return std::bit_cast<float>(sign | magnitude | 0x7F800000U);
  }
  const float rebiased = std::bit_cast<float>(magnitude) * 0x1p112F;
  return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(rebiased));
}

constexpr float bfloat16_to_float(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

}  // namespace zipcache_llama

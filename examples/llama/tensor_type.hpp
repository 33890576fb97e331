// The element types of GGUF tensors that this program reads, and how many bytes their blocks take.
// A quantized type stores `block_elements` consecutive values in `block_bytes` bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

namespace zipcache_llama {

enum class tensor_type : std::uint32_t {
  f32 = 0,
  f16 = 1,
  q4_0 = 2,
  q4_1 = 3,
  q8_0 = 8,
  q4_k = 12,
  q6_k = 14,
  bf16 = 30,
};

struct tensor_layout {
  std::size_t block_elements;
  std::size_t block_bytes;
};

// nullopt for a type that this program does not read.
constexpr std::optional<tensor_layout> find_tensor_layout(std::uint32_t type) {
  switch (static_cast<tensor_type>(type)) {
    case tensor_type::f32:
      return tensor_layout{1, 4};
    case tensor_type::f16:
      return tensor_layout{1, 2};
    case tensor_type::bf16:
      return tensor_layout{1, 2};
    case tensor_type::q4_0:
      return tensor_layout{32, 2 + 16};
    case tensor_type::q4_1:
      return tensor_layout{32, 2 + 2 + 16};
    case tensor_type::q8_0:
      return tensor_layout{32, 2 + 32};
    case tensor_type::q4_k:
      return tensor_layout{256, 2 + 2 + 12 + 128};
    case tensor_type::q6_k:
      return tensor_layout{256, 128 + 64 + 16 + 2};
  }
  return std::nullopt;
}

constexpr tensor_layout layout_of(tensor_type type) {
  return *find_tensor_layout(static_cast<std::uint32_t>(type));
}

// Also names the published types that this program cannot read, so that an error can say which one
// it met.
inline std::string tensor_type_name(std::uint32_t type) {
  switch (type) {
    case 0:
      return "F32";
    case 1:
      return "F16";
    case 2:
      return "Q4_0";
    case 3:
      return "Q4_1";
    case 6:
      return "Q5_0";
    case 7:
      return "Q5_1";
    case 8:
      return "Q8_0";
    case 9:
      return "Q8_1";
    case 10:
      return "Q2_K";
    case 11:
      return "Q3_K";
    case 12:
      return "Q4_K";
    case 13:
      return "Q5_K";
    case 14:
      return "Q6_K";
    case 15:
      return "Q8_K";
    case 20:
      return "IQ4_NL";
    case 23:
      return "IQ4_XS";
    case 28:
      return "F64";
    case 30:
      return "BF16";
    default:
      return "type " + std::to_string(type);
  }
}

inline std::string tensor_type_name(tensor_type type) {
  return tensor_type_name(static_cast<std::uint32_t>(type));
}

}  // namespace zipcache_llama

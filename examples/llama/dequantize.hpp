// GGUF tensor bytes → float. Every format is described where it is decoded, in dequantize.cpp.
#pragma once

#include <cstddef>
#include <span>

#include "tensor_type.hpp"

namespace zipcache_llama {

// @param[in]  data    whole blocks of `type`
// @param[out] values  one float for each element of those blocks
// @throws std::invalid_argument if the two sizes do not belong together
void dequantize(tensor_type type, std::span<const std::byte> data, std::span<float> values);

}  // namespace zipcache_llama

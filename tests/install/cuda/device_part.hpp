// What the two files of the consumer share: types of the library cross between the compilers.
#pragma once

#include <cstdint>
#include <vector>

#include <zipcache/core/shape.hpp>
#include <zipcache/core/types.hpp>

bool has_gpu();

/// Decodes all tokens on the GPU. q, k, v and the result: [num_tokens, num_heads, head_dim]
std::vector<float> attend_on_gpu(const zipcache::cache_shape& shape,
                                 const std::vector<zipcache::half>& q,
                                 const std::vector<zipcache::half>& k,
                                 const std::vector<zipcache::half>& v, int64_t num_tokens);

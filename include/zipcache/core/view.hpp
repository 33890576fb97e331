// Views of the caller's tensors. A view owns nothing; strides are in elements, so both [tokens,
// heads, head_dim]
// ("nhd") and [heads, tokens, head_dim] ("hnd") buffers, and slices of larger ones, are passed
// without a copy.
#pragma once

#include <cstdint>
#include <type_traits>

#include <zipcache/config.hpp>

namespace zipcache {

/// A [num_heads, num_tokens, head_dim] tensor whose channels are contiguous.
template <class T>
struct tensor_view {
  T* data = nullptr;
  int32_t num_heads = 0;
  int64_t num_tokens = 0;
  int32_t head_dim = 0;
  int64_t head_stride = 0;
  int64_t token_stride = 0;

  ZIPCACHE_HOST_DEVICE T* row(int64_t head, int64_t token) const {
    return data + head * head_stride + token * token_stride;
  }

  /// Tokens [first, first + count) of the same tensor.
  tensor_view tokens(int64_t first, int64_t count) const {
    tensor_view slice = *this;
    slice.data = data + first * token_stride;
    slice.num_tokens = count;
    return slice;
  }

  /// To a view that does not write. A template, since nvcc warns of a plain one that a constant T
  /// would never call.
  template <class Constant>
  requires(!std::is_const_v<T> && std::is_same_v<Constant, const T>)
  operator tensor_view<Constant>() const {
    return {data, num_heads, num_tokens, head_dim, head_stride, token_stride};
  }
};

/// A contiguous [num_heads, num_tokens, head_dim] buffer.
template <class T>
tensor_view<T> hnd(T* data, int32_t num_heads, int64_t num_tokens, int32_t head_dim) {
  return {data, num_heads, num_tokens, head_dim, num_tokens * head_dim, head_dim};
}

/// A contiguous [num_tokens, num_heads, head_dim] buffer.
template <class T>
tensor_view<T> nhd(T* data, int64_t num_tokens, int32_t num_heads, int32_t head_dim) {
  return {data,     num_heads, num_tokens,
          head_dim, head_dim,  static_cast<int64_t>(num_heads) * head_dim};
}

}  // namespace zipcache

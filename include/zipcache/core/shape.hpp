// The attention shape of a model, as the field names it.
#pragma once

#include <cmath>
#include <cstdint>

#include <zipcache/core/error.hpp>

namespace zipcache {

/// Tokens of one class of one head that are coded together, as a tile (store/tile.hpp).
inline constexpr int32_t tile_tokens = 32;

struct cache_shape {
  int32_t num_layers = 1;
  int32_t num_qo_heads = 0;
  int32_t num_kv_heads = 0;
  int32_t head_dim = 0;
  float sm_scale = 0.0f;  ///< factor on q . k before the softmax; 0 means 1 / sqrt(head_dim)

  /// Query heads that share one KV head (grouped-query attention).
  int32_t group() const { return num_qo_heads / num_kv_heads; }
  float softmax_scale() const {
    return sm_scale > 0.0f ? sm_scale : 1.0f / std::sqrt(static_cast<float>(head_dim));
  }
};

namespace detail {

inline void check_head_dim(int32_t head_dim) {
  if (head_dim < 16 || head_dim > 256 || head_dim % 16 != 0) {
    refuse("head_dim", head_dim, "a multiple of 16 from 16 to 256");
  }
}

inline void check_shape(const cache_shape& shape) {
  require_between("num_layers", shape.num_layers, 1, 65536);
  require_between("num_kv_heads", shape.num_kv_heads, 1, 65536);
  require_between("num_qo_heads", shape.num_qo_heads, 1, 65536);
  if (shape.num_qo_heads % shape.num_kv_heads != 0) {
    refuse("num_qo_heads", shape.num_qo_heads,
           ("a multiple of num_kv_heads, which is " + std::to_string(shape.num_kv_heads)).c_str());
  }
  check_head_dim(shape.head_dim);
  require(shape.sm_scale >= 0.0f && shape.sm_scale <= 3.0e38f,
          "sm_scale must be a finite number, 0 for the default");
}

}  // namespace detail
}  // namespace zipcache

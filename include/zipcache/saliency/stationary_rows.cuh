// The rows of a product that stay where they are: a warp's share of them, in its registers.
#pragma once

#include <cstdint>

#include <zipcache/core/numerics.hpp>

namespace zipcache::detail {

/// RowTiles times 16 rows in the registers of a warp, as operand A of multiply_add.
template <class Element, int HeadDim, int RowTiles>
struct stationary_rows {
  uint32_t words[RowTiles][HeadDim / 16][4];

  /// `row_of(i)` is row i of the warp, or null for zeros.
  template <class RowOf>
  __device__ void load(int32_t head_dim, int32_t lane, const RowOf& row_of) {
    ZIPCACHE_UNROLL
    for (int32_t tile = 0; tile < RowTiles; ++tile) {
      ZIPCACHE_UNROLL
      for (int32_t upper = 0; upper < 2; ++upper) {
        const Element* row = row_of(16 * tile + 8 * upper + lane / 4);
        ZIPCACHE_UNROLL
        for (int32_t step = 0; step < HeadDim / 16; ++step) {
          const bool used = row != nullptr && 16 * step < head_dim;
          const Element* from = row + 16 * step + lane % 4 * 2;
          words[tile][step][upper] = used ? *reinterpret_cast<const uint32_t*>(from) : 0u;
          words[tile][step][upper + 2] = used ? *reinterpret_cast<const uint32_t*>(from + 8) : 0u;
        }
      }
    }
  }
  /// Changes the sign of all values.
  __device__ void negate() {
    ZIPCACHE_UNROLL
    for (int32_t tile = 0; tile < RowTiles; ++tile) {
      ZIPCACHE_UNROLL
      for (int32_t step = 0; step < HeadDim / 16; ++step) {
        ZIPCACHE_UNROLL
        for (int32_t i = 0; i < 4; ++i) words[tile][step][i] ^= 0x80008000u;
      }
    }
  }
};

}  // namespace zipcache::detail

// What a lane of the tensor core kernel carries from tile to tile: the online softmax of its query
// head and its part of the output.
#pragma once

#include <cmath>
#include <cstdint>

#include <zipcache/attend/attend_merge.cuh>
#include <zipcache/attend/tensor_core_tile.cuh>
#include <zipcache/core/numerics.hpp>

namespace zipcache::detail {

/// Softmax of a lane's query heads, one of each set, over what its warp has seen of the current
/// segment, and the lane's part of the output in operand layout.
template <int32_t HeadDim, int32_t Sets>
struct lane_state {
  static constexpr int32_t blocks = HeadDim / 16;
  float maximum[Sets];
  float sum[Sets];           // of the lane's own tokens; all segments
  float zero[Sets];          // sum of p * min over the lane's own tokens; this segment
  float value_scale = 0.0f;  // power of two that keeps p * step within halves; this segment
  float sums[Sets][blocks][4];
  float stored_maximum[Sets];  // against which shared memory holds earlier segments' output

  static constexpr float initial_value_scale = 1.2676506e30f;  // 2^100: the first tile lowers it
  /// A maximum may be exceeded by this much (base 2) before everything is rescaled.
  static constexpr float margin = 8.0f;
  static constexpr float largest_scaled_step = 16.0f;

  __device__ lane_state() {
#pragma unroll
    for (int32_t set = 0; set < Sets; ++set) {
      maximum[set] = stored_maximum[set] = -INFINITY;
      sum[set] = 0.0f;
    }
    begin_segment();
  }
  __device__ void begin_segment() {
    value_scale = initial_value_scale;
#pragma unroll
    for (int32_t set = 0; set < Sets; ++set) {
      zero[set] = 0.0f;
      for_each_sum(set, [](float& x) { x = 0.0f; });
    }
  }
  /// Calls visit(sum) for all of a set.
  template <class Visit>
  __device__ __forceinline__ void for_each_sum(int32_t set, Visit&& visit) {
#pragma unroll
    for (int32_t block = 0; block < blocks; ++block) {
#pragma unroll
      for (int32_t i = 0; i < 4; ++i) visit(sums[set][block][i]);
    }
  }

  /// Whether a tile's scores or steps need the state to be adapted. One lane.
  __device__ __forceinline__ bool is_outside(const float (&tile_maximum)[Sets],
                                             float tile_step) const {
    bool outside = tile_step * value_scale > largest_scaled_step;
#pragma unroll
    for (int32_t set = 0; set < Sets; ++set)
      outside = outside || tile_maximum[set] > maximum[set] + margin;
    return outside;
  }
  /// Raises the maxima to the tile's and lowers the value scale to the tile's steps. All lanes of
  /// the warp.
  __device__ __forceinline__ void adapt(const float (&tile_maximum)[Sets], float tile_step) {
    float factor_of_values = 1.0f;
    tile_step = highest_of_rows(tile_step);
    if (tile_step * value_scale > largest_scaled_step) {
      const float lowered = float_of((254u - (bits_of(tile_step) >> 23))
                                     << 23);  // 2^-exponent: the step becomes 1..2
      factor_of_values = lowered / value_scale;
      value_scale = lowered;
    }
#pragma unroll
    for (int32_t set = 0; set < Sets; ++set) {
      const float highest = highest_of_rows(tile_maximum[set]);
      float factor = factor_of_values;
      if (highest > maximum[set]) {
        const float lowered = exp2_unit(maximum[set] - highest);
        maximum[set] = highest;
        sum[set] *= lowered;
        zero[set] *= lowered;
        factor *= lowered;
      }
      for_each_sum(set, [&](float& x) { x *= factor; });
    }
  }

 private:
  __device__ __forceinline__ static float highest_of_rows(float x) {
    for (int32_t lanes = 4; lanes < 32; lanes *= 2)
      x = fmaxf(x, __shfl_xor_sync(whole_warp, x, lanes));
    return x;
  }
};

}  // namespace zipcache::detail

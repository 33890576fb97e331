// What a lane of the tensor core kernel carries from tile to tile: the online softmax of its query
// head and its part of the output.
#pragma once

#include <cmath>
#include <cstdint>

#include <zipcache/attend/attend_merge.cuh>
#include <zipcache/attend/tensor_core_tile.cuh>
#include <zipcache/core/numerics.hpp>

namespace zipcache::detail {

/// Softmax of a lane's query head over what its warp has seen of the current segment, and the
/// lane's part of the output in operand layout.
template <int32_t HeadDim>
struct lane_state {
  float maximum = -INFINITY;
  float sum = 0.0f;          // of the lane's own tokens; all segments
  float zero = 0.0f;         // sum of p * min over the lane's own tokens; this segment
  float value_scale = 0.0f;  // power of two that keeps p * step within halves; this segment
  float sums[HeadDim / 16][4];
  float stored_maximum =
      -INFINITY;  // maximum against which shared memory holds earlier segments' output

  static constexpr float initial_value_scale = 1.2676506e30f;  // 2^100: the first tile lowers it
  /// A maximum may be exceeded by this much (base 2) before everything is rescaled.
  static constexpr float margin = 8.0f;
  static constexpr float largest_scaled_step = 16.0f;

  __device__ void begin_segment() {
    zero = 0.0f;
    value_scale = initial_value_scale;
#pragma unroll
    for (int32_t block = 0; block < HeadDim / 16; ++block) {
#pragma unroll
      for (int32_t i = 0; i < 4; ++i) sums[block][i] = 0.0f;
    }
  }
  __device__ void scale_sums(float factor) {
#pragma unroll
    for (int32_t block = 0; block < HeadDim / 16; ++block) {
#pragma unroll
      for (int32_t i = 0; i < 4; ++i) sums[block][i] *= factor;
    }
  }
  /// Raises the maximum to the tile's and lowers the value scale to the tile's steps. All lanes of
  /// the warp.
  __device__ __forceinline__ void adapt(float tile_maximum, float tile_step) {
    for (int32_t lanes = 4; lanes < 32; lanes *= 2)
      tile_maximum = fmaxf(tile_maximum, __shfl_xor_sync(whole_warp, tile_maximum, lanes));
    for (int32_t lanes = 4; lanes < 32; lanes *= 2)
      tile_step = fmaxf(tile_step, __shfl_xor_sync(whole_warp, tile_step, lanes));
    float factor = 1.0f;
    if (tile_maximum > maximum) {
      factor = exp2_unit(maximum - tile_maximum);
      maximum = tile_maximum;
      sum *= factor;
      zero *= factor;
    }
    if (tile_step * value_scale > largest_scaled_step) {
      const float lowered = float_of((254u - (bits_of(tile_step) >> 23))
                                     << 23);  // 2^-exponent: the step becomes 1..2
      factor *= lowered / value_scale;
      value_scale = lowered;
    }
    scale_sums(factor);
  }
};

}  // namespace zipcache::detail

// Quantizing rows on the device: statistics, parameters, codes and back. Rows come through an
// accessor (`Rows`: a callable `float (int32_t token, int32_t channel)` that returns a 16-bit
// value), so that tensors, staged tiles and the window share this code. The arithmetic is that of
// affine.hpp. Twin: quantize.hpp.
// @equality same_bytes
#pragma once

#include <cstdint>
#include <type_traits>

#include <zipcache/core/cuda.cuh>
#include <zipcache/core/view.hpp>
#include <zipcache/detail/warp.cuh>
#include <zipcache/quantize/affine.hpp>
#include <zipcache/quantize/granularity.hpp>
#include <zipcache/quantize/quantize.hpp>

namespace zipcache {
namespace detail {

/// The value that is quantized, as `normalized_value`. magnitudes [head_dim], widened
template <class Granularity, class Rows>
__device__ float normalized_value(const Rows& rows, int32_t token, int32_t channel,
                                  const float* magnitudes) {
  const float x = rows(token, channel);
  if constexpr (Granularity::has_channel_magnitudes) {
    return divide(x, magnitudes[channel]);
  } else {
    return x;
  }
}

/// Range of one channel over rows [first, first + count).
template <class Rows>
__device__ value_range channel_range(const Rows& rows, int32_t first, int32_t count,
                                     int32_t channel) {
  value_range range;
  for (int32_t token = first; token < first + count; ++token)
    range = include(range, rows(token, channel));
  return range;
}

/// Largest magnitude of one channel over rows [first, first + count).
template <class Rows>
__device__ float channel_largest(const Rows& rows, int32_t first, int32_t count, int32_t channel) {
  float largest = 0.0f;
  for (int32_t token = first; token < first + count; ++token)
    largest = include_magnitude(largest, rows(token, channel));
  return largest;
}

/// Range of this warp's lanes together, in every lane.
__device__ inline value_range warp_range(value_range range) {
  ZIPCACHE_UNROLL
  for (int32_t distance = 16; distance > 0; distance /= 2) {
    range = merge(range, {__shfl_xor_sync(whole_warp, range.lowest, distance),
                          __shfl_xor_sync(whole_warp, range.highest, distance)});
  }
  return range;
}

struct quantize_tuning {
  static constexpr int32_t channels = 32;  ///< of a block that gathers statistics
  static constexpr int32_t rows = 8;       ///< that it reads at once
  static constexpr int32_t threads = channels * rows;
};

/// Tokens that share a pair of one channel.
template <class Granularity>
ZIPCACHE_HOST_DEVICE constexpr int64_t tokens_per_channel_pair(int64_t num_tokens) {
  return Granularity::home == parameter_home::segment || Granularity::has_channel_magnitudes
             ? num_tokens
             : least<int64_t>(32, num_tokens);
}

namespace {

// Grid: x = tokens that share a pair (striding), y = 32 channels, z = head (striding).
// Warp: every eighth of those tokens. Lane: one channel.
// Memory: one range and one magnitude a thread in shared memory; x is read once.
template <class Granularity, int Bits, class Storage, class Element>
__global__ void __launch_bounds__(quantize_tuning::threads)
    channel_parameters_kernel(tensor_view<const Element> x,
                              code_view<Granularity, Bits, Storage> out) {
  __shared__ value_range ranges[quantize_tuning::rows][quantize_tuning::channels];
  __shared__ float magnitudes[quantize_tuning::rows][quantize_tuning::channels];
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
  const int32_t warp = static_cast<int32_t>(threadIdx.x) / 32;
  const int32_t channel = static_cast<int32_t>(blockIdx.y) * quantize_tuning::channels + lane;
  const int64_t together = tokens_per_channel_pair<Granularity>(x.num_tokens);
  const int64_t num_groups = ceil_div(x.num_tokens, together);
  for (int64_t head = blockIdx.z; head < x.num_heads; head += gridDim.z) {
    for (int64_t group = blockIdx.x; group < num_groups; group += gridDim.x) {
      value_range range;
      float magnitude = 0.0f;
      const int64_t last = least((group + 1) * together, x.num_tokens);
      for (int64_t token = group * together + warp; token < last && channel < x.head_dim;
           token += quantize_tuning::rows) {
        const float value = to_float(x.row(head, token)[channel]);
        range = include(range, value);
        magnitude = include_magnitude(magnitude, value);
      }
      ranges[warp][lane] = range;
      magnitudes[warp][lane] = magnitude;
      __syncthreads();
      if (warp == 0 && channel < x.head_dim) {
        for (int32_t other = 1; other < quantize_tuning::rows; ++other) {
          range = merge(range, ranges[other][lane]);
          magnitude = most(magnitude, magnitudes[other][lane]);
        }
        if constexpr (Granularity::has_channel_magnitudes) {
          out.magnitude_row(head)[channel] = channel_magnitude<Storage>(magnitude);
        } else {
          out.param_row(head, group * together)[channel] =
              affine<Bits>::template fit<Storage>(range);
        }
      }
      __syncthreads();
    }
  }
}

// Grid: x = eight tokens (striding), y = head (striding). Warp: one token.
// Lane: every 32nd channel of a group. Memory: the row is read twice, its codes written once.
template <class Granularity, int Bits, class Storage, class Element>
__global__ void __launch_bounds__(quantize_tuning::threads)
    quantize_kernel(tensor_view<const Element> x, code_view<Granularity, Bits, Storage> out) {
  constexpr bool by_channel = Granularity::axis == parameter_axis::channel;
  constexpr int64_t warps = quantize_tuning::threads / 32;
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
  const int32_t group_size = channels_per_group<Granularity>(x.head_dim);
  for (int64_t head = blockIdx.y; head < x.num_heads; head += gridDim.y) {
    const Storage* magnitudes = out.magnitude_row(head);
    for (int64_t token = int64_t{blockIdx.x} * warps + threadIdx.x / 32; token < x.num_tokens;
         token += int64_t{gridDim.x} * warps) {
      const Element* row = x.row(head, token);
      const auto value = [&](int32_t channel) {
        const float raw = to_float(row[channel]);
        if constexpr (Granularity::has_channel_magnitudes) {
          return divide(raw, to_float(magnitudes[channel]));
        } else {
          return raw;
        }
      };
      affine_params<Storage>* params = out.param_row(head, token);
      for (int32_t first = 0; first < x.head_dim; first += group_size) {
        affine_params<Storage> shared_params{};
        if constexpr (!by_channel) {
          value_range range;
          for (int32_t channel = first + lane; channel < first + group_size; channel += 32)
            range = include(range, value(channel));
          shared_params = affine<Bits>::template fit<Storage>(warp_range(range));
          if (lane == 0) params[first / group_size] = shared_params;
        }
        for (int32_t channel = first + lane; channel < first + group_size; channel += 32) {
          const affine_scale scale =
              affine<Bits>::widen(by_channel ? params[channel] : shared_params);
          out.code_row(head, token)[channel] =
              static_cast<uint8_t>(affine<Bits>::quantize(value(channel), scale));
        }
      }
    }
  }
}

// Grid, warp and lane as in quantize_kernel. Memory: codes are read once, values written once.
template <class Granularity, int Bits, class Storage>
__global__ void __launch_bounds__(quantize_tuning::threads)
    dequantize_codes_kernel(code_view<Granularity, Bits, Storage> codes, tensor_view<float> x) {
  constexpr int64_t warps = quantize_tuning::threads / 32;
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
  const int32_t run = Granularity::axis == parameter_axis::channel
                          ? 1
                          : channels_per_group<Granularity>(x.head_dim);
  for (int64_t head = blockIdx.y; head < x.num_heads; head += gridDim.y) {
    const Storage* magnitudes = codes.magnitude_row(head);
    for (int64_t token = int64_t{blockIdx.x} * warps + threadIdx.x / 32; token < x.num_tokens;
         token += int64_t{gridDim.x} * warps) {
      const affine_params<Storage>* params = codes.param_row(head, token);
      for (int32_t channel = lane; channel < x.head_dim; channel += 32) {
        const float value = affine<Bits>::dequantize(codes.code_row(head, token)[channel],
                                                     affine<Bits>::widen(params[channel / run]));
        if constexpr (Granularity::has_channel_magnitudes) {
          x.row(head, token)[channel] = value * to_float(magnitudes[channel]);
        } else {
          x.row(head, token)[channel] = value;
        }
      }
    }
  }
}

}  // namespace

template <class Granularity, int Bits, class Storage, class T>
void check_code_view(const code_view<Granularity, Bits, Storage>& codes, tensor_view<T> x) {
  check_granularity<Granularity>(x.head_dim);
  require_equal("num_heads", codes.num_heads, x.num_heads);
  require_equal("num_tokens", codes.num_tokens, x.num_tokens);
  require_equal("head_dim", codes.head_dim, x.head_dim);
  require_between("num_heads", x.num_heads, 0, 2147483647);
  require_between("num_tokens", x.num_tokens, int64_t{0}, int64_t{1} << 40);
  if (x.num_heads == 0 || x.num_tokens == 0) return;
  check_device_pointer("x.data", x.data);
  check_device_pointer("codes", codes.codes);
  check_device_pointer("params", codes.params);
  if (Granularity::has_channel_magnitudes) check_device_pointer("magnitudes", codes.magnitudes);
}

/// A block for every eight tokens of every head, as far as a grid goes.
inline dim3 token_grid(int64_t num_tokens, int32_t num_heads) {
  constexpr int64_t warps = quantize_tuning::threads / 32;
  return {static_cast<unsigned>(least<int64_t>(ceil_div(num_tokens, warps), 1 << 20)),
          static_cast<unsigned>(least(num_heads, 65535))};
}

template <class Granularity, int Bits, class Storage, class Element>
void launch_quantize(cudaStream_t stream, tensor_view<const Element> x,
                     code_view<Granularity, Bits, Storage> out) {
  constexpr int32_t threads = quantize_tuning::threads;
  if constexpr (Granularity::axis == parameter_axis::channel ||
                Granularity::has_channel_magnitudes) {
    const int64_t groups =
        ceil_div(x.num_tokens, tokens_per_channel_pair<Granularity>(x.num_tokens));
    const dim3 grid(static_cast<unsigned>(least<int64_t>(groups, 1 << 20)),
                    static_cast<unsigned>(ceil_div(x.head_dim, quantize_tuning::channels)),
                    static_cast<unsigned>(least(x.num_heads, 65535)));
    channel_parameters_kernel<<<grid, threads, 0, stream>>>(x, out);
    check_launch("quantize: channel_parameters_kernel");
  }
  quantize_kernel<<<token_grid(x.num_tokens, x.num_heads), threads, 0, stream>>>(x, out);
  check_launch("quantize_kernel");
}

template <class Granularity, int Bits, class Storage>
void launch_dequantize(cudaStream_t stream, code_view<Granularity, Bits, Storage> codes,
                       tensor_view<float> x) {
  const dim3 grid = token_grid(x.num_tokens, x.num_heads);
  dequantize_codes_kernel<<<grid, quantize_tuning::threads, 0, stream>>>(codes, x);
  check_launch("dequantize_codes_kernel");
}

}  // namespace detail

/// @brief Quantizes a whole tensor as one segment of one class.
/// @param[in] x  device memory [num_heads, num_tokens, head_dim], half or bfloat16
/// @param[out] out  codes, pairs and magnitudes in device memory, of the same shape
/// @throws argument_error  as on the CPU, and for host pointers; nothing was launched
/// @equality same_bytes
template <class Granularity, int Bits, class Storage, cache_element Element>
void quantize(cuda_backend backend, tensor_view<const Element> x,
              code_view<Granularity, Bits, Storage> out) {
  detail::check_code_view(out, x);
  if (x.num_heads == 0 || x.num_tokens == 0) return;
  detail::check_no_earlier_error();
  detail::launch_quantize(backend.stream, x, out);
}

/// @brief The values that the codes stand for. x  device memory [num_heads, num_tokens, head_dim]
template <class Granularity, int Bits, class Storage>
void dequantize(cuda_backend backend, code_view<Granularity, Bits, Storage> codes,
                tensor_view<float> x) {
  detail::check_code_view(codes, x);
  if (x.num_heads == 0 || x.num_tokens == 0) return;
  detail::check_no_earlier_error();
  detail::launch_dequantize(backend.stream, codes, x);
}

}  // namespace zipcache

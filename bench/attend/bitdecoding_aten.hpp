// What BitDecoding's kernels use of PyTorch: two checks, and a type that they carry and never read.
// CMake puts this in place of PyTorch's headers, so that the kernels are timed without PyTorch.
#pragma once

#include <cmath>
#include <string>

#include <cuda_runtime.h>

#include <zipcache/core/cuda.cuh>

namespace at {
struct PhiloxCudaState {};
}  // namespace at

#define C10_CUDA_CHECK(call) zipcache::detail::check_cuda(#call, call)
#define C10_CUDA_KERNEL_LAUNCH_CHECK() zipcache::detail::check_launch("BitDecoding's kernel")

#include <string>

#include <cuda_runtime_api.h>

#include "support/skip_reason.hpp"

const char* zipcache_test::skip_reason() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaSuccess && count > 0) return nullptr;
  static const std::string reason =
      std::string("no CUDA device: ") +
      (error == cudaSuccess ? "none is installed" : cudaGetErrorString(error));
  return reason.c_str();
}

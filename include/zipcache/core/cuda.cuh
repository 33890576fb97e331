// The CUDA backend's tag, errors and memory.
#pragma once

#include <cstddef>
#include <string>
#include <utility>

#include <cuda_runtime.h>

#include <zipcache/core/backend.hpp>
#include <zipcache/core/error.hpp>

namespace zipcache {

/// Runs a stage on a GPU, asynchronously on the caller's stream. Results are valid in that stream
/// after the call; nothing synchronizes and nothing runs on another stream.
struct cuda_backend {
  cudaStream_t stream = nullptr;
};

/// A CUDA call failed: the message has the call, the code and CUDA's own words.
class cuda_error : public std::runtime_error {
 public:
  cuda_error(const char* call, cudaError_t code)
      : std::runtime_error("zipcache: " + std::string(call) + " failed with " +
                           cudaGetErrorName(code) + ": " + cudaGetErrorString(code)),
        code_(code) {}
  cudaError_t code() const { return code_; }

 private:
  cudaError_t code_;
};

namespace detail {

inline void check_cuda(const char* call, cudaError_t code) {
  if (code != cudaSuccess) throw cuda_error(call, code);
}

/// Reports a launch that failed. An error that was there before is reported by
/// `check_no_earlier_error`.
inline void check_launch(const char* kernel) { check_cuda(kernel, cudaGetLastError()); }

/// So that a kernel of ours is not blamed for what went wrong before it.
inline void check_no_earlier_error() {
  const cudaError_t code = cudaPeekAtLastError();
  if (code != cudaSuccess) throw cuda_error("an earlier CUDA call, before zipcache's,", code);
}

/// @throws argument_error  `pointer` is null or not memory that the device can read
inline void check_device_pointer(const char* name, const void* pointer) {
  require(pointer != nullptr, std::string(name) + " is null");
  cudaPointerAttributes attributes{};
  const cudaError_t code = cudaPointerGetAttributes(&attributes, pointer);
  if (code != cudaSuccess) (void)cudaGetLastError();
  require(code == cudaSuccess &&
              (attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged),
          std::string(name) + " points to host memory, but must point to device memory");
}

inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0;
  int value = 0;
  check_cuda("cudaGetDevice", cudaGetDevice(&device));
  check_cuda("cudaDeviceGetAttribute", cudaDeviceGetAttribute(&value, attribute, device));
  return value;
}

/// @throws cuda_error, argument_error  no GPU, or one older than sm_80
inline void check_device() {
  int count = 0;
  const cudaError_t code = cudaGetDeviceCount(&count);
  if (code != cudaSuccess) (void)cudaGetLastError();
  require(code == cudaSuccess && count > 0, "the CUDA backend needs a GPU, and there is none (" +
                                                std::string(cudaGetErrorString(code)) + ")");
  const int major = device_attribute(cudaDevAttrComputeCapabilityMajor);
  if (major < 8) refuse("the GPU's compute capability", major, "8.0 or newer");
}

inline int num_multiprocessors() { return device_attribute(cudaDevAttrMultiProcessorCount); }
/// Shared memory that one block can have at most.
inline int64_t most_shared_bytes() {
  return device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
}

/// Device memory that is freed with its owner.
template <class T>
class device_array {
 public:
  device_array() = default;
  explicit device_array(size_t size) : size_(size) {
    if (size > 0)
      check_cuda("cudaMalloc", cudaMalloc(reinterpret_cast<void**>(&data_), size * sizeof(T)));
  }
  device_array(device_array&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  device_array& operator=(device_array&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~device_array() { cudaFree(data_); }

  T* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  T* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace detail
}  // namespace zipcache

// Memory of the GPU in tests: up, down, and poisoned, so that what a kernel does not write shows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include <zipcache/core/cuda.cuh>
#include <zipcache/core/workspace.cuh>

namespace zipcache_test {

template <class T>
using device_array = zipcache::detail::device_array<T>;

inline constexpr int poison_byte = 0xa5;

template <class T>
device_array<T> poisoned(size_t size) {
  device_array<T> memory(size);
  if (size > 0) {
    zipcache::detail::check_cuda("cudaMemset",
                                 cudaMemset(memory.data(), poison_byte, size * sizeof(T)));
  }
  return memory;
}

template <class T>
device_array<T> upload(const std::vector<T>& values) {
  device_array<T> memory(values.size());
  if (!values.empty()) {
    zipcache::detail::check_cuda("cudaMemcpy",
                                 cudaMemcpy(memory.data(), values.data(), values.size() * sizeof(T),
                                            cudaMemcpyHostToDevice));
  }
  return memory;
}

/// Waits for everything before it.
template <class T>
std::vector<T> download(const device_array<T>& memory) {
  std::vector<T> values(memory.size());
  zipcache::detail::check_cuda("cudaDeviceSynchronize", cudaDeviceSynchronize());
  if (!values.empty()) {
    zipcache::detail::check_cuda("cudaMemcpy",
                                 cudaMemcpy(values.data(), memory.data(), values.size() * sizeof(T),
                                            cudaMemcpyDeviceToHost));
  }
  return values;
}

/// A workspace of exactly `bytes`, poisoned.
class test_workspace {
 public:
  explicit test_workspace(size_t bytes) : memory_(poisoned<std::byte>(bytes)) {}
  operator zipcache::device_workspace() const { return {memory_.data(), memory_.size()}; }

 private:
  device_array<std::byte> memory_;
};

}  // namespace zipcache_test

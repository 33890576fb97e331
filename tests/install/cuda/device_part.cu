// The part of the consumer that nvcc compiles: a cache in device memory.
#include <vector>

#include <zipcache/zipcache.cuh>

#include "device_part.hpp"

// zipcache::cuda must have asked nvcc for C++20, which CMake alone may not know how to do.
static_assert(__cplusplus >= 202002L, "CUDA code is not compiled as C++20.");

namespace {

template <class T>
T* to_device(const std::vector<T>& values) {
  void* memory = nullptr;
  cudaMalloc(&memory, values.size() * sizeof(T));
  cudaMemcpy(memory, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice);
  return static_cast<T*>(memory);
}

}  // namespace

bool has_gpu() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

std::vector<float> attend_on_gpu(const zipcache::cache_shape& shape,
                                 const std::vector<zipcache::half>& q,
                                 const std::vector<zipcache::half>& k,
                                 const std::vector<zipcache::half>& v, int64_t num_tokens) {
  using zipcache::half;
  zipcache::kv_cache<half, zipcache::presets::paper, zipcache::cuda_backend> cache(
      shape, {.max_sequences = 1, .max_tokens = num_tokens});
  const zipcache::sequence_id sequence = cache.create();
  const zipcache::sequence_list batch = cache.make_batch({&sequence, 1});
  half* const device_q = to_device(q);
  half* const device_k = to_device(k);
  half* const device_v = to_device(v);
  std::vector<half> out(q.size());
  half* const device_out = to_device(out);
  for (int64_t token = 0; token < num_tokens; ++token) {
    const int64_t q_row = token * shape.num_qo_heads * shape.head_dim;
    const int64_t k_row = token * shape.num_kv_heads * shape.head_dim;
    cache.append(batch, 0, device_k + k_row, device_v + k_row);
    cache.attend(batch, 0, device_q + q_row, device_out + q_row);
  }
  cache.check();
  cudaMemcpy(out.data(), device_out, out.size() * sizeof(half), cudaMemcpyDeviceToHost);
  for (half* memory : {device_q, device_k, device_v, device_out}) cudaFree(memory);
  std::vector<float> result;
  for (const half x : out) result.push_back(zipcache::to_float(x));
  return result;
}

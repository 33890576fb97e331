// Timing of work on the GPU, and the noise that it is given. Calls are captured once into a graph
// that takes turns over several sets of buffers, so that neither launches nor caches flatter or
// blur the numbers.
#pragma once

#include <cstdint>
#include <vector>

#include <cuda_runtime.h>

#include <zipcache/core/cuda.cuh>
#include <zipcache/core/numerics.hpp>
#include <zipcache/core/types.hpp>

namespace zipcache_bench {

using zipcache::detail::check_cuda;
using zipcache::detail::device_array;

/// Calls in one graph, timed by events on its stream.
class timed_graph {
 public:
  /// Captures call(stream, i) for i in [0, repeats).
  template <class Call>
  timed_graph(int repeats, Call&& call) : repeats_(repeats) {
    check_cuda("cudaStreamCreate", cudaStreamCreate(&stream_));
    check_cuda("cudaEventCreate", cudaEventCreate(&start_));
    check_cuda("cudaEventCreate", cudaEventCreate(&stop_));
    call(stream_, 0);  // loads the kernels, and fails here rather than in the capture
    check_cuda("cudaStreamSynchronize", cudaStreamSynchronize(stream_));
    check_cuda("cudaStreamBeginCapture",
               cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < repeats; ++i) call(stream_, i);
    cudaGraph_t graph = nullptr;
    check_cuda("cudaStreamEndCapture", cudaStreamEndCapture(stream_, &graph));
    check_cuda("cudaGraphInstantiate", cudaGraphInstantiate(&graph_, graph, 0));
    check_cuda("cudaGraphDestroy", cudaGraphDestroy(graph));
    seconds();
  }
  timed_graph(const timed_graph&) = delete;
  timed_graph& operator=(const timed_graph&) = delete;
  ~timed_graph() {
    cudaGraphExecDestroy(graph_);
    cudaEventDestroy(start_);
    cudaEventDestroy(stop_);
    cudaStreamDestroy(stream_);
  }

  /// Seconds of one call, as the mean over the graph.
  double seconds() {
    check_cuda("cudaEventRecord", cudaEventRecord(start_, stream_));
    check_cuda("cudaGraphLaunch", cudaGraphLaunch(graph_, stream_));
    check_cuda("cudaEventRecord", cudaEventRecord(stop_, stream_));
    check_cuda("cudaEventSynchronize", cudaEventSynchronize(stop_));
    float milliseconds = 0.0f;
    check_cuda("cudaEventElapsedTime", cudaEventElapsedTime(&milliseconds, start_, stop_));
    return 1e-3 * static_cast<double>(milliseconds) / repeats_;
  }

 private:
  int repeats_;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t start_ = nullptr;
  cudaEvent_t stop_ = nullptr;
  cudaGraphExec_t graph_ = nullptr;
};

namespace {

// Grid: strides over the values. Lane: one value of noise, as make_tensor makes it.
template <class Element>
__global__ void fill_kernel(Element* data, int64_t count, int64_t head_dim, uint64_t seed) {
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * blockDim.x) {
    const uint64_t hash = zipcache::mix64(seed << 40 ^ static_cast<uint64_t>(i));
    const float noise = static_cast<float>(hash >> 40) * 0x1p-23f - 1.0f;
    data[i] = zipcache::from_float<Element>(i % head_dim % 13 == 5 ? 10.0f * noise : noise);
  }
}

}  // namespace

/// Noise in [-1, 1) with one channel in 13 ten times larger, made on the GPU.
template <class Element>
device_array<Element> make_device_tensor(int64_t count, int64_t head_dim, uint64_t seed) {
  device_array<Element> tensor(static_cast<size_t>(count));
  fill_kernel<<<4096, 256>>>(tensor.data(), count, head_dim, seed);
  zipcache::detail::check_launch("fill_kernel");
  check_cuda("cudaDeviceSynchronize", cudaDeviceSynchronize());
  return tensor;
}

template <class T>
device_array<T> to_device(const std::vector<T>& values) {
  device_array<T> memory(values.size());
  check_cuda("cudaMemcpy", cudaMemcpy(memory.data(), values.data(), values.size() * sizeof(T),
                                      cudaMemcpyHostToDevice));
  return memory;
}

}  // namespace zipcache_bench

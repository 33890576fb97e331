// The yardstick of every benchmark on the GPU: how fast this GPU copies memory, measured in the
// same run.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include <benchmark/benchmark.h>
#include <cuda_runtime.h>

#include "support/timed_graph.cuh"

namespace zipcache_bench {

/// Whether there is a GPU; says so in the benchmark's output where there is none.
inline bool has_device(benchmark::State& state) {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess && count > 0) return true;
  (void)cudaGetLastError();
  state.SkipWithError("no CUDA device");
  return false;
}

/// Bytes per second that a copy within the GPU's memory reads and writes together: the best of
/// several copies of 1 GiB, measured once.
inline double copy_bandwidth() {
  static const double best = [] {
    constexpr size_t bytes = size_t{1} << 30;
    const device_array<std::byte> from(bytes);
    const device_array<std::byte> to(bytes);
    check_cuda("cudaMemset", cudaMemset(from.data(), 1, bytes));
    timed_graph copies(4, [&](cudaStream_t stream, int) {
      check_cuda("cudaMemcpyAsync",
                 cudaMemcpyAsync(to.data(), from.data(), bytes, cudaMemcpyDeviceToDevice, stream));
    });
    double shortest = copies.seconds();
    for (int i = 0; i < 10; ++i) shortest = std::min(shortest, copies.seconds());
    return 2.0 * static_cast<double>(bytes) / shortest;
  }();
  return best;
}

/// Sets `bytes_per_second` and `percent_of_peak_bandwidth`, the peak being that of a copy.
inline void count_device_bytes(benchmark::State& state, int64_t bytes_per_call) {
  const auto bytes = static_cast<double>(bytes_per_call * state.iterations());
  state.counters["bytes_per_second"] = benchmark::Counter(bytes, benchmark::Counter::kIsRate);
  state.counters["percent_of_peak_bandwidth"] =
      benchmark::Counter(100.0 * bytes / copy_bandwidth(), benchmark::Counter::kIsRate);
}

/// Runs the benchmark's iterations over a graph.
inline void run_graph(benchmark::State& state, timed_graph& graph) {
  for (auto _ : state) state.SetIterationTime(graph.seconds());
}

}  // namespace zipcache_bench

#include "support/read_bandwidth.hpp"

#include <algorithm>
#include <chrono>
#include <vector>

namespace zipcache_bench {

double read_bandwidth() {
  static const double best = [] {
    const std::vector<uint64_t> buffer(size_t{256} * 1024 * 1024 / sizeof(uint64_t), 1);
    double fastest = 0.0;
    for (int pass = 0; pass < 5; ++pass) {
      const auto start = std::chrono::steady_clock::now();
      // Independent sums, so that additions do not wait for each other.
      uint64_t sums[16] = {};
      for (size_t i = 0; i < buffer.size(); i += 16)
        for (size_t lane = 0; lane < 16; ++lane) sums[lane] += buffer[i + lane];
      for (uint64_t& sum : sums) benchmark::DoNotOptimize(sum);
      const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
      fastest = std::max(fastest,
                         static_cast<double>(buffer.size() * sizeof(uint64_t)) / seconds.count());
    }
    return fastest;
  }();
  return best;
}

void count_bytes(benchmark::State& state, int64_t bytes_per_iteration) {
  const double bytes =
      static_cast<double>(bytes_per_iteration) * static_cast<double>(state.iterations());
  state.counters["bytes_per_second"] =
      benchmark::Counter(bytes, benchmark::Counter::kIsRate, benchmark::Counter::OneK::kIs1024);
  state.counters["percent_of_read_bandwidth"] =
      benchmark::Counter(100.0 * bytes / read_bandwidth(), benchmark::Counter::kIsRate);
}

}  // namespace zipcache_bench

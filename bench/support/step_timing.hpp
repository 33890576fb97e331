// The loop of a benchmark that times one step again and again.
#pragma once

#include <algorithm>
#include <chrono>

#include <benchmark/benchmark.h>

namespace zipcache_bench {

/// Runs `step` in every iteration and sets `fastest_ms`: on a machine that others use too, only the
/// fastest of many steps had all of its cores.
template <class Step>
void time_steps(benchmark::State& state, Step&& step) {
  double fastest = 1e9;
  for (auto _ : state) {
    const auto start = std::chrono::steady_clock::now();
    step();
    benchmark::ClobberMemory();
    const std::chrono::duration<double, std::milli> passed =
        std::chrono::steady_clock::now() - start;
    fastest = std::min(fastest, passed.count());
  }
  state.counters["fastest_ms"] = fastest;
}

}  // namespace zipcache_bench

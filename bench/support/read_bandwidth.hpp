// The yardstick of every benchmark that only reads: how fast this machine reads memory, measured in
// the same run. Percentages of a number from a data sheet, or from another day, say little.
#pragma once

#include <cstdint>

#include <benchmark/benchmark.h>

namespace zipcache_bench {

/// Bytes per second of one thread summing a buffer of 256 MiB: the best of several passes, measured
/// once.
double read_bandwidth();

/// Sets `bytes_per_second` and `percent_of_read_bandwidth` from the bytes of one iteration.
void count_bytes(benchmark::State& state, int64_t bytes_per_iteration);

}  // namespace zipcache_bench

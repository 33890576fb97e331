// Backends are tags: the first argument of every stage. `cuda_backend` carries the caller's stream
// and is declared where CUDA is (core/cuda.cuh).
#pragma once

#include <cstdint>

namespace zipcache {

/// Runs a stage on the calling thread and `num_threads - 1` helpers. Results do not depend on the
/// number of threads: work is divided by (sequence, head), and each of those is computed by one
/// thread.
struct cpu_backend {
  int32_t num_threads = 1;
};

}  // namespace zipcache

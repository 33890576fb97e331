// Who works together on the device: a warp or a block, as an argument of the functions that both
// call, and the few warp-wide exchanges that several stages need.
#pragma once

#include <cstdint>

#include <zipcache/config.hpp>

namespace zipcache::detail {

inline constexpr uint32_t whole_warp = 0xffffffffu;

/// The 32 threads of a warp, converged. `thread` is the lane.
struct warp_team {
  int32_t thread;
  static constexpr int32_t num_threads = 32;
  __device__ void sync() const { __syncwarp(); }
};

/// All `num_threads` threads of a block, a multiple of 32.
struct block_team {
  int32_t thread;
  int32_t num_threads;
  __device__ void sync() const { __syncthreads(); }
};

/// A thread's number in the block, of which the compiler knows nothing: what is computed from it
/// stays where it is needed, instead of being kept for later in registers that there are not.
__device__ __forceinline__ int32_t thread_of_block() {
  int32_t thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
}

/// Sum over the warp, the same value in every lane and the same order in every run.
template <class T>
__device__ T warp_sum(T x) {
  ZIPCACHE_UNROLL
  for (int32_t distance = 16; distance > 0; distance /= 2)
    x += __shfl_xor_sync(whole_warp, x, distance);
  return x;
}

/// Sum over this lane and the lanes below it.
__device__ inline int32_t warp_prefix_sum(int32_t x, int32_t lane) {
  ZIPCACHE_UNROLL
  for (int32_t distance = 1; distance < 32; distance *= 2) {
    const int32_t below = __shfl_up_sync(whole_warp, x, distance);
    x += lane >= distance ? below : 0;
  }
  return x;
}

}  // namespace zipcache::detail

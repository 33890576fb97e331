// A barrier in shared memory that counts arrivals of threads, phase after phase. sm_90 and newer.
#pragma once

#include <cstdint>

namespace zipcache::detail {

/// Phases follow each other; one ends when as many have arrived as `init` said.
class shared_barrier {
 public:
  /// One thread, before all others come; `publish_barriers` and __syncthreads follow.
  __device__ __forceinline__ void init(int32_t arrivals) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(address()), "r"(arrivals) : "memory");
  }
  /// What the thread did before is seen by those who wait.
  __device__ __forceinline__ void arrive() {
    asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(address()) : "memory");
  }
  /// Whether phase `phase`, counted from 0 and at most one behind, has ended.
  __device__ __forceinline__ bool has_ended(int32_t phase) {
    uint32_t ended;
    asm volatile(
        "{\n.reg .pred ended;\nmbarrier.test_wait.parity.shared.b64 ended, [%1], %2;\n"
        "selp.u32 %0, 1, 0, ended;\n}"
        : "=r"(ended)
        : "r"(address()), "r"(phase & 1)
        : "memory");
    return ended != 0;
  }
  /// Waits for the end of such a phase.
  __device__ __forceinline__ void wait(int32_t phase) {
    asm volatile(
        "{\n.reg .pred ended;\nretry:\nmbarrier.try_wait.parity.shared.b64 ended, [%0], "
        "%1;\n@!ended "
        "bra retry;\n}" ::"r"(address()),
        "r"(phase & 1)
        : "memory");
  }

 private:
  __device__ __forceinline__ uint32_t address() const {
    return static_cast<uint32_t>(__cvta_generic_to_shared(&word_));
  }
  uint64_t word_;
};

/// What `init` wrote comes before the copies that arrive.
__device__ __forceinline__ void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

}  // namespace zipcache::detail

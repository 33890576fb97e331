// Launches of kernels that follow one another closely: a kernel may begin while the one before it
// ends (programmatic dependent launch). From sm_90 on; older code is launched as ever, one kernel
// after the other.
#pragma once

#include <cstddef>
#include <cstdint>

#include <cuda_runtime.h>

#include <zipcache/core/cuda.cuh>

namespace zipcache::detail {

/// Lets the next kernel of the stream begin once all blocks came here, if it was launched to. What
/// it may do before it waits is up to it.
__device__ __forceinline__ void let_next_kernel_begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
/// Waits until the kernels before this one are complete and what they wrote can be read. Nothing
/// that any of them may write, or reads, is touched before.
__device__ __forceinline__ void wait_for_earlier_kernels() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// Whether the machine code or PTX that the current device runs of a kernel is for sm_90 or newer.
template <class Kernel>
bool is_built_for_sm_90(Kernel kernel) {
  cudaFuncAttributes attributes{};
  check_cuda("cudaFuncGetAttributes", cudaFuncGetAttributes(&attributes, kernel));
  return attributes.ptxVersion >= 90;
}

/// Launches a kernel that calls `wait_for_earlier_kernels`.
template <class Kernel, class... Arguments>
void launch_closely(const char* name, Kernel kernel, unsigned blocks, unsigned threads,
                    size_t shared_bytes, cudaStream_t stream, const Arguments&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute;
  config.numAttrs = is_built_for_sm_90(kernel) ? 1 : 0;
  check_cuda(name, cudaLaunchKernelEx(&config, kernel, arguments...));
}

}  // namespace zipcache::detail

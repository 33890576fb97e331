// Products by a warpgroup: four warps multiply 64 rows that they hold in registers with rows that
// lie in shared memory, while they go on with something else. sm_90a has these instructions; code
// for any other machine must not come here (ZIPCACHE_HAS_WARPGROUPS).
#pragma once

#include <cstdint>
#include <type_traits>

#include <zipcache/core/types.hpp>

/// Whether this pass of the compiler is for sm_90a.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define ZIPCACHE_HAS_WARPGROUPS 1
#else
#define ZIPCACHE_HAS_WARPGROUPS 0
#endif

namespace zipcache::detail {

/// Rows of 16-bit values in shared memory, as the products read them: panels of 64 channels, 128
/// bytes a row, in which the 16-byte pieces of a row trade places by the row's number, so that
/// eight rows of one column lie in different banks. A panel begins at a multiple of 1024.
struct swizzled_panel {
  static constexpr int32_t row_bytes = 128;
  /// Where piece `piece` (of 8 channels) of a row is, from the panel's begin.
  __device__ static int32_t offset(int32_t row, int32_t piece) {
    return row * row_bytes + ((piece ^ row % 8) << 4);
  }
  /// What a product wants to know of the operand that begins at `address`, in shared memory: a
  /// multiple of 8 rows in front of it, 32 bytes further for each 16 channels.
  __device__ static uint64_t describe(uint32_t address) {
    constexpr uint64_t pieces_swapped = uint64_t{1} << 62;
    constexpr uint64_t bytes_of_8_rows = uint64_t{8 * row_bytes >> 4} << 32;
    constexpr uint64_t unused = uint64_t{1} << 16;
    return pieces_swapped | bytes_of_8_rows | unused | (address & 0x3ffffu) >> 4;
  }
};

#if ZIPCACHE_HAS_WARPGROUPS

/// A warpgroup keeps `Count` registers a lane and leaves the others to those that take more. Where
/// the kernel has been launched with one count for all, this shares them out.
template <int Count>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Count));
}
/// A warpgroup waits until it has `Count` registers a lane.
template <int Count>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Count));
}
/// Before the first product of a group: what the threads wrote to registers comes first.
__device__ __forceinline__ void begin_products() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
/// The products since the last call are a group.
__device__ __forceinline__ void end_product_group() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
/// Waits until at most `Pending` groups are under way; `sums` are of one that is not.
template <int Pending, int Count>
__device__ __forceinline__ void wait_products(float (&sums)[Count]) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
#pragma unroll
  for (int i = 0; i < Count; ++i) asm volatile("" : "+f"(sums[i])::"memory");
}
/// What was written to shared memory by ordinary stores and copies can be read by products.
__device__ __forceinline__ void let_products_read() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// The sums of one product as operands of the instruction.
#define ZIPCACHE_SUMS_4(i) "+f"(sums[i]), "+f"(sums[i + 1]), "+f"(sums[i + 2]), "+f"(sums[i + 3])
#define ZIPCACHE_SUMS_8(i) ZIPCACHE_SUMS_4(i), ZIPCACHE_SUMS_4(i + 4)
#define ZIPCACHE_MULTIPLY_64(type)                                                       \
  asm volatile(                                                                          \
      "{\n.reg .pred adds;\nsetp.ne.b32 adds, %37, 0;\n"                                 \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type                        \
      " {"                                                                               \
      "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"                           \
      "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31},"                \
      "{%32,%33,%34,%35}, %36, adds, 1, 1, 0;\n}"                                        \
      : ZIPCACHE_SUMS_8(0), ZIPCACHE_SUMS_8(8), ZIPCACHE_SUMS_8(16), ZIPCACHE_SUMS_8(24) \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(adds ? 1 : 0))
#define ZIPCACHE_MULTIPLY_32(type)                                \
  asm volatile(                                                   \
      "{\n.reg .pred adds;\nsetp.ne.b32 adds, %21, 0;\n"          \
      "wgmma.mma_async.sync.aligned.m64n32k16.f32." type "." type \
      " {"                                                        \
      "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15},"   \
      "{%16,%17,%18,%19}, %20, adds, 1, 1, 0;\n}"                 \
      : ZIPCACHE_SUMS_8(0), ZIPCACHE_SUMS_8(8)                    \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(adds ? 1 : 0))

/// sums (+)= a * b of m64n64k16 in fp32: a is row-major in registers, each warp's 16 rows as in
/// multiply_add; b are 64 rows in shared memory, as described. The sums of a warp's rows are, for
/// every 8 columns, four as in multiply_add. Complete after wait_products.
template <class Element>
__device__ __forceinline__ void multiply_async(float (&sums)[32], const uint32_t (&a)[4],
                                               uint64_t b, bool adds) {
  if constexpr (std::is_same_v<Element, half>) {
    ZIPCACHE_MULTIPLY_64("f16");
  } else {
    static_assert(std::is_same_v<Element, bfloat16>,
                  "zipcache: tensor cores multiply half or bfloat16");
    ZIPCACHE_MULTIPLY_64("bf16");
  }
}
/// The same with 32 rows in shared memory.
template <class Element>
__device__ __forceinline__ void multiply_async(float (&sums)[16], const uint32_t (&a)[4],
                                               uint64_t b, bool adds) {
  if constexpr (std::is_same_v<Element, half>) {
    ZIPCACHE_MULTIPLY_32("f16");
  } else {
    static_assert(std::is_same_v<Element, bfloat16>,
                  "zipcache: tensor cores multiply half or bfloat16");
    ZIPCACHE_MULTIPLY_32("bf16");
  }
}

#undef ZIPCACHE_MULTIPLY_32
#undef ZIPCACHE_MULTIPLY_64
#undef ZIPCACHE_SUMS_8
#undef ZIPCACHE_SUMS_4

#endif

}  // namespace zipcache::detail

// Which vector instructions the CPU kernels use. The library is compiled without machine flags;
// kernels carry their instruction set as a function attribute and are chosen here, at run time. An
// instruction set is a tag that inherits from the next smaller one, so a kernel that has no version
// for it falls back to that one, in the end to the scalar reference.
#pragma once

#include <atomic>
#include <cstdlib>
#include <string>
#include <string_view>

#include <zipcache/core/error.hpp>

// Only g++ and clang have the attribute, and nvcc's front end passes it on to g++.
#if defined(__x86_64__) && defined(__GNUC__)
#define ZIPCACHE_X86_VECTORS 1
#define ZIPCACHE_AVX2 __attribute__((target("avx2,fma,f16c")))
#define ZIPCACHE_AVX512 \
  __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))
#define ZIPCACHE_AMX                                             \
  __attribute__((                                                \
      target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq," \
             "avx512vnni,avx512vbmi,amx-tile,amx-int8")))
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#else
#define ZIPCACHE_X86_VECTORS 0
#endif

namespace zipcache::detail {

struct scalar_isa {};
struct avx2_isa : scalar_isa {};  ///< with FMA and F16C
struct avx512_isa : avx2_isa {};  ///< with F, BW, VL, DQ and VNNI
struct amx_isa : avx512_isa {};   ///< with VBMI; tiles of bytes

enum class cpu_level { scalar, avx2, avx512, amx };
inline constexpr cpu_level every_cpu_level[] = {cpu_level::scalar, cpu_level::avx2,
                                                cpu_level::avx512, cpu_level::amx};

#if ZIPCACHE_X86_VECTORS
/// Whether this process may use the matrix unit. Linux wants to be asked, once for all threads,
/// since the registers make a thread's state 8 KiB larger.
inline bool may_use_matrix_unit() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  constexpr unsigned vbmi = 1u << 1, amx_tile = 1u << 24, amx_int8 = 1u << 25;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  if ((ecx & vbmi) == 0 || (edx & amx_tile) == 0 || (edx & amx_int8) == 0) return false;
#if defined(__linux__) && defined(SYS_arch_prctl)
  constexpr long request_permission = 0x1023, tile_data = 18;
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false;
#endif
}
#endif

/// The largest set that this processor and its operating system have.
inline cpu_level supported_cpu() {
#if ZIPCACHE_X86_VECTORS
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  constexpr unsigned f16c = 1u << 29;
  const bool has_f16c = __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & f16c) != 0;
  __builtin_cpu_init();
  if (!has_f16c || !__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma"))
    return cpu_level::scalar;
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") &&
                          __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512vnni");
  if (!has_avx512) return cpu_level::avx2;
  return may_use_matrix_unit() ? cpu_level::amx : cpu_level::avx512;
#else
  return cpu_level::scalar;
#endif
}

inline const char* name_of(cpu_level level) {
  constexpr const char* names[] = {"scalar", "avx2", "avx512", "amx"};
  return names[static_cast<int>(level)];
}

/// What ZIPCACHE_CPU asks for, or the largest set if it is not set.
/// @throws argument_error  an unknown name, or a set that this processor lacks
inline cpu_level requested_cpu(const char* wish) {
  const cpu_level largest = supported_cpu();
  if (wish == nullptr || *wish == '\0') return largest;
  for (const cpu_level level : every_cpu_level) {
    if (std::string_view(wish) != name_of(level)) continue;
    require(level <= largest, std::string("ZIPCACHE_CPU is ") + wish +
                                  ", but this processor has no more than " + name_of(largest));
    return level;
  }
  throw argument_error(std::string("zipcache: ZIPCACHE_CPU is \"") + wish +
                       "\", but must be scalar, avx2, avx512 or amx");
}

/// The set in use; settable, so that one process can compare them.
inline std::atomic<cpu_level>& active_cpu() {
  static std::atomic<cpu_level> level{requested_cpu(std::getenv("ZIPCACHE_CPU"))};
  return level;
}

/// Calls work with the tag of the set in use.
template <class Work>
decltype(auto) with_isa(Work&& work) {
#if ZIPCACHE_X86_VECTORS
  const cpu_level level = active_cpu().load(std::memory_order_relaxed);
  if (level == cpu_level::amx) return work(amx_isa{});
  if (level == cpu_level::avx512) return work(avx512_isa{});
  if (level == cpu_level::avx2) return work(avx2_isa{});
#endif
  return work(scalar_isa{});
}

}  // namespace zipcache::detail

// Waiting for another thread without giving the core away, for a short and bounded time: going to
// sleep and being woken takes tens of microseconds, as long as attention over thousands of tokens.
#pragma once

#include <chrono>
#include <thread>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace zipcache::detail {

/// Tells the processor that this thread only looks at memory again and again.
inline void relax_core() {
#if defined(__x86_64__) || defined(_M_X64)
  _mm_pause();
#elif defined(__aarch64__) && defined(__GNUC__)
  asm volatile("yield");
#endif
}

/// Looks at `is_ready` until it holds or `longest` has passed; returns whether it holds.
template <class Predicate>
bool spin_until(std::chrono::nanoseconds longest, Predicate&& is_ready) {
  constexpr int looks_between_clocks = 16;  // one to two microseconds of pauses on recent cores
  if (is_ready()) return true;
  if (longest <= std::chrono::nanoseconds::zero()) return false;
  const auto end = std::chrono::steady_clock::now() + longest;
  do {
    for (int look = 0; look < looks_between_clocks; ++look) {
      relax_core();
      if (is_ready()) return true;
    }
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

/// Whether that many threads can run at once; if not, a thread that spins keeps another from the
/// work that it waits for.
inline bool have_cores_for(int num_threads) {
  static const unsigned cores = std::thread::hardware_concurrency();
  return cores == 0 || static_cast<unsigned>(num_threads) <= cores;
}

}  // namespace zipcache::detail

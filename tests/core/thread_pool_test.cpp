#include <atomic>
#include <chrono>
#include <stdexcept>
#include <thread>
#include <vector>

#include <zipcache/detail/spin_wait.hpp>
#include <zipcache/detail/thread_pool.hpp>

#include "support/catch.hpp"

using namespace zipcache;

namespace {

/// Whether two threads take part in a loop of two items: each waits for the other to begin.
bool two_threads_meet() {
  std::atomic<int> begun = 0;
  std::atomic<int> met = 0;
  detail::parallel_for(2, 2, [&](int64_t) {
    ++begun;
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (begun < 2 && std::chrono::steady_clock::now() < end) std::this_thread::yield();
    if (begun == 2) ++met;
  });
  return met == 2;
}

/// How many items of `num_loops` short loops did not run exactly once.
int count_wrong_visits(int32_t num_threads, int num_loops) {
  int wrong = 0;
  for (int loop = 0; loop < num_loops; ++loop) {
    const int64_t count = 2 + loop % 7;
    std::vector<int> visits(static_cast<size_t>(count));  // not atomic: the loop has to order them
    detail::parallel_for(num_threads, count, [&](int64_t i) { ++visits[static_cast<size_t>(i)]; });
    for (const int visit : visits) wrong += visit != 1 ? 1 : 0;
  }
  return wrong;
}

}  // namespace

TEST_CASE("core: parallel_for visits every item once, with any number of threads and nested",
          "[core][thread_pool]") {
  for (const int32_t num_threads : {1, 2, 5}) {
    for (const int64_t count : {0, 1, 2, 100}) {
      std::vector<std::atomic<int>> visits(static_cast<size_t>(count));
      detail::parallel_for(num_threads, count, [&](int64_t i) {
        detail::parallel_for(num_threads, 2, [&](int64_t) { ++visits[static_cast<size_t>(i)]; });
      });
      for (const auto& visit : visits) REQUIRE(visit == 2);
    }
  }
}

TEST_CASE("core: an exception of any item comes out of parallel_for, and the pool works on",
          "[core][thread_pool]") {
  for (const int64_t thrower : {0, 7, 49}) {
    CHECK_THROWS_AS(detail::parallel_for(3, 50,
                                         [&](int64_t i) {
                                           if (i == thrower) throw std::runtime_error("item");
                                         }),
                    std::runtime_error);
    std::atomic<int64_t> sum = 0;
    detail::parallel_for(3, 50, [&](int64_t i) { sum += i; });
    CHECK(sum == 49 * 50 / 2);
  }
}

TEST_CASE("core: helpers join a loop right after another one and after they went to sleep",
          "[core][thread_pool]") {
  for (const int pause_ms : {0, 0, 5, 5, 0}) {
    std::this_thread::sleep_for(std::chrono::milliseconds(pause_ms));
    CHECK(two_threads_meet());
  }
}

TEST_CASE("core: short loops in a row lose no item, with more threads than cores and two callers",
          "[core][thread_pool]") {
  const int32_t more_than_cores = static_cast<int32_t>(std::thread::hardware_concurrency()) + 3;
  for (const int32_t num_threads : {2, more_than_cores}) {
    int wrong_of_other = -1;
    std::thread other([&] { wrong_of_other = count_wrong_visits(num_threads, 2000); });
    CHECK(count_wrong_visits(num_threads, 2000) == 0);
    other.join();
    CHECK(wrong_of_other == 0);
  }
}

TEST_CASE("core: spin_until ends when it is ready and when its time is over",
          "[core][thread_pool]") {
  int looks = 0;
  CHECK(detail::spin_until(std::chrono::hours(1), [&] { return ++looks == 100; }));
  CHECK(looks == 100);
  CHECK_FALSE(detail::spin_until(std::chrono::microseconds(1), [] { return false; }));
  looks = 0;
  CHECK_FALSE(detail::spin_until(std::chrono::nanoseconds(0), [&] { return ++looks == 2; }));
  CHECK(looks == 1);
}

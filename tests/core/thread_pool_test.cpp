#include <atomic>
#include <stdexcept>
#include <vector>

#include <zipcache/detail/thread_pool.hpp>

#include "support/catch.hpp"

using namespace zipcache;

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

#include <atomic>
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

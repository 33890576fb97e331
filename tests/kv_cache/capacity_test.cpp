// Running out of pages or of memory at every point of a small life: the call that cannot succeed
// throws, nothing has changed, and the cache goes on.
#include <atomic>
#include <cstdlib>
#include <functional>
#include <new>
#include <string>
#include <vector>

#include "support/cache_runs.hpp"
#include "support/catch.hpp"

// The allocations of this program: one of them can be made to fail, and those that live are
// counted. A thread counts for itself, so that other threads are not disturbed.
namespace {

thread_local int64_t allocations_until_failure = 0;  // 0: none fails
std::atomic<int64_t> live_allocations{0};

void* take(size_t size, size_t alignment) {
  if (allocations_until_failure > 0 && --allocations_until_failure == 0) return nullptr;
  void* memory =
      alignment <= alignof(std::max_align_t)
          ? std::malloc(size > 0 ? size : 1)
          : std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
  if (memory != nullptr) live_allocations.fetch_add(1);
  return memory;
}

void give(void* memory) {
  if (memory != nullptr) live_allocations.fetch_sub(1);
  std::free(memory);
}

void* take_or_throw(size_t size, size_t alignment) {
  void* memory = take(size, alignment);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

void* operator new(size_t size) { return take_or_throw(size, 1); }
void* operator new[](size_t size) { return take_or_throw(size, 1); }
void* operator new(size_t size, std::align_val_t alignment) {
  return take_or_throw(size, static_cast<size_t>(alignment));
}
void* operator new[](size_t size, std::align_val_t alignment) {
  return take_or_throw(size, static_cast<size_t>(alignment));
}
void* operator new(size_t size, const std::nothrow_t&) noexcept { return take(size, 1); }
void* operator new[](size_t size, const std::nothrow_t&) noexcept { return take(size, 1); }
void operator delete(void* memory) noexcept { give(memory); }
void operator delete[](void* memory) noexcept { give(memory); }
void operator delete(void* memory, size_t) noexcept { give(memory); }
void operator delete[](void* memory, size_t) noexcept { give(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { give(memory); }
void operator delete[](void* memory, std::align_val_t) noexcept { give(memory); }
void operator delete(void* memory, size_t, std::align_val_t) noexcept { give(memory); }
void operator delete[](void* memory, size_t, std::align_val_t) noexcept { give(memory); }
void operator delete(void* memory, const std::nothrow_t&) noexcept { give(memory); }
void operator delete[](void* memory, const std::nothrow_t&) noexcept { give(memory); }

namespace {

using namespace zipcache_test;
using zipcache::capacity_error;
using zipcache::half;
using zipcache::sequence_id;
namespace presets = zipcache::presets;

// With sinks and a recent window, so that every kind of page is in it.
using all_parts = presets::paper::with<zipcache::sink_tokens<4>>;
using cache_type = zipcache::kv_cache<half, all_parts>;

constexpr zipcache::cache_shape life_shape{
    .num_layers = 1, .num_qo_heads = 4, .num_kv_heads = 2, .head_dim = 16};

/// Prompts in one and in two calls, appends over flushes alone and in a batch, a fork that goes its
/// own way, a truncation; step by step.
class life {
 public:
  life(int64_t max_pages, int32_t num_threads)
      : cache_(life_shape,
               {.recompress_interval = 12,
                .recent_window = 5,
                .max_pages = max_pages,
                .page_bytes = 1024},
               {num_threads}) {}

  static constexpr int num_steps = 60;

  /// Makes one call of the cache.
  void step(int index) {
    const token_data<half>& d = data();
    outputs<half>& o = output_;
    if (index == 0) ids_.reserve(3);
    if (index < 2) return ids_.push_back(cache_.create());
    if (index == 2)
      return cache_.prefill(ids_[0], 0, d.q.part(0, 30), d.k.part(0, 30), d.v.part(0, 30));
    if (index == 3 || index == 4) {
      const int64_t first = index == 3 ? 0 : 9;
      return cache_.prefill(ids_[1], 0, d.q.part(first, 9), d.k.part(first, 9), d.v.part(first, 9),
                            {.prompt_len = 18});
    }
    if (index < 40) {
      if (index % 2 == 1) {
        const int64_t lengths[] = {1, 2};
        return cache_.append(std::span(ids_).first(2), 0, d.k.part(index, 3), d.v.part(index, 3),
                             lengths);
      }
      const int64_t lengths[] = {1, 2};
      return cache_.attend(std::span(ids_).first(2), 0, d.q.part(index, 3), o.out.part(0, 3), {},
                           lengths);
    }
    if (index == 40) return ids_.push_back(cache_.fork(ids_[0]));
    if (index < 56) {
      if (index % 2 == 1) return cache_.append(ids_[2], 0, d.k.part(index, 1), d.v.part(index, 1));
      return cache_.attend(ids_[2], 0, d.q.part(index, 1), o.out.part(0, 1));
    }
    if (index == 56) return cache_.truncate(ids_[1], cache_.sealed_length(ids_[1]));
    if (index == 57) return cache_.append(ids_[0], 0, d.k.part(index, 1), d.v.part(index, 1));
    if (index == 58) return cache_.attend(ids_[0], 0, d.q.part(index, 1), o.out.part(0, 1));
    return cache_.dequantize(ids_[1], 0, held(), held());
  }

  std::string seen() const { return cache_snapshot(cache_, ids_); }
  cache_type& cache() { return cache_; }
  void release_all() {
    for (const sequence_id sequence : ids_) cache_.release(sequence);
    ids_.clear();
  }

 private:
  static const token_data<half>& data() {
    static const token_data<half> tokens(life_shape, 70, 91);
    return tokens;
  }
  zipcache::tensor_view<float> held() {
    static tensor<float> x(2, 100, 16);
    return x.view().tokens(0, cache_.length(ids_[1]));
  }

  cache_type cache_;
  std::vector<sequence_id> ids_;
  outputs<half> output_{life_shape, 3};
};

/// What a life without limits looks like after each step.
const std::vector<std::string>& unlimited() {
  static const std::vector<std::string> states = [] {
    std::vector<std::string> all;
    life whole(0, 1);
    for (int step = 0; step < life::num_steps; ++step) {
      whole.step(step);
      all.push_back(whole.seen());
    }
    return all;
  }();
  return states;
}

TEST_CASE("kv_cache: with any number of pages a call succeeds or leaves everything as it was",
          "[kv_cache][capacity]") {
  int64_t most_pages = 0;
  {
    life whole(0, 1);
    for (int step = 0; step < life::num_steps; ++step) {
      whole.step(step);
      most_pages = std::max(most_pages, whole.cache().pool().num_used());
    }
  }
  int failed = 0;
  bool enough = false;
  for (int64_t max_pages = 1; !enough; ++max_pages) {
    INFO("max_pages " << max_pages);
    // A flush of several sequences needs their new pages while it has their old ones.
    REQUIRE(max_pages <= 2 * most_pages);
    life subject(max_pages, 1);
    enough = true;
    for (int step = 0; step < life::num_steps; ++step) {
      const std::string before = subject.seen();
      try {
        subject.step(step);
      } catch (const capacity_error& error) {
        enough = false;
        ++failed;
        INFO("step " << step);
        CHECK(std::string(error.what()).find("all " + std::to_string(max_pages) + " pages") !=
              std::string::npos);
        CHECK((subject.seen() == before));
        // Again, and with the same result.
        CHECK_THROWS_AS(subject.step(step), capacity_error);
        CHECK((subject.seen() == before));
        break;
      }
      REQUIRE((subject.seen() == unlimited()[static_cast<size_t>(step)]));
      REQUIRE(subject.cache().pool().num_used() <= max_pages);
    }
    subject.release_all();
    CHECK(subject.cache().pool().num_used() == 0);
    // What was released can be used: a sequence that fits.
    const auto again = subject.cache().create();
    const tensor<half> one = random_tensor<half>(2, 1, 16, 92);
    if (max_pages >= 2) {
      subject.cache().append(again, 0, one.view(), one.view());
      CHECK(subject.cache().length(again) == 1);
    }
  }
  CHECK(failed > 10);
}

TEST_CASE("kv_cache: a call that failed for want of pages succeeds once others are released",
          "[kv_cache][capacity]") {
  using cache = zipcache::kv_cache<half, presets::paper>;
  const token_data<half> data(life_shape, 120, 93);
  const zipcache::cache_options options{.recompress_interval = 32, .page_bytes = 1024};
  cache control(life_shape, options);
  const auto reference = control.create();
  prefill(control, reference, data, 40);
  decode(control, reference, data, 40, 72);
  auto limited = options;
  limited.max_pages = control.pool().num_used() + 4;
  cache subject(life_shape, limited);
  const auto sequence = subject.create();
  prefill(subject, sequence, data, 40);
  decode(subject, sequence, data, 40, 72);
  const auto ballast = subject.create();
  decode(subject, ballast, data, 0, 20);  // four pages: 16 rows in each, two heads
  REQUIRE(subject.pool().num_available() == 0);
  const auto full = snapshot(subject, sequence);
  CHECK_THROWS_AS(decode(subject, sequence, data, 72, 73), capacity_error);
  CHECK((snapshot(subject, sequence) == full));
  subject.release(ballast);
  const auto expected = decode(control, reference, data, 72, 110);
  const auto given = decode(subject, sequence, data, 72, 110);
  CHECK((given == expected));
  CHECK((snapshot(subject, sequence) == snapshot(control, reference)));
}

/// Fails the k-th allocation of each step of a life, for every k; returns how many did fail.
int64_t fail_every_allocation(int32_t num_threads) {
  int64_t failures = 0;
  unlimited();
  {
    life warm(0, num_threads);  // threads, and scratch that lives as long as they do
    for (int step = 0; step < life::num_steps; ++step) warm.step(step);
  }
  // A helper thread makes its scratch when it first gets some work, which on a busy machine may be
  // later than in `warm`: a step leaks if it does so again and again.
  int growths = 0;
  for (int failing_step = 0; failing_step < life::num_steps; ++failing_step) {
    const int64_t live = live_allocations.load();
    std::string problem;
    {
      life subject(0, num_threads);
      for (int step = 0; step < failing_step; ++step) subject.step(step);
      const std::string before = subject.seen();
      bool done = false;
      for (int64_t k = 1; !done; ++k) {
        allocations_until_failure = k;
        try {
          subject.step(failing_step);
          done = true;
        } catch (const std::bad_alloc&) {
          ++failures;
        }
        allocations_until_failure = 0;
        if (!done && subject.seen() != before) {
          problem = "allocation " + std::to_string(k) + " changed something";
          break;
        }
      }
      if (problem.empty() && subject.seen() != unlimited()[static_cast<size_t>(failing_step)])
        problem = "the step gave other bytes in the end";
      for (int step = failing_step + 1; problem.empty() && step < life::num_steps; ++step)
        subject.step(step);
      if (problem.empty() && subject.seen() != unlimited().back())
        problem = "later steps gave other bytes";
      subject.release_all();
      if (subject.cache().pool().num_used() != 0) problem = "pages were lost";
    }
    const bool problem_allocates = problem.size() > 15;
    if (live_allocations.load() - (problem_allocates ? 1 : 0) != live) {
      if (problem.empty() && num_threads > 1 && ++growths < 4) {
        --failing_step;
        continue;
      }
      problem += "; memory leaked";
    }
    INFO("step " << failing_step << ": " << problem);
    CHECK(problem.empty());
  }
  return failures;
}

TEST_CASE("kv_cache: whichever allocation fails, nothing has changed and nothing leaks",
          "[kv_cache][capacity]") {
  CHECK(fail_every_allocation(1) > 300);
}

// The failing allocation is one of the calling thread, which is enough to unwind through the loop.
TEST_CASE("kv_cache: the same while helper threads are at work", "[kv_cache][capacity]") {
  CHECK(fail_every_allocation(2) > 100);
}

TEST_CASE("kv_cache: a cache that cannot be made leaks nothing", "[kv_cache][capacity]") {
  bool done = false;
  int64_t failures = 0;
  const int64_t live = live_allocations.load();
  for (int64_t k = 1; !done; ++k) {
    allocations_until_failure = k;
    try {
      const cache_type subject(life_shape);
      done = true;
    } catch (const std::bad_alloc&) {
      ++failures;
    }
    allocations_until_failure = 0;
  }
  CHECK(live_allocations.load() == live);
  CHECK(failures > 0);
}

}  // namespace

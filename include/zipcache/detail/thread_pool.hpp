// A few helper threads that live as long as the program, and one loop over independent work items.
// Loops of a decode step follow each other within microseconds, so whoever waits, helpers for the
// next loop and the caller for the last helper, first looks for a while and only then sleeps.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include <zipcache/core/numerics.hpp>
#include <zipcache/detail/spin_wait.hpp>

namespace zipcache::detail {

/// Helpers wait here between loops. One loop runs at a time; a loop that finds the pool busy (a
/// second caller, or a loop inside a loop) runs on its own thread alone, with the same results. The
/// caller never waits for a helper that has not begun: a loop whose helpers are late, because other
/// programs have the cores, is as fast as on one thread.
class thread_pool {
 public:
  static thread_pool& instance() {
    static thread_pool pool;
    return pool;
  }

  /// Calls work(i) once for every i in [0, count), on the caller and up to `num_threads - 1`
  /// helpers. If calls throw, the others are still made, and one of the exceptions comes out here.
  void run(int32_t num_threads, int64_t count, const std::function<void(int64_t)>& work) {
    const std::unique_lock<std::mutex> only(busy_, std::try_to_lock);
    if (!only.owns_lock()) {
      for (int64_t i = 0; i < count; ++i) work(i);
      return;
    }
    const int32_t num_helpers = least(num_threads - 1, most_helpers);
    while (static_cast<int32_t>(helpers_.size()) < num_helpers)
      helpers_.emplace_back([this] { help(); });
    const bool spins = have_cores_for(num_threads);
    work_ = &work;
    count_ = count;
    next_.store(0, std::memory_order_relaxed);
    open_loop(static_cast<uint64_t>(num_helpers), spins);
    drain();
    close_loop(spins);
    if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
  }

 private:
  // The state of the loop is one word: helpers that are in it (16 bits), helpers that may still
  // join (15 bits, none once the items are used up), whether the caller sleeps, and the number of
  // the loop (32 bits). work_ and count_ change only while no helper is in the loop or may join.
  static constexpr uint64_t one_inside = 1, inside_mask = 0xffff;
  static constexpr uint64_t one_seat = 1u << 16, seats_mask = 0x7fffu * one_seat;
  static constexpr uint64_t caller_sleeps = uint64_t{1} << 31;
  static constexpr uint64_t one_loop = uint64_t{1} << 32;
  static constexpr int32_t most_helpers = 0x7fff;

  /// How long a thread looks before it sleeps: about what waking it takes, so that waiting costs at
  /// most twice the better choice.
  static constexpr std::chrono::microseconds longest_spin{50};

  thread_pool() = default;
  ~thread_pool() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stopping_.store(true);
    }
    wake_.notify_all();
    for (std::thread& helper : helpers_) helper.join();
  }

  void open_loop(uint64_t num_helpers, bool spins) {
    bool some_sleep = false;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      const uint64_t number = state_.load(std::memory_order_relaxed) / one_loop + 1;
      state_.store(number * one_loop + num_helpers * one_seat, std::memory_order_release);
      helpers_spin_.store(spins, std::memory_order_relaxed);
      some_sleep = num_sleeping_ > 0;
    }
    if (some_sleep) wake_.notify_all();
  }

  /// Lets no helper in any more and waits for those that are.
  void close_loop(bool spins) {
    state_.fetch_and(~seats_mask, std::memory_order_relaxed);
    const auto is_empty = [this] {
      return (state_.load(std::memory_order_acquire) & inside_mask) == 0;
    };
    if (spin_until(spins ? longest_spin : no_time, is_empty)) return;
    std::unique_lock<std::mutex> lock(mutex_);
    state_.fetch_or(caller_sleeps, std::memory_order_relaxed);
    done_.wait(lock, is_empty);
  }

  /// A seat in a loop other than loop `seen`, which becomes the one joined; false if there is none.
  bool join_loop(uint64_t& seen) {
    uint64_t state = state_.load(std::memory_order_relaxed);
    while ((state & seats_mask) != 0 && state / one_loop != seen) {
      if (state_.compare_exchange_weak(state, state - one_seat + one_inside,
                                       std::memory_order_acquire, std::memory_order_relaxed)) {
        seen = state / one_loop;
        return true;
      }
    }
    return false;
  }
  void leave_loop() {
    const uint64_t before = state_.fetch_sub(one_inside, std::memory_order_release);
    if ((before & inside_mask) != one_inside || (before & caller_sleeps) == 0) return;
    { const std::lock_guard<std::mutex> lock(mutex_); }  // the caller waits, or has seen the state
    done_.notify_one();
  }

  void help() {
    uint64_t seen = 0;
    while (wait_for_loop(seen)) {
      drain();
      leave_loop();
    }
  }

  /// Joins the next loop; false when the program ends.
  bool wait_for_loop(uint64_t& seen) {
    bool joined = false;
    const auto is_over = [&] {
      joined = join_loop(seen);
      return joined || stopping_.load(std::memory_order_relaxed);
    };
    const bool spins = helpers_spin_.load(std::memory_order_relaxed);
    if (spin_until(spins ? longest_spin : no_time, is_over)) return joined;
    std::unique_lock<std::mutex> lock(mutex_);
    ++num_sleeping_;
    wake_.wait(lock, is_over);
    --num_sleeping_;
    return joined;
  }

  void drain() {
    for (int64_t i = next_.fetch_add(1); i < count_; i = next_.fetch_add(1)) {
      try {
        (*work_)(i);
      } catch (...) {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (!failure_) failure_ = std::current_exception();
      }
    }
  }

  static constexpr std::chrono::nanoseconds no_time{0};

  std::mutex busy_;   ///< held while a loop runs
  std::mutex mutex_;  ///< of whoever goes to sleep or wakes others, and of failure_
  std::condition_variable wake_;
  std::condition_variable done_;
  std::vector<std::thread> helpers_;
  const std::function<void(int64_t)>* work_ = nullptr;
  int64_t count_ = 0;
  std::exception_ptr failure_;
  int32_t num_sleeping_ = 0;
  std::atomic<bool> stopping_{false};
  std::atomic<bool> helpers_spin_{true};
  // Apart, since helpers look at the state while others take items.
  alignas(64) std::atomic<uint64_t> state_{0};
  alignas(64) std::atomic<int64_t> next_{0};
};

/// Calls work(i) for every i in [0, count). The items must be independent; results may not depend
/// on who runs them.
template <class Work>
void parallel_for(int32_t num_threads, int64_t count, Work&& work) {
  if (num_threads <= 1 || count <= 1) {
    for (int64_t i = 0; i < count; ++i) work(i);
    return;
  }
  const std::function<void(int64_t)> call = [&work](int64_t i) { work(i); };
  thread_pool::instance().run(num_threads, count, call);
}

}  // namespace zipcache::detail

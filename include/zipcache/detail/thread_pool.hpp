// A few helper threads that live as long as the program, and one loop over independent work items.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace zipcache::detail {

/// Helpers wait here between loops. One loop runs at a time; a loop that finds the pool busy (a
/// second caller, or a loop inside a loop) runs on its own thread alone, with the same results.
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
    while (static_cast<int32_t>(helpers_.size()) < num_threads - 1)
      helpers_.emplace_back([this, id = helpers_.size()] { wait_for_work(id); });
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      work_ = &work;
      count_ = count;
      next_.store(0);
      active_ = static_cast<size_t>(num_threads - 1);
      running_ = active_;
      ++generation_;
    }
    wake_.notify_all();
    drain();
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return running_ == 0; });
    if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
  }

 private:
  thread_pool() = default;
  ~thread_pool() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
      ++generation_;
    }
    wake_.notify_all();
    for (std::thread& helper : helpers_) helper.join();
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

  void wait_for_work(size_t id) {
    uint64_t seen = 0;
    while (true) {
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [&] { return generation_ != seen; });
      seen = generation_;
      if (stopping_) return;
      if (id >= active_) continue;
      lock.unlock();
      drain();
      lock.lock();
      if (--running_ == 0) done_.notify_one();
    }
  }

  std::mutex busy_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable done_;
  std::vector<std::thread> helpers_;
  const std::function<void(int64_t)>* work_ = nullptr;
  std::exception_ptr failure_;
  int64_t count_ = 0;
  std::atomic<int64_t> next_{0};
  size_t active_ = 0;
  size_t running_ = 0;
  uint64_t generation_ = 0;
  bool stopping_ = false;
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

#include "thread_pool.hpp"

#include <algorithm>

namespace zipcache_llama {
namespace {

// Loops follow each other within microseconds while a token is computed; sleeping in between would
// cost more than the loop. Yielding leaves the core to others that have work.
constexpr int yields_before_sleep = 200;

}  // namespace

thread_pool::thread_pool(int num_threads) {
  const int wanted =
      num_threads > 0 ? num_threads : static_cast<int>(std::thread::hardware_concurrency());
  const std::size_t others = static_cast<std::size_t>(std::max(wanted, 1)) - 1;
  threads_.reserve(others);
  for (std::size_t i = 0; i < others; ++i) {
    threads_.emplace_back([this, i] { work(i + 1); });
  }
}

thread_pool::~thread_pool() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  started_.notify_all();
  for (auto& thread : threads_) {
    thread.join();
  }
}

void thread_pool::run(std::size_t count, const task& body) {
  {
    const std::lock_guard lock(mutex_);
    count_ = count;
    body_ = &body;
    error_ = nullptr;
    next_index_ = 0;
    busy_ = threads_.size();
    ++generation_;
  }
  started_.notify_all();
  take_indices(0);
  for (int i = 0; busy_ != 0 && i < yields_before_sleep; ++i) {
    std::this_thread::yield();
  }
  std::unique_lock lock(mutex_);
  finished_.wait(lock, [this] { return busy_ == 0; });
  if (error_) {
    std::rethrow_exception(error_);
  }
}

void thread_pool::work(std::size_t worker) {
  std::size_t seen = 0;
  while (true) {
    for (int i = 0; generation_ == seen && !stopping_ && i < yields_before_sleep; ++i) {
      std::this_thread::yield();
    }
    {
      std::unique_lock lock(mutex_);
      started_.wait(lock, [&] { return stopping_ || generation_ != seen; });
      if (stopping_) {
        return;
      }
      seen = generation_;
    }
    take_indices(worker);
    const std::lock_guard lock(mutex_);
    if (--busy_ == 0) {
      finished_.notify_one();
    }
  }
}

void thread_pool::take_indices(std::size_t worker) {
  try {
    for (std::size_t i = next_index_++; i < count_; i = next_index_++) {
      (*body_)(i, worker);
    }
  } catch (...) {
    next_index_ = count_;
    const std::lock_guard lock(mutex_);
    if (!error_) {
      error_ = std::current_exception();
    }
  }
}

}  // namespace zipcache_llama

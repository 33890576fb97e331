// A few threads that wait for the next parallel loop.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace zipcache_llama {

class thread_pool {
 public:
  using task = std::function<void(std::size_t index, std::size_t worker)>;

  // @param num_threads  including the caller of run; 0 = one for each core
  explicit thread_pool(int num_threads = 0);
  ~thread_pool();
  thread_pool(const thread_pool&) = delete;
  thread_pool& operator=(const thread_pool&) = delete;

  std::size_t size() const { return threads_.size() + 1; }

  // Calls body(index, worker) once for each index < count, lower indices first, and returns when
  // all are done. No two calls with the same `worker` < size() overlap. Rethrows the first
  // exception. Not reentrant.
  void run(std::size_t count, const task& body);

 private:
  void work(std::size_t worker);
  void take_indices(std::size_t worker);

  std::mutex mutex_;
  std::condition_variable started_;
  std::condition_variable finished_;
  std::atomic<std::size_t> generation_ = 0;  // counts loops; a worker starts when it changes
  std::atomic<std::size_t> next_index_ = 0;
  std::atomic<std::size_t> busy_ = 0;  // workers that have not left the current loop
  std::size_t count_ = 0;
  const task* body_ = nullptr;
  std::exception_ptr error_;
  std::atomic<bool> stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace zipcache_llama

// A prompt on its way into a cache in device memory: probe rows of its queries, and the keys and
// values of chunks that wait in 16 bits until the last one is there. Twin: the prefill of
// stream.hpp.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include <zipcache/core/cuda.cuh>
#include <zipcache/core/shape.hpp>
#include <zipcache/core/view.hpp>
#include <zipcache/core/workspace.cuh>
#include <zipcache/saliency/saliency.cuh>
#include <zipcache/stream/device_rows.cuh>

namespace zipcache::detail {

/// @brief One layer's prompt. Its memory is from the stream's pool, and goes back to it in the
/// stream.
template <class Element>
class device_prompt {
 public:
  /// @param rows  positions of its probes, ascending; none if the policies need none
  /// @param keeps_tokens  whether keys and values are copied, because more than one call brings
  /// them
  /// @throws cuda_error  not enough device memory
  device_prompt(cudaStream_t stream, const cache_shape& shape, int64_t prompt_len,
                std::vector<int64_t> rows, bool keeps_tokens)
      : stream_(stream),
        shape_(shape),
        prompt_len_(prompt_len),
        rows_(std::move(rows)),
        keeps_tokens_(keeps_tokens) {
    allocate();
    try {
      if (!rows_.empty())
        check_cuda("cudaMemcpyAsync",
                   cudaMemcpyAsync(positions_, rows_.data(), rows_.size() * sizeof(int64_t),
                                   cudaMemcpyHostToDevice, stream_));
    } catch (...) {
      free();
      throw;
    }
  }
  device_prompt(const device_prompt&) = delete;
  device_prompt& operator=(const device_prompt&) = delete;
  ~device_prompt() { free(); }

  /// The same for a fork, which completes it by itself.
  std::unique_ptr<device_prompt> clone() const {
    auto copy = std::make_unique<device_prompt>(stream_, shape_, prompt_len_, rows_, keeps_tokens_);
    if (bytes_ > 0)
      check_cuda("cudaMemcpyAsync", cudaMemcpyAsync(copy->memory_, memory_, bytes_,
                                                    cudaMemcpyDeviceToDevice, stream_));
    copy->num_tokens_ = num_tokens_;
    copy->num_probes_ = num_probes_;
    copy->has_lse_ = has_lse_;
    return copy;
  }

  int64_t prompt_len() const { return prompt_len_; }
  int64_t num_tokens() const { return num_tokens_; }
  int64_t bytes() const { return static_cast<int64_t>(bytes_); }
  std::span<const int64_t> rows() const { return rows_; }
  /// Whether a chunk may come with lse, or without.
  bool takes_lse(bool given) const { return num_probes_ == 0 || given == has_lse_; }

  /// @brief The next tokens. q is looked at where there are probes; lse [k.num_tokens,
  /// num_qo_heads] in device memory, or null
  void add(tensor_view<const Element> q, tensor_view<const Element> k, tensor_view<const Element> v,
           const float* lse) {
    const auto place_of = [this](int64_t position) {
      return std::lower_bound(rows_.begin(), rows_.end(), position) - rows_.begin();
    };
    const int64_t last = place_of(num_tokens_ + k.num_tokens);
    const int64_t count = last - place_of(num_tokens_);
    if (count > 0) {
      gather_probes(stream_, q, lse, probe_slice{positions_, num_tokens_, last - count, count},
                    static_cast<int64_t>(rows_.size()), q_, lse_);
      has_lse_ = lse != nullptr;
    }
    if (keeps_tokens_ && k.num_tokens > 0) {
      copy_tokens(stream_, k, all(k_).tokens(num_tokens_, k.num_tokens));
      copy_tokens(stream_, v, all(v_).tokens(num_tokens_, k.num_tokens));
    }
    num_probes_ = last;
    num_tokens_ += k.num_tokens;
  }

  /// Of a prompt that keeps its tokens. [num_kv_heads, prompt_len, head_dim]
  tensor_view<const Element> k() const { return all<const Element>(k_); }
  tensor_view<const Element> v() const { return all<const Element>(v_); }
  /// The probes of a complete prompt.
  device_probe_queries<Element> probes() const {
    return {hnd<const Element>(q_, shape_.num_qo_heads, static_cast<int64_t>(rows_.size()),
                               shape_.head_dim),
            positions_, has_lse_ ? lse_ : nullptr};
  }

 private:
  template <class T>
  tensor_view<T> all(T* data) const {
    return hnd(data, shape_.num_kv_heads, prompt_len_, shape_.head_dim);
  }

  /// The same code counts and hands out.
  size_t carve(void* memory) {
    const auto num_rows = static_cast<int64_t>(rows_.size());
    const int64_t tokens = keeps_tokens_ ? prompt_len_ : 0;
    workspace_cursor cursor(memory);
    positions_ = cursor.take<int64_t>(num_rows);
    q_ = cursor.take<Element>(num_rows * shape_.num_qo_heads * shape_.head_dim);
    lse_ = cursor.take<float>(num_rows * shape_.num_qo_heads);
    k_ = cursor.take<Element>(tokens * shape_.num_kv_heads * shape_.head_dim);
    v_ = cursor.take<Element>(tokens * shape_.num_kv_heads * shape_.head_dim);
    return cursor.taken_bytes();
  }
  void allocate() {
    bytes_ = carve(nullptr);
    if (bytes_ == 0) return;
    check_cuda("cudaMallocAsync", cudaMallocAsync(&memory_, bytes_, stream_));
    carve(memory_);
  }
  void free() {
    if (memory_ != nullptr) cudaFreeAsync(memory_, stream_);
  }

  cudaStream_t stream_;
  cache_shape shape_;
  int64_t prompt_len_;
  std::vector<int64_t> rows_;
  bool keeps_tokens_;
  int64_t num_tokens_ = 0;
  int64_t num_probes_ = 0;  ///< whose rows are there
  bool has_lse_ = false;

  void* memory_ = nullptr;
  size_t bytes_ = 0;
  int64_t* positions_ = nullptr;  ///< [rows]
  Element* q_ = nullptr;          ///< [num_qo_heads, rows, head_dim]
  float* lse_ = nullptr;          ///< [num_qo_heads, rows]
  Element *k_ = nullptr, *v_ = nullptr;
};

}  // namespace zipcache::detail

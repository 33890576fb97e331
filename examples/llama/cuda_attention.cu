// Attention over a kv_cache in device memory. Tensors cross the bus as halves, layer by layer.
#define ZIPCACHE_HEAD_DIMS 64, 80, 96, 128
#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <vector>

#include <zipcache/zipcache.cuh>

#include "cuda_attention.hpp"

namespace zipcache_llama {
namespace {

using zipcache::half;
using zipcache::detail::check_cuda;
using zipcache::detail::device_array;

// A device buffer that grows, and the host's side of it.
template <class T>
class transfer_buffer {
 public:
  // Copies values in, converted to T.
  T* upload(const float* values, std::size_t count) {
    reserve(count);
    for (std::size_t i = 0; i < count; ++i) host_[i] = zipcache::from_float<T>(values[i]);
    check_cuda("cudaMemcpy",
               cudaMemcpy(device_.data(), host_.data(), count * sizeof(T), cudaMemcpyHostToDevice));
    return device_.data();
  }
  T* reserve(std::size_t count) {
    if (device_.size() < count) device_ = device_array<T>(count);
    host_.resize(count);
    return device_.data();
  }
  // Waits for the GPU and copies values out.
  void download(float* values, std::size_t count) {
    check_cuda("cudaMemcpy",
               cudaMemcpy(host_.data(), device_.data(), count * sizeof(T), cudaMemcpyDeviceToHost));
    for (std::size_t i = 0; i < count; ++i) values[i] = zipcache::to_float(host_[i]);
  }

 private:
  device_array<T> device_;
  std::vector<T> host_;
};

template <class Policies>
class cuda_attention final : public policy_cache {
 public:
  cuda_attention(const attention_shape& shape, const zipcache::cache_options& options,
                 int max_tokens)
      : shape_(shape),
        cache_({.num_layers = shape.num_layers,
                .num_qo_heads = shape.num_qo_heads,
                .num_kv_heads = shape.num_kv_heads,
                .head_dim = shape.head_dim},
               {.max_sequences = 1, .max_tokens = max_tokens}, options),
        sequence_(cache_.create()),
        batch_(cache_.make_batch(std::span(&sequence_, 1))) {}

  void prefill(const attended_layer& prompt) override {
    if (prompt.start != 0) throw std::invalid_argument("a prompt is compressed as a whole");
    const half* q = q_.upload(prompt.q.data(), prompt.q.size());
    const half* k = k_.upload(prompt.k.data(), prompt.k.size());
    const half* v = v_.upload(prompt.v.data(), prompt.v.size());
    const float* lse = lse_.upload(prompt.lse.data(), prompt.lse.size());
    cache_.prefill(sequence_, prompt.layer,
                   zipcache::nhd(q, prompt.len, shape_.num_qo_heads, shape_.head_dim),
                   zipcache::nhd(k, prompt.len, shape_.num_kv_heads, shape_.head_dim),
                   zipcache::nhd(v, prompt.len, shape_.num_kv_heads, shape_.head_dim),
                   {.lse = {lse, prompt.lse.size()}});
    cache_.check();  // also keeps the buffers until the GPU has read them
  }

  void attend(int layer, int start, int len, const float* q, const float* k, const float* v,
              float* out) override {
    if (start != cache_.length(sequence_, layer)) {
      throw std::invalid_argument("tokens at position " + std::to_string(start) +
                                  " do not continue layer " + std::to_string(layer));
    }
    const std::size_t q_row =
        static_cast<std::size_t>(shape_.num_qo_heads) * static_cast<std::size_t>(shape_.head_dim);
    const std::size_t k_row =
        static_cast<std::size_t>(shape_.num_kv_heads) * static_cast<std::size_t>(shape_.head_dim);
    for (int token = 0; token < len; ++token) {
      const std::size_t row = static_cast<std::size_t>(token);
      const half* device_q = q_.upload(q + row * q_row, q_row);
      cache_.append(batch_, layer, k_.upload(k + row * k_row, k_row),
                    v_.upload(v + row * k_row, k_row));
      cache_.attend(batch_, layer, device_q, out_.reserve(q_row));
      out_.download(out + row * q_row, q_row);
    }
    cache_.check();
  }

  int length() const override { return static_cast<int>(cache_.length(sequence_)); }
  zipcache::footprint footprint() const override { return cache_.footprint(); }
  void clear() override {
    cache_.release(sequence_);
    sequence_ = cache_.create();
    batch_ = cache_.make_batch(std::span(&sequence_, 1));
  }

 private:
  attention_shape shape_;
  zipcache::kv_cache<half, Policies, zipcache::cuda_backend> cache_;
  zipcache::sequence_id sequence_;
  zipcache::sequence_list batch_;
  transfer_buffer<half> q_, k_, v_, out_;
  transfer_buffer<float> lse_;
};

}  // namespace

std::unique_ptr<policy_cache> make_cuda_cache(const std::string& policy,
                                              const attention_shape& shape,
                                              const policy_numbers& numbers, int max_tokens) {
  const zipcache::cache_options options{.salient_ratio = numbers.salient_ratio,
                                        .recompress_interval = numbers.recompress_interval,
                                        .recent_window = numbers.recent_window,
                                        .max_probes = numbers.max_probes,
                                        .seed = numbers.seed};
  if (policy == "paper")
    return std::make_unique<cuda_attention<zipcache::presets::paper>>(shape, options, max_tokens);
  if (policy == "uncompressed")
    return std::make_unique<cuda_attention<zipcache::presets::uncompressed>>(shape, options,
                                                                             max_tokens);
  throw std::invalid_argument(
      "policy '" + policy + "' is not compiled for --backend cuda; there are paper, uncompressed");
}

}  // namespace zipcache_llama

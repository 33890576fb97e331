// Causal attention in fp32 over an uncompressed fp32 cache: the check of the model, and the prefill
// of every policy.
//
// A block of query rows at a time: scores = q · kᵀ, softmax, out = p · v, with sgemm for both
// products and the blocks of all heads spread over the threads. Only columns that a row of the
// block can see are computed.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "attention.hpp"
#include "thread_pool.hpp"

namespace zipcache_llama {

// One attend call after it was computed. The views are valid only during the observer's call;
// nothing was copied.
struct attended_layer {
  int layer;
  int start;
  int len;
  std::span<const float> q;  // [len, num_qo_heads, head_dim]
  std::span<const float>
      k;  // [start + len, num_kv_heads, head_dim]: everything cached, the new tokens last
  std::span<const float> v;  // [start + len, num_kv_heads, head_dim]
  std::span<const float>
      lse;  // [len, num_qo_heads]: natural log of the sum of e^(q · k / sqrt(head_dim))
  std::span<const float> out;  // [len, num_qo_heads, head_dim]
};

class exact_attention final : public attention {
 public:
  using observer = std::function<void(const attended_layer&)>;

  // @param pool  has to outlive this object
  exact_attention(const attention_shape& shape, thread_pool& pool);

  // @pre start <= length(layer). Cached tokens from `start` on are overwritten.
  // @throws std::invalid_argument otherwise
  void attend(int layer, int start, int len, const float* q, const float* k, const float* v,
              float* out) override;

  // Called at the end of every attend, on the caller's thread. An empty one stops it.
  void observe(observer callback) { observer_ = std::move(callback); }

  const attention_shape& shape() const { return shape_; }
  int length(int layer) const;
  std::span<const float> keys(int layer) const;    // [length, num_kv_heads, head_dim]
  std::span<const float> values(int layer) const;  // [length, num_kv_heads, head_dim]

  // Memory for that many tokens at once, instead of growing.
  void reserve(int num_tokens);
  // Forgets tokens from `length` on in every layer. @pre 0 <= length
  void truncate(int length);

 private:
  struct layer_cache {
    std::vector<float> keys;
    std::vector<float> values;
  };
  struct query_block {
    int layer;
    int start;
    std::size_t first;  // row of the chunk
    std::size_t count;
    std::size_t head;
  };

  void attend_block(const query_block& block, const float* q, float* out,
                    std::vector<float>& scores);

  attention_shape shape_;
  thread_pool& pool_;
  std::vector<layer_cache> layers_;
  std::vector<float> lse_;                  // [len, num_qo_heads] of the last attend
  std::vector<std::vector<float>> scores_;  // for each worker: [rows_per_block, visible tokens]
  observer observer_;
};

}  // namespace zipcache_llama

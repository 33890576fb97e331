// A decoder of the Llama architecture: embedding, then for each layer RMSNorm → q, k, v → RoPE →
// attention → output projection, RMSNorm → SwiGLU, both with residuals; at the end RMSNorm and the
// output matrix. Attention, and with it the KV cache, is the caller's.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "attention.hpp"
#include "gguf.hpp"
#include "hyper_parameters.hpp"
#include "rope.hpp"
#include "thread_pool.hpp"
#include "weights.hpp"

namespace zipcache_llama {

// Where the time of forward passes went, in seconds.
struct forward_times {
  double projections = 0;   // up to and with RoPE
  double attention = 0;     // in attention::attend
  double feed_forward = 0;  // output projection of attention and SwiGLU
  double logits = 0;
};

class model {
 public:
  // @param pool  used by every forward pass; has to outlive the model
  // @throws gguf_error if the file is not a model that this class computes
  model(const gguf_file& file, thread_pool& pool);
  // The same weights, not copied, with memory of its own: both may run at the same time, each on
  // its pool.
  model(const model& other, thread_pool& pool);

  const hyper_parameters& parameters() const { return parameters_; }
  attention_shape shape() const;
  int vocab_size() const { return parameters_.vocab_size; }
  int context_length() const { return parameters_.context_length; }

  // Runs `tokens` at positions [start, start + tokens.size()).
  // @param[out] logits  [rows, vocab_size] of the last `rows` tokens, 0 <= rows <= tokens.size();
  // the size says how many
  // @throws std::invalid_argument for no tokens, one outside the vocabulary, a context longer than
  // the model's or logits
  //         of another size
  void forward(std::span<const int> tokens, int start, attention& attention,
               std::span<float> logits);

  const forward_times& times() const { return times_; }
  void reset_times() { times_ = {}; }

 private:
  // One worker's scratch memory for a run of tokens.
  struct workspace {
    std::vector<float> normed;  // [tokens, hidden_size]
    std::vector<float> gate;    // [tokens, feed_forward_size]
    std::vector<float> up;      // [tokens, feed_forward_size]
  };
  struct token_range {
    std::size_t first;
    std::size_t count;
  };

  void check(std::span<const int> tokens, int start, std::span<float> logits) const;
  void embed(std::span<const int> tokens);
  // Calls body(range, workspace, pool) over all tokens: many tokens are split among the workers,
  // pool then null; few are left to the caller's thread and each matrix product is split instead.
  template <class Body>
  void for_each_range(std::size_t num_tokens, Body body);
  void project(const layer_weights& layer, const rope_table& rope, token_range range,
               workspace& space, thread_pool* pool);
  void feed_forward(const layer_weights& layer, token_range range, workspace& space,
                    thread_pool* pool);
  void compute_logits(std::size_t num_tokens, std::span<float> logits);

  hyper_parameters parameters_;
  thread_pool& pool_;
  std::shared_ptr<const model_weights> weights_;
  std::vector<float> hidden_;  // [tokens, hidden_size], the residual stream
  std::vector<float> q_;       // [tokens, num_qo_heads, head_dim]
  std::vector<float> k_;       // [tokens, num_kv_heads, head_dim]
  std::vector<float> v_;       // [tokens, num_kv_heads, head_dim]
  std::vector<float> mixed_;   // [tokens, num_qo_heads, head_dim], what attention returned
  std::vector<workspace> workspaces_;
  forward_times times_;
};

}  // namespace zipcache_llama

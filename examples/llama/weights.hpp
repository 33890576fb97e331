// The tensors of a model, dequantized to float once.
#pragma once

#include <vector>

#include "gguf.hpp"
#include "hyper_parameters.hpp"
#include "matrix_product.hpp"
#include "thread_pool.hpp"

namespace zipcache_llama {

struct layer_weights {
  std::vector<float> attention_norm;  // [hidden_size]
  matrix q;                           // [num_qo_heads · head_dim, hidden_size]
  matrix k;                           // [num_kv_heads · head_dim, hidden_size]
  matrix v;                           // [num_kv_heads · head_dim, hidden_size]
  std::vector<float> q_bias;          // [q.rows], or empty
  std::vector<float> k_bias;
  std::vector<float> v_bias;
  matrix attention_output;      // [hidden_size, num_qo_heads · head_dim]
  std::vector<float> ffn_norm;  // [hidden_size]
  matrix gate;                  // [feed_forward_size, hidden_size]
  matrix up;                    // [feed_forward_size, hidden_size]
  matrix down;                  // [hidden_size, feed_forward_size]
};

struct model_weights {
  matrix embedding;  // [vocab_size, hidden_size]
  std::vector<layer_weights> layers;
  std::vector<float> output_norm;    // [hidden_size]
  matrix output;                     // [vocab_size, hidden_size]; empty if tied to the embedding
  std::vector<float> rope_divisors;  // [rope_dim / 2] of the frequencies, or empty

  const matrix& output_matrix() const { return output.values.empty() ? embedding : output; }
};

// @throws gguf_error if a tensor is missing, has another shape than the hyper-parameters say, or is
// none of a model's
model_weights load_weights(const gguf_file& file, const hyper_parameters& parameters,
                           thread_pool& pool);

}  // namespace zipcache_llama

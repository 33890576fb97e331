// The sizes and constants of a model, read from GGUF metadata and checked against each other.
#pragma once

#include "gguf.hpp"

namespace zipcache_llama {

// Which two channels of a head RoPE turns together: (2i, 2i + 1), or (i, i + rope_dim / 2).
enum class rope_layout { interleaved, half_split };

struct hyper_parameters {
  std::string architecture;
  int num_layers = 0;
  int context_length = 0;
  int hidden_size = 0;
  int feed_forward_size = 0;
  int num_qo_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int vocab_size = 0;
  float norm_epsilon = 0;
  double rope_base = 0;
  int rope_dim = 0;  // the first rope_dim channels of a head are turned
  rope_layout rope = rope_layout::interleaved;

  std::size_t q_size() const {
    return static_cast<std::size_t>(num_qo_heads) * static_cast<std::size_t>(head_dim);
  }
  std::size_t kv_size() const {
    return static_cast<std::size_t>(num_kv_heads) * static_cast<std::size_t>(head_dim);
  }
};

// @throws gguf_error naming the key and what is wrong with it
hyper_parameters read_hyper_parameters(const gguf_file& file);

}  // namespace zipcache_llama

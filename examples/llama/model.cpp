#include "model.hpp"

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <string>

#include "vector_math.hpp"

namespace zipcache_llama {
namespace {

// Tokens that pass through a layer together. A matrix product copies all weights into its own order
// first, which takes as long as the products of some 60 tokens: more of them share one copy. Their
// activations (256 · 1536 · 4 bytes for the wider one of SmolLM2) still fit in the last two caches.
constexpr std::size_t tokens_per_range = 256;
constexpr std::size_t min_tokens_per_range = 16;

class stopwatch {
 public:
  explicit stopwatch(double& total) : total_(total) {}
  ~stopwatch() {
    total_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }
  stopwatch(const stopwatch&) = delete;
  stopwatch& operator=(const stopwatch&) = delete;

 private:
  double& total_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

void add_bias(const std::vector<float>& bias, float* rows, std::size_t count) {
  if (bias.empty()) {
    return;
  }
  for (std::size_t i = 0; i < count; ++i) {
    add(rows + i * bias.size(), bias.data(), bias.size());
  }
}

}  // namespace

model::model(const gguf_file& file, thread_pool& pool)
    : parameters_(read_hyper_parameters(file)),
      pool_(pool),
      weights_(std::make_shared<const model_weights>(load_weights(file, parameters_, pool))),
      workspaces_(pool.size()) {}

model::model(const model& other, thread_pool& pool)
    : parameters_(other.parameters_),
      pool_(pool),
      weights_(other.weights_),
      workspaces_(pool.size()) {}

attention_shape model::shape() const {
  return {parameters_.num_layers, parameters_.num_qo_heads, parameters_.num_kv_heads,
          parameters_.head_dim};
}

void model::forward(std::span<const int> tokens, int start, attention& attention,
                    std::span<float> logits) {
  check(tokens, start, logits);
  const std::size_t num_tokens = tokens.size();
  const int len = static_cast<int>(num_tokens);
  embed(tokens);
  q_.resize(num_tokens * parameters_.q_size());
  k_.resize(num_tokens * parameters_.kv_size());
  v_.resize(num_tokens * parameters_.kv_size());
  mixed_.resize(num_tokens * parameters_.q_size());
  const rope_table rope(parameters_, weights_->rope_divisors, start, len);

  for (int i = 0; i < parameters_.num_layers; ++i) {
    const auto& layer = weights_->layers[static_cast<std::size_t>(i)];
    {
      const stopwatch watch(times_.projections);
      for_each_range(num_tokens, [&](token_range range, workspace& space, thread_pool* pool) {
        project(layer, rope, range, space, pool);
      });
    }
    {
      const stopwatch watch(times_.attention);
      attention.attend(i, start, len, q_.data(), k_.data(), v_.data(), mixed_.data());
    }
    const stopwatch watch(times_.feed_forward);
    for_each_range(num_tokens, [&](token_range range, workspace& space, thread_pool* pool) {
      feed_forward(layer, range, space, pool);
    });
  }
  const stopwatch watch(times_.logits);
  compute_logits(num_tokens, logits);
}

void model::check(std::span<const int> tokens, int start, std::span<float> logits) const {
  if (tokens.empty()) {
    throw std::invalid_argument("a forward pass needs at least one token");
  }
  const auto context = static_cast<std::size_t>(parameters_.context_length);
  if (start < 0 || tokens.size() > context ||
      static_cast<std::size_t>(start) > context - tokens.size()) {
    throw std::invalid_argument(
        "tokens at positions " + std::to_string(start) + " to " +
        std::to_string(start + static_cast<std::int64_t>(tokens.size()) - 1) +
        " are outside the model's context of " + std::to_string(context));
  }
  for (const int token : tokens) {
    if (token < 0 || token >= parameters_.vocab_size) {
      throw std::invalid_argument("token " + std::to_string(token) +
                                  " is outside the vocabulary of " +
                                  std::to_string(parameters_.vocab_size));
    }
  }
  const auto vocabulary = static_cast<std::size_t>(parameters_.vocab_size);
  if (logits.size() % vocabulary != 0 || logits.size() / vocabulary > tokens.size()) {
    throw std::invalid_argument("logits have to be whole rows, at most one for each token");
  }
}

void model::embed(std::span<const int> tokens) {
  const auto size = static_cast<std::size_t>(parameters_.hidden_size);
  hidden_.resize(tokens.size() * size);
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    std::copy_n(weights_->embedding.row(static_cast<std::size_t>(tokens[i])), size,
                hidden_.data() + i * size);
  }
}

template <class Body>
void model::for_each_range(std::size_t num_tokens, Body body) {
  // At least one range for each worker, of equal lengths.
  const std::size_t wanted =
      std::max((num_tokens + tokens_per_range - 1) / tokens_per_range, pool_.size());
  const std::size_t rounds = (wanted + pool_.size() - 1) / pool_.size();
  const std::size_t ranges = rounds * pool_.size();
  if (pool_.size() == 1 || num_tokens < ranges * min_tokens_per_range) {
    for (std::size_t first = 0; first < num_tokens; first += tokens_per_range) {
      body(token_range{first, std::min(tokens_per_range, num_tokens - first)}, workspaces_[0],
           pool_.size() == 1 ? nullptr : &pool_);
    }
    return;
  }
  pool_.run(ranges, [&](std::size_t i, std::size_t worker) {
    const std::size_t first = num_tokens * i / ranges;
    body(token_range{first, num_tokens * (i + 1) / ranges - first}, workspaces_[worker], nullptr);
  });
}

void model::project(const layer_weights& layer, const rope_table& rope, token_range range,
                    workspace& space, thread_pool* pool) {
  const auto size = static_cast<std::size_t>(parameters_.hidden_size);
  const auto head_dim = static_cast<std::size_t>(parameters_.head_dim);
  space.normed.resize(range.count * size);
  for (std::size_t i = 0; i < range.count; ++i) {
    rms_norm(hidden_.data() + (range.first + i) * size, layer.attention_norm.data(), size,
             parameters_.norm_epsilon, space.normed.data() + i * size);
  }
  float* q = q_.data() + range.first * parameters_.q_size();
  float* k = k_.data() + range.first * parameters_.kv_size();
  float* v = v_.data() + range.first * parameters_.kv_size();
  apply(layer.q, space.normed.data(), range.count, q, pool);
  apply(layer.k, space.normed.data(), range.count, k, pool);
  apply(layer.v, space.normed.data(), range.count, v, pool);
  add_bias(layer.q_bias, q, range.count);
  add_bias(layer.k_bias, k, range.count);
  add_bias(layer.v_bias, v, range.count);
  for (std::size_t i = 0; i < range.count; ++i) {
    for (int head = 0; head < parameters_.num_qo_heads; ++head, q += head_dim) {
      rope.turn(range.first + i, q);
    }
    for (int head = 0; head < parameters_.num_kv_heads; ++head, k += head_dim) {
      rope.turn(range.first + i, k);
    }
  }
}

void model::feed_forward(const layer_weights& layer, token_range range, workspace& space,
                         thread_pool* pool) {
  const auto size = static_cast<std::size_t>(parameters_.hidden_size);
  const auto wide = static_cast<std::size_t>(parameters_.feed_forward_size);
  float* hidden = hidden_.data() + range.first * size;
  space.normed.resize(range.count * size);
  space.gate.resize(range.count * wide);
  space.up.resize(range.count * wide);

  apply(layer.attention_output, mixed_.data() + range.first * parameters_.q_size(), range.count,
        space.normed.data(), pool);
  add(hidden, space.normed.data(), range.count * size);

  for (std::size_t i = 0; i < range.count; ++i) {
    rms_norm(hidden + i * size, layer.ffn_norm.data(), size, parameters_.norm_epsilon,
             space.normed.data() + i * size);
  }
  apply(layer.gate, space.normed.data(), range.count, space.gate.data(), pool);
  apply(layer.up, space.normed.data(), range.count, space.up.data(), pool);
  swiglu(space.gate.data(), space.up.data(), range.count * wide);
  apply(layer.down, space.gate.data(), range.count, space.normed.data(), pool);
  add(hidden, space.normed.data(), range.count * size);
}

void model::compute_logits(std::size_t num_tokens, std::span<float> logits) {
  const auto size = static_cast<std::size_t>(parameters_.hidden_size);
  const auto vocabulary = static_cast<std::size_t>(parameters_.vocab_size);
  const std::size_t rows = logits.size() / vocabulary;
  if (rows == 0) {
    return;
  }
  const float* hidden = hidden_.data() + (num_tokens - rows) * size;
  for_each_range(rows, [&](token_range range, workspace& space, thread_pool* pool) {
    space.normed.resize(range.count * size);
    for (std::size_t i = 0; i < range.count; ++i) {
      rms_norm(hidden + (range.first + i) * size, weights_->output_norm.data(), size,
               parameters_.norm_epsilon, space.normed.data() + i * size);
    }
    apply(weights_->output_matrix(), space.normed.data(), range.count,
          logits.data() + range.first * vocabulary, pool);
  });
}

}  // namespace zipcache_llama

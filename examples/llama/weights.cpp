#include "weights.hpp"

#include <string>
#include <unordered_set>

#include "dequantize.hpp"

namespace zipcache_llama {
namespace {

std::string shape_text(const std::vector<std::uint64_t>& shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  }
  return text + "]";
}

class loader {
 public:
  loader(const gguf_file& file, thread_pool& pool) : file_(file), pool_(pool) {}

  matrix required_matrix(const std::string& name, std::size_t rows, std::size_t columns) {
    return {rows, columns, dequantized(required(name), {columns, rows})};
  }

  matrix optional_matrix(const std::string& name, std::size_t rows, std::size_t columns) {
    return file_.find_tensor(name) == nullptr ? matrix{} : required_matrix(name, rows, columns);
  }

  std::vector<float> required_vector(const std::string& name, std::size_t size) {
    return dequantized(required(name), {size});
  }

  std::vector<float> optional_vector(const std::string& name, std::size_t size) {
    return file_.find_tensor(name) == nullptr ? std::vector<float>{} : required_vector(name, size);
  }

  // A tensor that nobody asked for belongs to a variant whose result would be different.
  void refuse_unused() const {
    for (const auto& tensor : file_.tensors()) {
      if (!used_.contains(tensor.name)) {
        file_.fail("tensor '" + tensor.name + "' has no place in this architecture");
      }
    }
  }

 private:
  const tensor_info& required(const std::string& name) const {
    const auto* tensor = file_.find_tensor(name);
    if (tensor == nullptr) {
      file_.fail("tensor '" + name + "' is missing");
    }
    return *tensor;
  }

  std::vector<float> dequantized(const tensor_info& tensor,
                                 const std::vector<std::uint64_t>& shape) {
    if (tensor.shape != shape) {
      file_.fail("tensor '" + tensor.name + "' has shape " + shape_text(tensor.shape) +
                 ", expected " + shape_text(shape));
    }
    used_.insert(tensor.name);
    std::vector<float> values(static_cast<std::size_t>(tensor.num_elements));
    const auto layout = layout_of(tensor.type);
    const std::size_t blocks = values.size() / layout.block_elements;
    constexpr std::size_t blocks_per_task = 4096;
    pool_.run((blocks + blocks_per_task - 1) / blocks_per_task, [&](std::size_t task, std::size_t) {
      const std::size_t first = task * blocks_per_task;
      const std::size_t count = std::min(blocks_per_task, blocks - first);
      dequantize(
          tensor.type, tensor.data.subspan(first * layout.block_bytes, count * layout.block_bytes),
          std::span(values).subspan(first * layout.block_elements, count * layout.block_elements));
    });
    return values;
  }

  const gguf_file& file_;
  thread_pool& pool_;
  std::unordered_set<std::string> used_;
};

}  // namespace

model_weights load_weights(const gguf_file& file, const hyper_parameters& parameters,
                           thread_pool& pool) {
  const auto hidden = static_cast<std::size_t>(parameters.hidden_size);
  const auto feed_forward = static_cast<std::size_t>(parameters.feed_forward_size);
  const auto vocabulary = static_cast<std::size_t>(parameters.vocab_size);
  const auto q_size = parameters.q_size();
  const auto kv_size = parameters.kv_size();

  loader load(file, pool);
  model_weights weights;
  weights.embedding = load.required_matrix("token_embd.weight", vocabulary, hidden);
  for (int i = 0; i < parameters.num_layers; ++i) {
    const std::string block = "blk." + std::to_string(i) + ".";
    layer_weights layer;
    layer.attention_norm = load.required_vector(block + "attn_norm.weight", hidden);
    layer.q = load.required_matrix(block + "attn_q.weight", q_size, hidden);
    layer.k = load.required_matrix(block + "attn_k.weight", kv_size, hidden);
    layer.v = load.required_matrix(block + "attn_v.weight", kv_size, hidden);
    layer.q_bias = load.optional_vector(block + "attn_q.bias", q_size);
    layer.k_bias = load.optional_vector(block + "attn_k.bias", kv_size);
    layer.v_bias = load.optional_vector(block + "attn_v.bias", kv_size);
    layer.attention_output = load.required_matrix(block + "attn_output.weight", hidden, q_size);
    layer.ffn_norm = load.required_vector(block + "ffn_norm.weight", hidden);
    layer.gate = load.required_matrix(block + "ffn_gate.weight", feed_forward, hidden);
    layer.up = load.required_matrix(block + "ffn_up.weight", feed_forward, hidden);
    layer.down = load.required_matrix(block + "ffn_down.weight", hidden, feed_forward);
    weights.layers.push_back(std::move(layer));
  }
  weights.output_norm = load.required_vector("output_norm.weight", hidden);
  weights.output = load.optional_matrix("output.weight", vocabulary, hidden);
  weights.rope_divisors =
      load.optional_vector("rope_freqs.weight", static_cast<std::size_t>(parameters.rope_dim) / 2);
  load.refuse_unused();
  return weights;
}

}  // namespace zipcache_llama

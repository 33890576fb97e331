#include "hyper_parameters.hpp"

#include <cmath>

namespace zipcache_llama {
namespace {

// Far above every model of these architectures; products of any three still fit in 64 bits.
constexpr std::uint64_t max_layers = 1024;
constexpr std::uint64_t max_size = 1U << 20;
constexpr std::uint64_t max_heads = 4096;
constexpr std::uint64_t max_head_dim = 1024;
constexpr std::uint64_t max_context = 1U << 26;
constexpr std::uint64_t max_vocabulary = 1U << 22;

class metadata {
 public:
  metadata(const gguf_file& file, std::string architecture)
      : file_(file), prefix_(std::move(architecture) + '.') {}

  int size(const char* key, std::uint64_t limit) const {
    const auto value = file_.unsigned_integer(prefix_ + key);
    if (!value) {
      file_.fail("metadata '" + prefix_ + key + "' is missing");
    }
    return checked(key, *value, limit);
  }

  int size_or(const char* key, std::uint64_t limit, int otherwise) const {
    const auto value = file_.unsigned_integer(prefix_ + key);
    return value ? checked(key, *value, limit) : otherwise;
  }

  double positive_real(const char* key, std::optional<double> otherwise) const {
    const auto found = file_.real(prefix_ + key);
    const auto value = found ? found : otherwise;
    if (!value) {
      file_.fail("metadata '" + prefix_ + key + "' is missing");
    }
    if (!std::isfinite(*value) || *value <= 0) {
      file_.fail("metadata '" + prefix_ + key + "' is " + std::to_string(*value) +
                 ", expected a positive number");
    }
    return *value;
  }

  // A setting that would change the result but is not implemented here.
  void refuse(const char* key) const {
    if (file_.find(prefix_ + key) != nullptr) {
      file_.fail("metadata '" + prefix_ + key + "' asks for something that is not supported");
    }
  }

  std::optional<std::string_view> string(const char* key) const {
    return file_.string(prefix_ + key);
  }

 private:
  int checked(const char* key, std::uint64_t value, std::uint64_t limit) const {
    if (value == 0 || value > limit) {
      file_.fail("metadata '" + prefix_ + key + "' is " + std::to_string(value) +
                 ", expected 1 to " + std::to_string(limit));
    }
    return static_cast<int>(value);
  }

  const gguf_file& file_;
  std::string prefix_;
};

// The rows of the embedding are the truth; whatever else states the size has to agree.
int read_vocabulary_size(const gguf_file& file, const metadata& data) {
  const auto* embedding = file.find_tensor("token_embd.weight");
  if (embedding == nullptr) {
    file.fail("tensor 'token_embd.weight' is missing");
  }
  if (embedding->shape.size() != 2 || embedding->shape[1] > max_vocabulary) {
    file.fail("tensor 'token_embd.weight' is not a matrix with at most " +
              std::to_string(max_vocabulary) + " rows");
  }
  const int size = static_cast<int>(embedding->shape[1]);
  const int stated = data.size_or("vocab_size", max_vocabulary, size);
  if (stated != size) {
    file.fail("states a vocabulary of " + std::to_string(stated) +
              " tokens, but its embedding has " + std::to_string(size) + " rows");
  }
  const auto tokens = file.strings("tokenizer.ggml.tokens");
  if (tokens && tokens->size() != embedding->shape[1]) {
    file.fail("has a tokenizer of " + std::to_string(tokens->size()) +
              " tokens, but its embedding has " + std::to_string(size) + " rows");
  }
  return size;
}

}  // namespace

hyper_parameters read_hyper_parameters(const gguf_file& file) {
  const auto architecture = file.string("general.architecture");
  if (!architecture) {
    file.fail("metadata 'general.architecture' is missing");
  }
  if (*architecture != "llama" && *architecture != "qwen2") {
    file.fail("architecture '" + std::string(*architecture) +
              "' is not supported (llama and qwen2 are)");
  }
  hyper_parameters p;
  p.architecture = *architecture;
  // llama files have the rows of Wq and Wk permuted by the converter so that pairs are neighbours;
  // qwen2 files do not.
  p.rope = *architecture == "llama" ? rope_layout::interleaved : rope_layout::half_split;

  const metadata data(file, p.architecture);
  p.num_layers = data.size("block_count", max_layers);
  p.context_length = data.size("context_length", max_context);
  p.hidden_size = data.size("embedding_length", max_size);
  p.feed_forward_size = data.size("feed_forward_length", max_size);
  p.num_qo_heads = data.size("attention.head_count", max_heads);
  p.num_kv_heads = data.size_or("attention.head_count_kv", max_heads, p.num_qo_heads);
  if (p.num_qo_heads % p.num_kv_heads != 0) {
    file.fail(std::to_string(p.num_kv_heads) + " KV heads do not divide " +
              std::to_string(p.num_qo_heads) + " query heads");
  }
  p.head_dim = data.size_or("attention.key_length", max_head_dim, 0);
  if (p.head_dim == 0) {
    if (p.hidden_size % p.num_qo_heads != 0) {
      file.fail("an embedding of " + std::to_string(p.hidden_size) + " does not split into " +
                std::to_string(p.num_qo_heads) + " heads");
    }
    p.head_dim = p.hidden_size / p.num_qo_heads;
    if (static_cast<std::uint64_t>(p.head_dim) > max_head_dim) {
      file.fail("heads of " + std::to_string(p.head_dim) + " channels are above the limit of " +
                std::to_string(max_head_dim));
    }
  }
  if (data.size_or("attention.value_length", max_head_dim, p.head_dim) != p.head_dim) {
    file.fail("keys and values of different length are not supported");
  }
  p.norm_epsilon =
      static_cast<float>(data.positive_real("attention.layer_norm_rms_epsilon", std::nullopt));
  p.rope_base = data.positive_real("rope.freq_base", 10000.0);
  p.rope_dim = data.size_or("rope.dimension_count", max_head_dim, p.head_dim);
  if (p.rope_dim > p.head_dim || p.rope_dim % 2 != 0) {
    file.fail("RoPE over " + std::to_string(p.rope_dim) + " channels does not fit heads of " +
              std::to_string(p.head_dim));
  }
  if (const auto scaling = data.string("rope.scaling.type"); scaling && *scaling != "none") {
    file.fail("RoPE scaling '" + std::string(*scaling) + "' is not supported");
  }
  data.refuse("rope.scale_linear");
  data.refuse("attention.sliding_window");
  data.refuse("expert_count");
  p.vocab_size = read_vocabulary_size(file, data);
  return p;
}

}  // namespace zipcache_llama

// A random model of a few thousand weights, with a byte-level tokenizer, as a GGUF file in memory.
#pragma once

#include <string>
#include <vector>

#include "byte_alphabet.hpp"
#include "gguf_writer.hpp"
#include "utf8.hpp"

namespace zipcache_llama_test {

struct tiny_shape {
  std::string architecture = "llama";
  int layers = 2;
  int hidden = 48;
  int feed_forward = 64;
  int qo_heads = 6;
  int kv_heads = 2;
  int context = 512;
  bool biases = false;
  bool separate_output = false;
};

inline std::string spelled(std::string_view text) {
  std::string spelling;
  for (const char c : text) {
    zipcache_llama::append_utf8(spelling,
                                zipcache_llama::byte_alphabet[static_cast<unsigned char>(c)]);
  }
  return spelling;
}

// One token for each byte, some merges, two special tokens: 256 + 6 + 2.
inline void add_tokenizer(gguf_writer& file, const std::string& pre = "smollm") {
  std::vector<std::string> tokens;
  for (int byte = 0; byte < 256; ++byte) {
    tokens.push_back(spelled(std::string(1, static_cast<char>(byte))));
  }
  std::vector<std::string> merges;
  for (const auto& [left, right] : std::vector<std::pair<std::string, std::string>>{
           {"a", "b"}, {"b", "c"}, {" ", "a"}, {"ab", "ab"}, {"abab", "abab"}, {"1", "2"}}) {
    tokens.push_back(spelled(left + right));
    merges.push_back(spelled(left) + " " + spelled(right));
  }
  std::vector<std::int32_t> types(tokens.size(), 1);
  for (const char* special : {"<|im_start|>", "<|im_end|>"}) {
    tokens.emplace_back(special);
    types.push_back(3);
  }
  file.string("tokenizer.ggml.model", "gpt2");
  file.string("tokenizer.ggml.pre", pre);
  file.strings("tokenizer.ggml.tokens", tokens);
  file.integers("tokenizer.ggml.token_type", types);
  file.strings("tokenizer.ggml.merges", merges);
  file.unsigned_integer("tokenizer.ggml.eos_token_id", 263);
}
inline constexpr int tiny_vocabulary = 264;

inline gguf_writer tiny_model(const tiny_shape& shape = {}) {
  gguf_writer file;
  const std::string prefix = shape.architecture + ".";
  const auto number = [](int value) { return static_cast<std::uint32_t>(value); };
  file.string("general.architecture", shape.architecture);
  file.unsigned_integer(prefix + "block_count", number(shape.layers));
  file.unsigned_integer(prefix + "context_length", number(shape.context));
  file.unsigned_integer(prefix + "embedding_length", number(shape.hidden));
  file.unsigned_integer(prefix + "feed_forward_length", number(shape.feed_forward));
  file.unsigned_integer(prefix + "attention.head_count", number(shape.qo_heads));
  file.unsigned_integer(prefix + "attention.head_count_kv", number(shape.kv_heads));
  file.real(prefix + "attention.layer_norm_rms_epsilon", 1e-5F);
  file.real(prefix + "rope.freq_base", 10000.0F);
  add_tokenizer(file);

  zipcache_llama::random_stream random(1);
  const auto add = [&](const std::string& name, std::vector<std::uint64_t> extents, float centre,
                       float spread) {
    std::uint64_t count = 1;
    for (const auto extent : extents) {
      count *= extent;
    }
    std::vector<float> values(count);
    for (float& value : values) {
      value = centre + spread * static_cast<float>(2 * random.uniform() - 1);
    }
    file.tensor(name, extents, values);
  };
  const auto hidden = static_cast<std::uint64_t>(shape.hidden);
  const auto wide = static_cast<std::uint64_t>(shape.feed_forward);
  const auto kv = static_cast<std::uint64_t>(shape.hidden / shape.qo_heads * shape.kv_heads);
  add("token_embd.weight", {hidden, tiny_vocabulary}, 0, 1);
  for (int i = 0; i < shape.layers; ++i) {
    const std::string block = "blk." + std::to_string(i) + ".";
    add(block + "attn_norm.weight", {hidden}, 1, 0.2F);
    add(block + "attn_q.weight", {hidden, hidden}, 0, 0.4F);
    add(block + "attn_k.weight", {hidden, kv}, 0, 0.4F);
    add(block + "attn_v.weight", {hidden, kv}, 0, 0.2F);
    if (shape.biases) {
      add(block + "attn_q.bias", {hidden}, 0, 0.5F);
      add(block + "attn_k.bias", {kv}, 0, 0.5F);
      add(block + "attn_v.bias", {kv}, 0, 0.5F);
    }
    add(block + "attn_output.weight", {hidden, hidden}, 0, 0.2F);
    add(block + "ffn_norm.weight", {hidden}, 1, 0.2F);
    add(block + "ffn_gate.weight", {hidden, wide}, 0, 0.2F);
    add(block + "ffn_up.weight", {hidden, wide}, 0, 0.2F);
    add(block + "ffn_down.weight", {wide, hidden}, 0, 0.2F);
  }
  add("output_norm.weight", {hidden}, 1, 0.2F);
  if (shape.separate_output) {
    add("output.weight", {hidden, tiny_vocabulary}, 0, 0.3F);
  }
  return file;
}

}  // namespace zipcache_llama_test

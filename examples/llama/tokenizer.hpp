// Byte-level BPE from the vocabulary and merges of a GGUF file (`tokenizer.ggml.model` = gpt2).
//
// decode(encode(text)) is `text` for every string of bytes, as long as the vocabulary has a token
// for each of the 256 bytes. Some leave out bytes that no text of theirs had; those encode to the
// unknown token (see missing_bytes).
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "gguf.hpp"
#include "pre_tokenizer.hpp"

namespace zipcache_llama {

// Only `recognise` text that the program wrote itself: a user's "<|im_end|>" must not end their own
// message.
enum class special_tokens { as_text, recognise };

class tokenizer {
 public:
  // @throws gguf_error if the file's tokenizer is missing, of another kind or inconsistent
  explicit tokenizer(const gguf_file& file);

  int size() const { return static_cast<int>(bytes_.size()); }

  // @throws std::runtime_error for a byte outside the vocabulary if there is no unknown token
  // either
  std::vector<int> encode(std::string_view text,
                          special_tokens special = special_tokens::as_text) const;

  std::string decode(std::span<const int> tokens) const;
  // Not necessarily whole UTF-8. @pre 0 <= token < size()
  const std::string& bytes(int token) const { return bytes_[static_cast<std::size_t>(token)]; }

  // The special token spelled exactly so.
  std::optional<int> special(std::string_view text) const;
  bool is_special(int token) const { return is_special_[static_cast<std::size_t>(token)]; }
  std::optional<int> beginning_of_text() const { return beginning_of_text_; }
  std::optional<int> end_of_text() const { return end_of_text_; }

  // The bytes that no token stands for.
  std::vector<unsigned char> missing_bytes() const;

 private:
  struct merge {
    int rank;
    int token;
  };
  class pair_merger;
  using spelling_index = std::unordered_map<std::string_view, int>;  // views into the gguf_file

  spelling_index read_vocabulary(const gguf_file& file);
  void read_merges(const gguf_file& file, const spelling_index& index);
  std::optional<int> read_special_id(const gguf_file& file, const char* key) const;
  void encode_text(std::string_view text, pair_merger& merger, std::vector<int>& tokens) const;

  pre_tokenizer pre_tokenizer_;
  std::vector<std::string> bytes_;  // what each token decodes to
  std::vector<bool> is_special_;
  std::vector<int> specials_;  // longest first, so that the first match is the right one
  std::array<bool, 256> starts_special_{};
  std::array<int, 256> byte_tokens_{};               // -1 if missing
  std::unordered_map<std::uint64_t, merge> merges_;  // left token · 2^32 + right token
  std::optional<int> unknown_;
  std::optional<int> beginning_of_text_;
  std::optional<int> end_of_text_;
};

}  // namespace zipcache_llama

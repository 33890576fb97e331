// Splits text into the pieces that BPE never merges across: a chain of regular expressions, each
// cutting the pieces that the ones before it left. Which chain is said by the file
// (`tokenizer.ggml.pre`).
#pragma once

#include <memory>
#include <string_view>
#include <vector>

namespace zipcache_llama {

class pre_tokenizer {
 public:
  static bool knows(std::string_view name);

  // @pre knows(name)
  explicit pre_tokenizer(std::string_view name);
  ~pre_tokenizer();
  pre_tokenizer(pre_tokenizer&&) noexcept;
  pre_tokenizer& operator=(pre_tokenizer&&) noexcept;

  // Appends the pieces of `text` in order; together they are exactly `text`. Bytes that are not
  // UTF-8 become pieces of their own. The pieces are views into `text`.
  void split(std::string_view text, std::vector<std::string_view>& pieces) const;

 private:
  class pattern;
  void split_valid(std::string_view text, std::vector<std::string_view>& pieces) const;

  std::vector<std::unique_ptr<pattern>> chain_;
};

}  // namespace zipcache_llama

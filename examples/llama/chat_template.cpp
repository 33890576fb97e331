#include "chat_template.hpp"

#include <stdexcept>
#include <string>

namespace zipcache_llama {

std::vector<int> chat_prompt(const tokenizer& tokenizer, std::string_view user,
                             std::string_view system) {
  const auto start = tokenizer.special("<|im_start|>");
  const auto end = tokenizer.special("<|im_end|>");
  if (!start || !end) {
    throw std::runtime_error(
        "the model's vocabulary has no <|im_start|> and <|im_end|> for a chat");
  }
  std::vector<int> tokens;
  const auto append = [&](std::string_view text) {
    const auto encoded = tokenizer.encode(text);
    tokens.insert(tokens.end(), encoded.begin(), encoded.end());
  };
  const auto append_message = [&](std::string_view role, std::string_view content) {
    tokens.push_back(*start);
    append(std::string(role) + '\n' + std::string(content));
    tokens.push_back(*end);
    append("\n");
  };
  append_message("system", system);
  append_message("user", user);
  tokens.push_back(*start);
  append("assistant\n");
  return tokens;
}

}  // namespace zipcache_llama

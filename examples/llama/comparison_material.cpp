#include "comparison_material.hpp"

#include <stdexcept>

#include "comparison.hpp"
#include "text_windows.hpp"

namespace zipcache_llama {

void check_context(int context, int generated, int context_length) {
  if (context + generated > context_length) {
    throw std::invalid_argument(
        "--context " + std::to_string(context) + " and --generated " + std::to_string(generated) +
        " together are longer than the model's context of " + std::to_string(context_length));
  }
}

std::vector<std::span<const int>> comparison_windows(const std::string& text,
                                                     std::span<const int> tokens, int context,
                                                     int generated, int contexts,
                                                     std::uint64_t seed) {
  const auto length = static_cast<std::size_t>(context + generated + 1);
  const std::size_t available = num_windows(tokens.size(), length);
  if (available < static_cast<std::size_t>(contexts)) {
    throw std::invalid_argument(text + ": too short: its " + std::to_string(tokens.size()) +
                                " tokens are " + std::to_string(available) + " windows of " +
                                std::to_string(length) + ", and --contexts is " +
                                std::to_string(contexts));
  }
  return draw_windows(tokens, length, static_cast<std::size_t>(contexts), seed);
}

std::vector<line_retrieval_prompt> comparison_prompts(int lines, int line_prompts,
                                                      std::uint64_t seed,
                                                      const tokenizer& tokenizer,
                                                      int context_length) {
  if (lines > max_retrieval_lines()) {
    throw std::invalid_argument("--lines is at most " + std::to_string(max_retrieval_lines()));
  }
  std::vector<line_retrieval_prompt> prompts;
  for (int i = 0; i < line_prompts; ++i) {
    prompts.push_back(make_line_retrieval(lines, seed * 1'000'003 + static_cast<std::uint64_t>(i)));
    const auto encoded = encode(prompts.back(), tokenizer);
    const std::size_t length = encoded.prompt.size() + encoded.start.size() + encoded.answer.size();
    if (length > static_cast<std::size_t>(context_length)) {
      throw std::invalid_argument("a prompt of " + std::to_string(lines) + " lines has " +
                                  std::to_string(length) +
                                  " tokens with its answer, more than the model's context of " +
                                  std::to_string(context_length));
    }
  }
  return prompts;
}

}  // namespace zipcache_llama

// The windows and prompts of a comparison, or the reason why there are none: what the command line
// asks for against what the model and the text give.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "line_retrieval.hpp"
#include "tokenizer.hpp"

namespace zipcache_llama {

// @throws std::invalid_argument if the model takes fewer tokens
void check_context(int context, int generated, int context_length);

// `contexts` windows of context + generated + 1 tokens, drawn by `seed`.
// @param text  its name, for the message
// @throws std::invalid_argument if the text is too short
std::vector<std::span<const int>> comparison_windows(const std::string& text,
                                                     std::span<const int> tokens, int context,
                                                     int generated, int contexts,
                                                     std::uint64_t seed);

// @throws std::invalid_argument for too many lines, or more than the model's context holds
std::vector<line_retrieval_prompt> comparison_prompts(int lines, int line_prompts,
                                                      std::uint64_t seed,
                                                      const tokenizer& tokenizer,
                                                      int context_length);

}  // namespace zipcache_llama

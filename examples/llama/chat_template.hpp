// ChatML, the conversation format of SmolLM2 and Qwen2:
//   <|im_start|>system\n…<|im_end|>\n<|im_start|>user\n…<|im_end|>\n<|im_start|>assistant\n
#pragma once

#include <string_view>
#include <vector>

#include "tokenizer.hpp"

namespace zipcache_llama {

// What SmolLM2's own template says when the conversation has no system message.
inline constexpr std::string_view default_system_message =
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face";

// One system and one user message, up to where the assistant starts. Special tokens inside the
// messages stay text.
// @throws std::runtime_error if the vocabulary has no ChatML tokens
std::vector<int> chat_prompt(const tokenizer& tokenizer, std::string_view user,
                             std::string_view system = default_system_message);

}  // namespace zipcache_llama

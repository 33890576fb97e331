// Line retrieval, the long-context task of the ZipCache paper: a record of lines
//   line <two-word key>: REGISTER_CONTENT is <number>
// and a question for the number of one of them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace zipcache_llama {

struct line_retrieval_prompt {
  std::string context;   // the instruction and all lines
  std::string recalled;  // may follow the context: some other lines once more, as examples of what
                         // is wanted
  std::string question;  // follows the context, in the same message
  std::string answer_prefix;  // may begin the answer, so that a small model does nothing but copy
                              // the number
  std::string key;            // of the line asked for
  int line = 0;               // its index
  int expected = 0;           // its number, five digits
};

// Small models do not find a line from the question alone: SmolLM2-135M names the right number of
// 10 in a third of the cases, and in three quarters when it continues a list of recalled lines.
inline constexpr int max_recalled_lines = 5;

// How many lines can have different keys.
int max_retrieval_lines();

// The same seed gives the same prompt everywhere. No two lines share a key or a number.
// @throws std::invalid_argument unless 1 <= num_lines <= max_retrieval_lines()
line_retrieval_prompt make_line_retrieval(int num_lines, std::uint64_t seed);

// The first run of digits; nullopt if there is none or it is no int.
std::optional<int> parse_number(std::string_view generated);

inline bool is_retrieved(const line_retrieval_prompt& prompt, std::string_view generated) {
  return parse_number(generated) == prompt.expected;
}

}  // namespace zipcache_llama

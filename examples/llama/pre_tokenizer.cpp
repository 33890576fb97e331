#include "pre_tokenizer.hpp"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <array>
#include <stdexcept>
#include <string>

#include <pcre2.h>

#include "utf8.hpp"

namespace zipcache_llama {
namespace {

constexpr std::string_view gpt2_words =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr std::string_view qwen2_words =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view llama3_words =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view single_digits = R"(\p{N})";

struct known_chain {
  std::string_view name;
  std::array<std::string_view, 2> patterns;  // the second may be empty
};

constexpr std::array<known_chain, 4> known_chains = {{
    {"smollm", {single_digits, gpt2_words}},
    {"gpt-2", {gpt2_words, {}}},
    {"qwen2", {qwen2_words, {}}},
    {"llama-bpe", {llama3_words, {}}},
}};

const known_chain* find_chain(std::string_view name) {
  for (const auto& chain : known_chains) {
    if (chain.name == name) {
      return &chain;
    }
  }
  return nullptr;
}

}  // namespace

class pre_tokenizer::pattern {
 public:
  explicit pattern(std::string_view expression) {
    int error = 0;
    PCRE2_SIZE offset = 0;
    code_ = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(expression.data()), expression.size(),
                          PCRE2_UTF | PCRE2_UCP, &error, &offset, nullptr);
    if (code_ == nullptr) {
      throw std::runtime_error("PCRE2 lacks Unicode support: error " + std::to_string(error));
    }
    // Without a JIT for this processor, pcre2_match interprets: slower, same result.
    pcre2_jit_compile(code_, PCRE2_JIT_COMPLETE);
  }
  ~pattern() { pcre2_code_free(code_); }
  pattern(const pattern&) = delete;
  pattern& operator=(const pattern&) = delete;

  // Appends matches and what lies between them, in order. @pre text is valid UTF-8
  void split(std::string_view text, std::vector<std::string_view>& pieces) const {
    const std::unique_ptr<pcre2_match_data, void (*)(pcre2_match_data*)> match(
        pcre2_match_data_create_from_pattern(code_, nullptr), pcre2_match_data_free);
    if (!match) {
      throw std::bad_alloc();
    }
    std::size_t at = 0;
    while (at < text.size()) {
      // The whole text was checked once; checking it again for each match would take quadratic
      // time.
      const int found = pcre2_match(code_, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(),
                                    at, PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY, match.get(), nullptr);
      if (found == PCRE2_ERROR_NOMATCH) {
        break;
      }
      if (found < 0) {
        throw std::runtime_error("PCRE2 gave up on a text: error " + std::to_string(found));
      }
      const PCRE2_SIZE* range = pcre2_get_ovector_pointer(match.get());
      if (range[0] > at) {
        pieces.push_back(text.substr(at, range[0] - at));
      }
      pieces.push_back(text.substr(range[0], range[1] - range[0]));
      at = range[1];
    }
    if (at < text.size()) {
      pieces.push_back(text.substr(at));
    }
  }

 private:
  pcre2_code* code_;
};

bool pre_tokenizer::knows(std::string_view name) { return find_chain(name) != nullptr; }

pre_tokenizer::pre_tokenizer(std::string_view name) {
  const auto* chain = find_chain(name);
  if (chain == nullptr) {
    throw std::invalid_argument("unknown pre-tokenizer '" + std::string(name) + "'");
  }
  for (const auto expression : chain->patterns) {
    if (!expression.empty()) {
      chain_.push_back(std::make_unique<pattern>(expression));
    }
  }
}

pre_tokenizer::~pre_tokenizer() = default;
pre_tokenizer::pre_tokenizer(pre_tokenizer&&) noexcept = default;
pre_tokenizer& pre_tokenizer::operator=(pre_tokenizer&&) noexcept = default;

void pre_tokenizer::split(std::string_view text, std::vector<std::string_view>& pieces) const {
  std::size_t at = 0;
  while (at < text.size()) {
    const std::size_t start = at;
    const bool valid = decode_utf8(text.substr(at)).valid;
    while (at < text.size()) {
      const auto step = decode_utf8(text.substr(at));
      if (step.valid != valid) {
        break;
      }
      at += step.length;
    }
    const auto run = text.substr(start, at - start);
    if (valid) {
      split_valid(run, pieces);
    } else {
      pieces.push_back(run);
    }
  }
}

void pre_tokenizer::split_valid(std::string_view text,
                                std::vector<std::string_view>& pieces) const {
  std::vector<std::string_view> current{text};
  std::vector<std::string_view> next;
  for (const auto& step : chain_) {
    next.clear();
    for (const auto piece : current) {
      step->split(piece, next);
    }
    current.swap(next);
  }
  pieces.insert(pieces.end(), current.begin(), current.end());
}

}  // namespace zipcache_llama

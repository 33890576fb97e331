#include "tokenizer.hpp"

#include <algorithm>
#include <stdexcept>

#include "byte_alphabet.hpp"
#include "utf8.hpp"

namespace zipcache_llama {
namespace {

// Values of tokenizer.ggml.token_type whose spelling is meant literally and never produced by
// merges.
constexpr std::int64_t control_token = 3;
constexpr std::int64_t user_defined_token = 4;

constexpr std::uint64_t pair_of(int left, int right) {
  return static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32 |
         static_cast<std::uint32_t>(right);
}

std::string_view pre_tokenizer_name(const gguf_file& file) {
  const auto model = file.string("tokenizer.ggml.model");
  if (!model) {
    file.fail("has no tokenizer ('tokenizer.ggml.model' is missing)");
  }
  if (*model != "gpt2") {
    file.fail("tokenizer '" + std::string(*model) +
              "' is not supported (byte-level BPE, 'gpt2', is)");
  }
  const auto name = file.string("tokenizer.ggml.pre").value_or("gpt-2");
  if (!pre_tokenizer::knows(name)) {
    file.fail("pre-tokenizer '" + std::string(name) +
              "' is not supported (smollm, gpt-2, qwen2, llama-bpe are)");
  }
  return name;
}

// A code point that stands for no byte is kept as it is: decoding must not fail on a vocabulary.
std::string spelled_bytes(std::string_view spelling) {
  std::string bytes;
  while (!spelling.empty()) {
    const auto step = decode_utf8(spelling);
    const auto byte = step.valid ? byte_of(step.code_point) : std::nullopt;
    if (byte) {
      bytes.push_back(static_cast<char>(*byte));
    } else {
      bytes.append(spelling.substr(0, step.length));
    }
    spelling.remove_prefix(step.length);
  }
  return bytes;
}

}  // namespace

// Merges the tokens of one piece: always the pair of the lowest rank, of equal ones the leftmost.
// The pairs wait in a heap, so that a piece of n bytes takes O(n log n) however long it is. Kept
// for many pieces to reuse its memory.
class tokenizer::pair_merger {
 public:
  explicit pair_merger(const std::unordered_map<std::uint64_t, merge>& merges) : merges_(merges) {}

  // Appends what is left of `tokens` after all merges; negative ones are never merged.
  void run(std::span<const int> tokens, std::vector<int>& out) {
    symbols_.clear();
    heap_.clear();
    const int count = static_cast<int>(tokens.size());
    for (int i = 0; i < count; ++i) {
      symbols_.push_back({tokens[static_cast<std::size_t>(i)], i - 1, i + 1 < count ? i + 1 : -1});
    }
    for (int i = 0; i + 1 < count; ++i) {
      push(i);
    }
    while (!heap_.empty()) {
      std::pop_heap(heap_.begin(), heap_.end(), comes_later);
      const candidate best = heap_.back();
      heap_.pop_back();
      apply(best);
    }
    for (int i = count > 0 ? 0 : -1; i >= 0; i = at(i).next) {
      out.push_back(at(i).token);
    }
  }

 private:
  struct symbol {
    int token;  // absorbed if it was merged into its left neighbour
    int previous;
    int next;
  };
  struct candidate {
    int rank;
    int left;  // index of the left symbol
    int left_token;
    int right_token;
    int merged;
  };
  static constexpr int absorbed = -2;

  static bool comes_later(const candidate& a, const candidate& b) {
    return a.rank != b.rank ? a.rank > b.rank : a.left > b.left;
  }

  symbol& at(int i) { return symbols_[static_cast<std::size_t>(i)]; }

  void push(int left) {
    const int right = at(left).next;
    if (right < 0 || at(left).token < 0 || at(right).token < 0) {
      return;
    }
    const auto found = merges_.find(pair_of(at(left).token, at(right).token));
    if (found != merges_.end()) {
      heap_.push_back(
          {found->second.rank, left, at(left).token, at(right).token, found->second.token});
      std::push_heap(heap_.begin(), heap_.end(), comes_later);
    }
  }

  // A candidate is stale if one of its two symbols has since become another token.
  void apply(const candidate& best) {
    symbol& left = at(best.left);
    if (left.token != best.left_token || left.next < 0 || at(left.next).token != best.right_token) {
      return;
    }
    symbol& right = at(left.next);
    left.token = best.merged;
    left.next = right.next;
    right.token = absorbed;
    if (left.next >= 0) {
      at(left.next).previous = best.left;
      push(best.left);
    }
    if (left.previous >= 0) {
      push(left.previous);
    }
  }

  const std::unordered_map<std::uint64_t, merge>& merges_;
  std::vector<symbol> symbols_;
  std::vector<candidate> heap_;
};

tokenizer::tokenizer(const gguf_file& file) : pre_tokenizer_(pre_tokenizer_name(file)) {
  read_merges(file, read_vocabulary(file));
  unknown_ = read_special_id(file, "tokenizer.ggml.unknown_token_id");
  beginning_of_text_ = read_special_id(file, "tokenizer.ggml.bos_token_id");
  end_of_text_ = read_special_id(file, "tokenizer.ggml.eos_token_id");
}

tokenizer::spelling_index tokenizer::read_vocabulary(const gguf_file& file) {
  const auto spellings = file.strings("tokenizer.ggml.tokens");
  if (!spellings || spellings->empty()) {
    file.fail("has no vocabulary ('tokenizer.ggml.tokens' is missing or empty)");
  }
  const auto types = file.integers("tokenizer.ggml.token_type");
  if (types && types->size() != spellings->size()) {
    file.fail("has " + std::to_string(spellings->size()) + " tokens but " +
              std::to_string(types->size()) + " token types");
  }
  byte_tokens_.fill(-1);
  spelling_index index;
  index.reserve(spellings->size());
  bytes_.reserve(spellings->size());
  is_special_.reserve(spellings->size());
  for (std::size_t i = 0; i < spellings->size(); ++i) {
    const auto spelling = (*spellings)[i];
    const int id = static_cast<int>(i);
    if (const auto [other, inserted] = index.emplace(spelling, id); !inserted) {
      file.fail("tokens " + std::to_string(other->second) + " and " + std::to_string(id) +
                " are both '" + std::string(spelling) + "'");
    }
    const bool special =
        types && ((*types)[i] == control_token || (*types)[i] == user_defined_token);
    is_special_.push_back(special);
    if (special) {
      bytes_.emplace_back(spelling);
      if (!spelling.empty()) {
        specials_.push_back(id);
        starts_special_[static_cast<unsigned char>(spelling.front())] = true;
      }
      continue;
    }
    bytes_.push_back(spelled_bytes(spelling));
    if (const auto step = spelling.empty() ? utf8_step{} : decode_utf8(spelling);
        step.valid && step.length == spelling.size()) {
      if (const auto byte = byte_of(step.code_point)) {
        byte_tokens_[*byte] = id;
      }
    }
  }
  std::stable_sort(specials_.begin(), specials_.end(),
                   [this](int a, int b) { return bytes(a).size() > bytes(b).size(); });
  return index;
}

void tokenizer::read_merges(const gguf_file& file, const spelling_index& index) {
  const auto lines = file.strings("tokenizer.ggml.merges");
  if (!lines) {
    file.fail("has no merges ('tokenizer.ggml.merges' is missing)");
  }
  merges_.reserve(lines->size());
  std::string joined;
  for (std::size_t i = 0; i < lines->size(); ++i) {
    const auto line = (*lines)[i];
    // The alphabet has no space, so the first one is the separator.
    const auto space = line.find(' ');
    const auto left = index.find(line.substr(0, space));
    const auto right =
        space == std::string_view::npos ? index.end() : index.find(line.substr(space + 1));
    if (left == index.end() || right == index.end()) {
      file.fail("merge " + std::to_string(i) + " ('" + std::string(line) +
                "') is not a pair of tokens");
    }
    joined.assign(left->first).append(right->first);
    const auto merged = index.find(joined);
    if (merged == index.end()) {
      file.fail("merge " + std::to_string(i) + " ('" + std::string(line) +
                "') makes no token of the vocabulary");
    }
    merges_.emplace(pair_of(left->second, right->second),
                    merge{static_cast<int>(i), merged->second});
  }
}

std::optional<int> tokenizer::read_special_id(const gguf_file& file, const char* key) const {
  const auto id = file.unsigned_integer(key);
  if (!id) {
    return std::nullopt;
  }
  if (*id >= bytes_.size()) {
    file.fail("metadata '" + std::string(key) + "' is " + std::to_string(*id) +
              ", outside the vocabulary of " + std::to_string(bytes_.size()));
  }
  return static_cast<int>(*id);
}

std::vector<int> tokenizer::encode(std::string_view text, special_tokens special) const {
  std::vector<int> tokens;
  pair_merger merger(merges_);
  if (special == special_tokens::as_text) {
    encode_text(text, merger, tokens);
    return tokens;
  }
  std::size_t start = 0;
  std::size_t at = 0;
  while (at < text.size()) {
    const auto rest = text.substr(at);
    const auto found = starts_special_[static_cast<unsigned char>(rest.front())]
                           ? std::find_if(specials_.begin(), specials_.end(),
                                          [&](int token) { return rest.starts_with(bytes(token)); })
                           : specials_.end();
    if (found == specials_.end()) {
      ++at;
      continue;
    }
    encode_text(text.substr(start, at - start), merger, tokens);
    tokens.push_back(*found);
    at += bytes(*found).size();
    start = at;
  }
  encode_text(text.substr(start), merger, tokens);
  return tokens;
}

void tokenizer::encode_text(std::string_view text, pair_merger& merger,
                            std::vector<int>& tokens) const {
  std::vector<std::string_view> pieces;
  pre_tokenizer_.split(text, pieces);
  std::vector<int> symbols;
  for (const auto piece : pieces) {
    symbols.clear();
    for (const char c : piece) {
      symbols.push_back(byte_tokens_[static_cast<unsigned char>(c)]);
    }
    const std::size_t first = tokens.size();
    merger.run(symbols, tokens);
    for (std::size_t i = first; i < tokens.size(); ++i) {
      if (tokens[i] < 0) {
        if (!unknown_) {
          throw std::runtime_error("the text has a byte that is not in the model's vocabulary");
        }
        tokens[i] = *unknown_;
      }
    }
  }
}

std::string tokenizer::decode(std::span<const int> tokens) const {
  std::string text;
  for (const int token : tokens) {
    if (token < 0 || token >= size()) {
      throw std::invalid_argument("token " + std::to_string(token) + " is outside the vocabulary");
    }
    text += bytes(token);
  }
  return text;
}

std::optional<int> tokenizer::special(std::string_view text) const {
  for (const int token : specials_) {
    if (bytes(token) == text) {
      return token;
    }
  }
  return std::nullopt;
}

std::vector<unsigned char> tokenizer::missing_bytes() const {
  std::vector<unsigned char> missing;
  for (int byte = 0; byte < 256; ++byte) {
    if (byte_tokens_[static_cast<std::size_t>(byte)] < 0) {
      missing.push_back(static_cast<unsigned char>(byte));
    }
  }
  return missing;
}

}  // namespace zipcache_llama

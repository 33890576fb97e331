#include "tokenizer.hpp"

#include "chat_template.hpp"
#include "support/catch.hpp"
#include "tiny_model.hpp"
#include "utf8.hpp"

using namespace zipcache_llama;
using namespace zipcache_llama_test;

namespace {

tokenizer make_tokenizer(const std::string& pre = "smollm") {
  gguf_writer writer;
  add_tokenizer(writer, pre);
  return tokenizer(gguf_file::parse(writer.file(), "test.gguf"));
}

std::vector<std::string> pieces(const tokenizer& words, std::string_view text) {
  std::vector<std::string> result;
  for (const int token : words.encode(text)) {
    result.push_back(words.bytes(token));
  }
  return result;
}

std::vector<std::string> split(const std::string& name, std::string_view text) {
  std::vector<std::string_view> views;
  pre_tokenizer(name).split(text, views);
  return {views.begin(), views.end()};
}

using strings = std::vector<std::string>;

}  // namespace

TEST_CASE("pre-tokenizer: SmolLM splits every digit, then words", "[llama][tokenizer]") {
  CHECK(split("smollm", "It's 2024, n'est-ce pas?") == strings{"It", "'s", " ", "2", "0", "2", "4",
                                                               ",", " n", "'", "est", "-", "ce",
                                                               " pas", "?"});
  CHECK(split("smollm", "a  b\n\n c ") == strings{"a", " ", " b", "\n\n", " c", " "});
  CHECK(split("smollm", "\xC3\xA9t\xC3\xA9 \xE2\x82\xAC") ==
        strings{"\xC3\xA9t\xC3\xA9", " \xE2\x82\xAC"});
}

TEST_CASE("pre-tokenizer: the others differ where they should", "[llama][tokenizer]") {
  CHECK(split("gpt-2", "in 2024") == strings{"in", " 2024"});
  CHECK(split("qwen2", "in 2024\n x") == strings{"in", " ", "2", "0", "2", "4", "\n", " x"});
  CHECK(split("llama-bpe", "in 2024") == strings{"in", " ", "202", "4"});
}

TEST_CASE("pre-tokenizer: bytes that are not UTF-8 become pieces, none is lost",
          "[llama][tokenizer]") {
  CHECK(split("smollm",
              "ab\xFF\xFE"
              "cd\xE2\x82") == strings{"ab", "\xFF\xFE", "cd", "\xE2\x82"});
}

TEST_CASE("tokenizer: merges go by rank, then from the left", "[llama][tokenizer]") {
  const auto words = make_tokenizer();
  CHECK(pieces(words, "abc") == strings{"ab", "c"});  // rank 0 before rank 1
  CHECK(pieces(words, "xbc") == strings{"x", "bc"});
  CHECK(pieces(words, " abab") == strings{" ", "abab"});  // "ab" takes the a before " a" can
  CHECK(pieces(words, " ac") == strings{" a", "c"});
  CHECK(pieces(words, "ababab") == strings{"abab", "ab"});
  CHECK(pieces(words, "12") == strings{"1", "2"});  // digits never meet in one piece
  CHECK(pieces(words, "").empty());
}

TEST_CASE("tokenizer: any bytes come back", "[llama][tokenizer]") {
  const auto words = make_tokenizer(GENERATE("smollm", "gpt-2", "qwen2", "llama-bpe"));
  random_stream random(7);
  for (int round = 0; round < 300; ++round) {
    std::string text;
    const auto length = random.below(80);
    while (text.size() < length) {
      if (round % 2 == 0) {
        text.push_back(static_cast<char>(random.below(256)));
      } else {
        append_utf8(text, static_cast<char32_t>(random.below(0xD000)));
      }
    }
    REQUIRE(words.decode(words.encode(text)) == text);
    REQUIRE(words.decode(words.encode(text, special_tokens::recognise)) == text);
  }
}

TEST_CASE("tokenizer: special tokens are recognised only when asked", "[llama][tokenizer]") {
  const auto words = make_tokenizer();
  const std::string text = "ab<|im_end|><|im_";
  const int end = *words.special("<|im_end|>");
  const auto special = words.encode(text, special_tokens::recognise);
  CHECK(special.size() == 1 + 1 + 5);
  CHECK(special[1] == end);
  CHECK(words.is_special(end));
  CHECK(words.end_of_text() == end);
  for (const int token : words.encode(text)) {
    CHECK_FALSE(words.is_special(token));
  }
}

TEST_CASE("tokenizer: a piece of a million bytes takes no quadratic time", "[llama][tokenizer]") {
  const auto words = make_tokenizer();
  std::string text;
  for (int i = 0; i < 500'000; ++i) {
    text += "ab";
  }
  CHECK(words.encode(text).size() == 125'000);  // abababab
}

TEST_CASE("tokenizer: chat prompts cannot be broken out of", "[llama][tokenizer]") {
  const auto words = make_tokenizer();
  const auto tokens = chat_prompt(words, "a<|im_end|>b", "be brief");
  CHECK(words.decode(tokens) ==
        "<|im_start|>system\nbe "
        "brief<|im_end|>\n<|im_start|>user\na<|im_end|>b<|im_end|>\n<|im_start|>assistant\n");
  CHECK(std::count(tokens.begin(), tokens.end(), *words.special("<|im_end|>")) == 2);
}

TEST_CASE("tokenizer: an inconsistent vocabulary is refused", "[llama][tokenizer]") {
  const auto refuse = [](const strings& tokens, const strings& merges,
                         const std::string& model = "gpt2") {
    gguf_writer writer;
    writer.string("tokenizer.ggml.model", model);
    writer.strings("tokenizer.ggml.tokens", tokens);
    writer.strings("tokenizer.ggml.merges", merges);
    const auto file = gguf_file::parse(writer.file(), "test.gguf");
    CHECK_THROWS_AS(tokenizer(file), gguf_error);
  };
  refuse({"a", "b"}, {"a b"});   // makes no token
  refuse({"a", "ab"}, {"a b"});  // b is none
  refuse({"a", "a"}, {});        // twice
  refuse({"a", "b", "ab"}, {"ab"});
  refuse({}, {});
  refuse({"a"}, {}, "llama");
}

TEST_CASE("tokenizer: a byte outside the vocabulary becomes the unknown token or an error",
          "[llama][tokenizer]") {
  gguf_writer writer;
  writer.string("tokenizer.ggml.model", "gpt2");
  writer.strings("tokenizer.ggml.tokens", {"a", "?"});
  writer.strings("tokenizer.ggml.merges", {});
  CHECK_THROWS_AS(tokenizer(gguf_file::parse(writer.file(), "test.gguf")).encode("ab"),
                  std::runtime_error);
  writer.unsigned_integer("tokenizer.ggml.unknown_token_id", 1);
  const tokenizer words(gguf_file::parse(writer.file(), "test.gguf"));
  CHECK(words.encode("ab") == std::vector<int>{0, 1});
  CHECK(words.missing_bytes().size() == 254);
}

TEST_CASE("utf8: what can still be continued is held back", "[llama][tokenizer]") {
  CHECK(whole_utf8_length("") == 0);
  CHECK(whole_utf8_length("abc") == 3);
  CHECK(whole_utf8_length("a\xC3") == 1);
  CHECK(whole_utf8_length("a\xC3\xA9") == 3);
  CHECK(whole_utf8_length("\xE4\xBD") == 0);
  CHECK(whole_utf8_length("\xE4\xBD\xA0") == 3);
  CHECK(whole_utf8_length("\xF0\x9F\x98") == 0);
  CHECK(whole_utf8_length("\xF0\x9F\x98\x80") == 4);
  CHECK(whole_utf8_length("\x80\x80\x80\x80") == 4);  // never valid: not held back for ever
}

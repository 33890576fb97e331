// check MODEL --text FILE: the model against itself, with exact attention. The tokenizer's round
// trip, the perplexity of the text, a greedy continuation, and where the time went.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "commands.hpp"
#include "exact_attention.hpp"
#include "gguf.hpp"
#include "model.hpp"
#include "progress.hpp"
#include "statistics.hpp"
#include "text_file.hpp"
#include "tokenizer.hpp"

namespace zipcache_llama {
namespace {

struct check_options {
  std::string model;
  std::string text;
  std::string prompt = "The capital of France is";
  int tokens = 2048;
  int window = 1024;
  int threads = 0;
};

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void check_tokenizer(const tokenizer& tokenizer, const std::string& text,
                     const std::vector<int>& tokens, double seconds) {
  const bool exact = tokenizer.decode(tokens) == text;
  std::printf(
      "tokenizer     %zu bytes = %zu tokens in %.2f s, round trip %s, %zu bytes not in the "
      "vocabulary\n",
      text.size(), tokens.size(), seconds, exact ? "exact" : "FAILED",
      tokenizer.missing_bytes().size());
  if (!exact && tokenizer.missing_bytes().empty()) {
    throw std::runtime_error("the tokenizer does not round-trip");
  }
}

// Every window starts afresh; its first token is only context.
void check_perplexity(model& model, thread_pool& pool, std::span<const int> tokens,
                      std::size_t window) {
  std::vector<double> log_probabilities;
  const auto vocabulary = static_cast<std::size_t>(model.vocab_size());
  std::vector<float> logits;
  exact_attention attention(model.shape(), pool);
  progress_bar progress("perplexity", tokens.size());
  for (std::size_t first = 0; first + 1 < tokens.size(); first += window) {
    const auto part = tokens.subspan(first, std::min(window, tokens.size() - first));
    logits.resize(part.size() * vocabulary);
    model.forward(part, 0, attention, logits);
    for (std::size_t i = 0; i + 1 < part.size(); ++i) {
      log_probabilities.push_back(
          log_probability(std::span(logits).subspan(i * vocabulary, vocabulary), part[i + 1]));
    }
    progress.advance(part.size());
  }
  std::printf("perplexity    %.3f over %zu tokens in windows of %zu\n",
              perplexity(log_probabilities), log_probabilities.size(), window);
}

void check_continuation(model& model, thread_pool& pool, const tokenizer& tokenizer,
                        const std::string& prompt) {
  constexpr int generated_tokens = 32;
  const auto tokens = tokenizer.encode(prompt);
  exact_attention attention(model.shape(), pool);
  std::vector<float> logits(static_cast<std::size_t>(model.vocab_size()));
  model.forward(tokens, 0, attention, logits);
  std::string text;
  const auto start = std::chrono::steady_clock::now();
  int position = static_cast<int>(tokens.size());
  for (int i = 0; i < generated_tokens; ++i) {
    const int token = most_likely(logits);
    if (token == tokenizer.end_of_text()) {
      break;
    }
    text += tokenizer.bytes(token);
    model.forward(std::span(&token, 1), position++, attention, logits);
  }
  std::printf("continuation  %s|%s\n", prompt.c_str(), text.c_str());
  std::printf("decode        %.1f tokens/s\n", generated_tokens / seconds_since(start));
}

void check_prefill(model& model, thread_pool& pool, std::span<const int> tokens) {
  exact_attention attention(model.shape(), pool);
  std::vector<float> logits(static_cast<std::size_t>(model.vocab_size()));
  model.reset_times();
  const auto start = std::chrono::steady_clock::now();
  model.forward(tokens, 0, attention, logits);
  const double seconds = seconds_since(start);
  const auto& times = model.times();
  std::printf(
      "prefill       %zu tokens, %.1f tokens/s on %zu threads; projections %.0f %%, attention %.0f "
      "%%, "
      "feed-forward %.0f %%, logits %.0f %%\n",
      tokens.size(), static_cast<double>(tokens.size()) / seconds, pool.size(),
      100 * times.projections / seconds, 100 * times.attention / seconds,
      100 * times.feed_forward / seconds, 100 * times.logits / seconds);
}

void check(const check_options& options) {
  const auto text = read_text_file(options.text);
  thread_pool pool(options.threads);
  auto start = std::chrono::steady_clock::now();
  const auto file = gguf_file::open(options.model);
  const tokenizer tokenizer(file);
  model model(file, pool);
  std::printf("model         loaded in %.2f s\n", seconds_since(start));

  start = std::chrono::steady_clock::now();
  const auto tokens = tokenizer.encode(text);
  check_tokenizer(tokenizer, text, tokens, seconds_since(start));
  if (tokens.size() < 2) {
    throw std::runtime_error(options.text + ": too short for a perplexity");
  }
  const auto window = static_cast<std::size_t>(std::min(options.window, model.context_length()));
  const auto used =
      std::span(tokens).first(std::min(tokens.size(), static_cast<std::size_t>(options.tokens)));
  check_perplexity(model, pool, used, window);
  check_continuation(model, pool, tokenizer, options.prompt);
  check_prefill(model, pool, used.first(std::min(used.size(), window)));
}

}  // namespace

void add_check_command(CLI::App& program) {
  auto* command =
      program.add_subcommand("check", "check a model against itself, with an uncompressed cache");
  const auto options = std::make_shared<check_options>();
  command->add_option("model", options->model, "GGUF file")->required();
  command->add_option("--text", options->text, "English text for the perplexity")->required();
  command->add_option("--tokens", options->tokens, "how many tokens of the text")
      ->check(CLI::Range(2, 1 << 26))
      ->capture_default_str();
  command->add_option("--window", options->window, "tokens that see each other")
      ->check(CLI::Range(2, 1 << 26))
      ->capture_default_str();
  command->add_option("--prompt", options->prompt, "what to continue")->capture_default_str();
  command->add_option("--threads", options->threads, "0: one for each core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  command->callback([options] { check(*options); });
}

}  // namespace zipcache_llama

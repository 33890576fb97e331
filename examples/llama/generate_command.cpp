// generate MODEL --prompt TEXT: continues a text, or answers in a chat, with any cache policy.
#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "chat_template.hpp"
#ifdef ZIPCACHE_LLAMA_CUDA
#include "cuda_attention.hpp"
#endif
#include "commands.hpp"
#include "exact_attention.hpp"
#include "gguf.hpp"
#include "model.hpp"
#include "policy_options.hpp"
#include "policy_registry.hpp"
#include "sampler.hpp"
#include "tokenizer.hpp"
#include "utf8.hpp"

namespace zipcache_llama {
namespace {

struct generate_options {
  std::string model;
  std::string prompt;
  std::string policy = "paper";
  bool chat = false;
  int max_tokens = 256;
  sampling settings;
  policy_numbers numbers;
  int threads = 0;
  std::string backend = "cpu";
};

// @param max_tokens  what a cache on a GPU is sized for
std::unique_ptr<policy_cache> make_cache(const generate_options& options,
                                         const attention_shape& shape, int threads,
                                         [[maybe_unused]] int max_tokens) {
  const auto& policy = find_policy(options.policy);
  if (options.backend == "cpu") {
    return policy.make(shape, options.numbers, threads);
  }
#ifdef ZIPCACHE_LLAMA_CUDA
  return make_cuda_cache(policy.name, shape, options.numbers, max_tokens);
#else
  throw std::invalid_argument("this program was built without CUDA, so --backend must be cpu");
#endif
}

volatile std::sig_atomic_t interrupted = 0;

// Ctrl-C ends the text after the token at hand; a second one ends the program.
class interrupt_guard {
 public:
  interrupt_guard() {
    interrupted = 0;
    struct sigaction action {};
    action.sa_handler = [](int) { interrupted = 1; };
    action.sa_flags = static_cast<int>(SA_RESETHAND);
    sigaction(SIGINT, &action, &previous_);
  }
  ~interrupt_guard() { sigaction(SIGINT, &previous_, nullptr); }
  interrupt_guard(const interrupt_guard&) = delete;
  interrupt_guard& operator=(const interrupt_guard&) = delete;

 private:
  struct sigaction previous_ {};
};

// Writes tokens as they come, a code point only when it is whole.
class utf8_printer {
 public:
  void print(const std::string& bytes) {
    pending_ += bytes;
    const std::size_t whole = whole_utf8_length(pending_);
    std::fwrite(pending_.data(), 1, whole, stdout);
    std::fflush(stdout);
    pending_.erase(0, whole);
  }

 private:
  std::string pending_;
};

bool ends_text(const tokenizer& tokenizer, int token) {
  return token == tokenizer.end_of_text() || token == tokenizer.special("<|im_end|>") ||
         token == tokenizer.special("<|endoftext|>");
}

void generate(const generate_options& options) {
  const auto& policy = find_policy(options.policy);
  const auto file = gguf_file::open(options.model);
  const auto parameters = read_hyper_parameters(file);
  const tokenizer tokenizer(file);
  const auto prompt =
      options.chat ? chat_prompt(tokenizer, options.prompt) : tokenizer.encode(options.prompt);
  if (prompt.empty()) {
    throw std::invalid_argument("--prompt has no tokens to continue");
  }
  if (prompt.size() >= static_cast<std::size_t>(parameters.context_length)) {
    throw std::invalid_argument("the prompt's " + std::to_string(prompt.size()) +
                                " tokens leave no room in the model's context of " +
                                std::to_string(parameters.context_length));
  }
  thread_pool pool(options.threads);
  const attention_shape shape{parameters.num_layers, parameters.num_qo_heads,
                              parameters.num_kv_heads, parameters.head_dim};
  const int max_tokens =
      std::min(parameters.context_length, static_cast<int>(prompt.size()) + options.max_tokens);
  const auto cache = make_cache(options, shape, static_cast<int>(pool.size()), max_tokens);
  model model(file, pool);

  const interrupt_guard guard;
  std::vector<float> logits(static_cast<std::size_t>(model.vocab_size()));
  {
    exact_attention exact(shape, pool);
    exact.observe([&cache](const attended_layer& layer) { cache->prefill(layer); });
    model.forward(prompt, 0, exact, logits);
  }
  const int room = parameters.context_length - static_cast<int>(prompt.size());
  sampler sampler(options.settings);
  utf8_printer printer;
  int generated = 0;
  const auto start = std::chrono::steady_clock::now();
  while (generated < std::min(options.max_tokens, room) && interrupted == 0) {
    const int token = sampler.pick(logits);
    if (ends_text(tokenizer, token)) {
      break;
    }
    printer.print(tokenizer.bytes(token));
    model.forward(std::span(&token, 1), cache->length(), *cache, logits);
    ++generated;
  }
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const auto bytes = cache->footprint();
  std::printf("\n[%s: %d tokens, %.1f tokens/s; cache of %d tokens in %lld bytes, ratio %.2f]\n",
              policy.name.c_str(), generated, generated / std::max(seconds, 1e-9), cache->length(),
              static_cast<long long>(bytes.total_bytes()), bytes.ratio());
}

}  // namespace

void add_generate_command(CLI::App& program) {
  auto* command = program.add_subcommand(
      "generate", "continue a text, or answer in a chat, with any cache policy");
  const auto options = std::make_shared<generate_options>();
  command->add_option("model", options->model, "GGUF file")->required();
  command->add_option("--prompt", options->prompt, "what to continue, or to answer")->required();
  command->add_option("--policy", options->policy, "see `policies`")->capture_default_str();
  command->add_flag("--chat", options->chat, "as the user's message in a conversation");
  command->add_option("--max-tokens", options->max_tokens, "at most so many")
      ->check(CLI::Range(1, 1 << 24))
      ->capture_default_str();
  command
      ->add_option("--temperature", options->settings.temperature,
                   "0: always the most likely token")
      ->check(CLI::Range(0.0F, 100.0F))
      ->capture_default_str();
  command
      ->add_option("--top-p", options->settings.top_p,
                   "sample from the most likely tokens with this probability")
      ->check(CLI::Range(0.0F, 1.0F))
      ->capture_default_str();
  add_policy_numbers(*command, options->numbers);
  command->add_option("--seed", options->settings.seed, "of sampling and of random probes")
      ->capture_default_str();
  command->add_option("--threads", options->threads, "0: one for each core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  command->add_option("--backend", options->backend, "where cache and attention are")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str();
  command->callback([options] {
    options->numbers.seed = options->settings.seed;
    generate(*options);
  });
}

}  // namespace zipcache_llama

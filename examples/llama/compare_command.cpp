// compare: cache policies side by side on a text and on line retrieval. Everything that can be
// wrong about the input is looked at before the first forward pass.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "commands.hpp"
#include "comparison.hpp"
#include "comparison_material.hpp"
#include "comparison_report.hpp"
#include "gguf.hpp"
#include "output_file.hpp"
#include "policy_options.hpp"
#include "progress.hpp"
#include "saliency_trace.hpp"
#include "text_file.hpp"

namespace zipcache_llama {
namespace {

struct compare_options {
  std::string model;
  std::string text;
  std::string policies = "presets,claims";
  int context = 1024;
  int generated = 400;
  int contexts = 10;
  int lines = 12;
  int line_prompts = 40;
  int timed_tokens = 24;
  bool quick = false;
  int plot_layer = -1;
  int plot_head = -1;
  std::string json;
  std::string plot;
  policy_numbers numbers;
  int threads = 0;
};

void check_plot(const compare_options& options, const hyper_parameters& parameters) {
  if (options.plot_layer >= parameters.num_layers || options.plot_head >= parameters.num_kv_heads) {
    throw std::invalid_argument("--plot-layer and --plot-head have to be below the model's " +
                                std::to_string(parameters.num_layers) + " layers and " +
                                std::to_string(parameters.num_kv_heads) + " KV heads");
  }
}

void compare(compare_options options) {
  if (options.quick) {
    options.context = std::min(options.context, 256);
    options.generated = std::min(options.generated, 160);
    options.contexts = std::min(options.contexts, 2);
    options.line_prompts = std::min(options.line_prompts, 4);
  }
  comparison_input input;
  input.policies = select_policies(options.policies);
  input.numbers = options.numbers;
  input.context = options.context;
  input.generated = options.generated;
  input.timed_tokens = options.timed_tokens;

  const auto text = read_text_file(options.text);
  const auto file = gguf_file::open(options.model);
  const auto parameters = read_hyper_parameters(file);
  check_context(options.context, options.generated, parameters.context_length);
  check_plot(options, parameters);
  const tokenizer tokenizer(file);
  const auto tokens = tokenizer.encode(text);
  input.windows = comparison_windows(options.text, tokens, options.context, options.generated,
                                     options.contexts, options.numbers.seed);
  input.prompts = comparison_prompts(options.lines, options.line_prompts, options.numbers.seed,
                                     tokenizer, parameters.context_length);
  thread_pool pool(options.threads);
  const attention_shape shape{parameters.num_layers, parameters.num_qo_heads,
                              parameters.num_kv_heads, parameters.head_dim};
  for (const auto* policy : input.policies) {
    policy->make(shape, input.numbers, 1);  // refuses what it cannot take
  }
  output_file json(options.json);
  output_file plot(options.plot);

  model model(file, pool);
  std::printf(
      "%s, %s, seed %llu, %zu threads\nwindows of %d + %d tokens: %d; prompts of %d lines: %d\n\n",
      std::filesystem::path(options.model).filename().c_str(),
      std::filesystem::path(options.text).filename().c_str(),
      static_cast<unsigned long long>(options.numbers.seed), pool.size(), options.context,
      options.generated, options.contexts, options.lines, options.line_prompts);
  std::fflush(stdout);
  const int layer = options.plot_layer >= 0 ? options.plot_layer : parameters.num_layers / 2;
  saliency_trace trace(shape, layer, options.plot_head,
                       options.numbers.salient_ratio.value_or(0.6));
  exact_attention::observer observe;
  if (!options.plot.empty()) {
    observe = [&trace](const attended_layer& attended) { trace.observe(attended); };
  }
  std::vector<policy_result> results;
  {
    progress_bar progress("comparing", comparison_steps(input));
    results = compare_policies(input, model, tokenizer, pool, observe,
                               [&progress](std::size_t steps) { progress.advance(steps); });
  }

  const report_settings settings{shape, options.numbers, options.context, options.generated,
                                 options.numbers.seed};
  std::printf(
      "%s\nratio: 16-bit bytes over bytes really allocated, after the prefill and now; paper: by "
      "the paper's formula.\n"
      "Brackets: 95 %% intervals.\n",
      comparison_table(results, settings).c_str());
  const auto claims = comparison_claims(results, settings);
  if (!claims.empty()) {
    std::printf("\n%s", claims.c_str());
  }
  if (!options.json.empty()) {
    json.write(comparison_json(results, settings));
  }
  if (!options.plot.empty()) {
    plot.write(
        trace.plot("Saliency of " + std::to_string(options.context) + " tokens, layer " +
                   std::to_string(layer) +
                   (options.plot_head < 0 ? ", mean over heads"
                                          : ", KV head " + std::to_string(options.plot_head))));
  }
}

}  // namespace

void add_compare_command(CLI::App& program) {
  auto* command =
      program.add_subcommand("compare", "compare cache policies on a text and on line retrieval");
  const auto options = std::make_shared<compare_options>();
  const auto count = [&](const char* name, int& value, const char* help, int least, int most) {
    command->add_option(name, value, help)->check(CLI::Range(least, most))->capture_default_str();
  };
  command->add_option("--model", options->model, "GGUF file")->required();
  command->add_option("--text", options->text, "English text")->required();
  command
      ->add_option("--policies", options->policies,
                   "names, or presets, ablations, claims, all; see `policies`")
      ->capture_default_str();
  count("--context", options->context, "tokens of a window that are prefilled", 1, 1 << 24);
  count("--generated", options->generated, "tokens that are decoded after them", 1, 1 << 24);
  count("--contexts", options->contexts, "windows of the text", 1, 1 << 20);
  count("--lines", options->lines, "lines of a retrieval prompt", 1, 1 << 20);
  count("--line-prompts", options->line_prompts, "retrieval prompts; 0: none", 0, 1 << 20);
  count("--timed-tokens", options->timed_tokens, "tokens that are timed one by one; 0: none", 0,
        1 << 20);
  add_policy_numbers(*command, options->numbers);
  command->add_option("--seed", options->numbers.seed, "of windows, prompts, probes and intervals")
      ->capture_default_str();
  count("--threads", options->threads, "0: one for each core", 0, 1024);
  command->add_option("--json", options->json, "one JSON object a line, for each policy");
  command->add_option("--plot", options->plot, "saliency of the first window's tokens, as SVG");
  count("--plot-layer", options->plot_layer, "of the plot; -1: the middle one", -1, 1 << 16);
  count("--plot-head", options->plot_head, "of the plot; -1: mean over KV heads", -1, 1 << 16);
  command->add_flag("--quick", options->quick, "a small comparison, to see that everything works");
  command->callback([options] { compare(*options); });
}

}  // namespace zipcache_llama

// ablate: the paper's experiments and ours. Every cell is measured once and kept in a file, so that
// an interrupted run goes on where it was; then tables and charts of all that is there. Everything
// that can be wrong about the input is looked at before the first forward pass.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include "ablation_experiments.hpp"
#include "ablation_plan.hpp"
#include "ablation_record.hpp"
#include "ablation_report.hpp"
#include "commands.hpp"
#include "comparison.hpp"
#include "comparison_material.hpp"
#include "gguf.hpp"
#include "output_file.hpp"
#include "progress.hpp"
#include "text_file.hpp"

namespace zipcache_llama {
namespace {

namespace fs = std::filesystem;

struct ablate_options {
  std::string model;
  std::string text;
  std::string experiments = "all";
  std::string out;
  ablation_settings settings;
  int timed_tokens = 0;
  int threads = 0;
  bool force = false;
  bool report_only = false;
  bool list = false;
};

void list_experiments(const std::vector<const experiment*>& experiments) {
  for (const auto* experiment : experiments) {
    std::printf("%s: %s", experiment->name.c_str(), experiment->title.c_str());
    if (experiment->generated > 0) {
      std::printf(" (%d tokens)", experiment->generated);
    }
    std::printf("\n");
    for (const auto& variant : experiment->variants) {
      std::printf("  %-42s%s\n", variant.label.c_str(),
                  spelled_policy(variant.policy, variant.numbers).c_str());
    }
  }
}

void require(const std::string& value, const char* option) {
  if (value.empty()) {
    throw std::invalid_argument(std::string(option) + " is required");
  }
}

fs::path records_in(const ablate_options& options) {
  return fs::path(options.out) / "ablations.jsonl";
}

ablation_records read_noted_records(const fs::path& path) {
  auto records = read_records(path);
  if (records.is_torn) {
    std::fprintf(stderr, "%s: its last line was cut off by an interruption and is ignored\n",
                 path.c_str());
  }
  return records;
}

std::uint64_t size_of(const std::string& file) {
  std::error_code error;
  const auto size = fs::file_size(file, error);
  if (error) {
    throw std::runtime_error(file + ": no such file");
  }
  return size;
}

void name_inputs(const ablate_options& options, ablation_settings& settings) {
  settings.model = fs::path(options.model).filename().string();
  settings.model_bytes = size_of(options.model);
  settings.text_bytes = size_of(options.text);
}

// The model and text of the records, where the command line names none.
void take_inputs(const cell_map& cells, const fs::path& path, ablation_settings& settings) {
  const auto& first = cells.begin()->first;
  settings.model = first.model;
  settings.model_bytes = first.model_bytes;
  settings.text_bytes = first.text_bytes;
  for (const auto& [key, cell] : cells) {
    if (key.model != first.model || key.model_bytes != first.model_bytes ||
        key.text_bytes != first.text_bytes) {
      throw std::invalid_argument(
          path.string() + " is about several models or texts: --model and --text say which");
    }
  }
}

void report(const ablate_options& options, const std::vector<const experiment*>& experiments) {
  const auto path = records_in(options);
  const auto records = read_noted_records(path);
  if (records.cells.empty()) {
    throw std::invalid_argument(path.string() + ": nothing has been measured");
  }
  auto settings = options.settings;
  if (options.model.empty() && options.text.empty()) {
    take_inputs(records.cells, path, settings);
  } else {
    require(options.model, "--model");
    require(options.text, "--text");
    name_inputs(options, settings);
  }
  const auto planned = plan_cells(experiments, settings);
  if (std::none_of(planned.begin(), planned.end(),
                   [&](const auto& cell) { return records.cells.count(cell.key) > 0; })) {
    throw std::invalid_argument(path.string() + ": its " + std::to_string(records.cells.size()) +
                                " cells are none of these experiments and options");
  }
  std::printf("%s", write_reports(options.out, experiments, records.cells, settings).c_str());
}

// What all batches have in common.
struct ablation_material {
  std::vector<int> tokens;                                                   // of the text
  std::map<std::pair<int, int>, std::vector<std::span<const int>>> windows;  // [context, generated]
  std::map<std::pair<int, int>, std::vector<line_retrieval_prompt>> prompts;  // [lines, count]
};

void draw_all_windows(const ablate_options& options,
                      const std::vector<const experiment*>& experiments, int context_length,
                      ablation_material& material) {
  const auto& settings = options.settings;
  for (const auto* experiment : experiments) {
    const int generated = experiment->generated > 0 ? experiment->generated : settings.generated;
    if (!experiment->reads_windows) {
      continue;
    }
    for (const int context : settings.contexts) {
      try {
        check_context(context, generated, context_length);
        material.windows[{context, generated}] = comparison_windows(
            options.text, material.tokens, context, generated, settings.windows, settings.seed);
      } catch (const std::invalid_argument& error) {
        if (experiment->generated == 0) {
          throw;
        }
        throw std::invalid_argument("experiment " + experiment->name + ", which decodes " +
                                    std::to_string(generated) + " tokens: " + error.what());
      }
    }
  }
}

void make_all_prompts(const ablation_settings& settings, const std::vector<ablation_cell>& cells,
                      const tokenizer& tokenizer, int context_length, ablation_material& material) {
  for (const auto& cell : cells) {
    const int lines = cell.key.lines;
    const int count = cell.key.line_prompts;
    if (count > 0 && !material.prompts.contains({lines, count})) {
      material.prompts[{lines, count}] =
          comparison_prompts(lines, count, settings.seed, tokenizer, context_length);
    }
  }
}

void check_policies(const std::vector<ablation_cell>& cells, const attention_shape& shape,
                    const policy_numbers& numbers) {
  for (const auto& cell : cells) {
    try {
      cell.entry.make(shape, numbers, 1);
    } catch (const std::exception& error) {
      throw std::invalid_argument(cell.entry.name + ": " + error.what());
    }
  }
}

// Lines can be appended: the folder is there, and the file ends with its last whole line.
output_file open_records(const fs::path& path, const ablation_records& records) {
  if (records.is_torn) {
    std::error_code ignored;  // opening it says what is wrong
    fs::resize_file(path, records.whole_bytes, ignored);
  }
  return output_file(path.string(), std::ios::app);
}

void make_folder(const fs::path& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (!fs::is_directory(folder)) {
    throw std::runtime_error(folder.string() + ": cannot be made a folder");
  }
}

// Held by one run at a time: two would cut off each other's lines.
class folder_lock {
 public:
  explicit folder_lock(const fs::path& records)
      : file_(open(records.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666)) {
    if (file_ < 0) {
      throw std::runtime_error(records.string() + ": cannot be written");
    }
    if (flock(file_, LOCK_EX | LOCK_NB) != 0) {
      close(file_);
      throw std::runtime_error(records.string() + ": another run is writing it");
    }
  }
  ~folder_lock() { close(file_); }
  folder_lock(const folder_lock&) = delete;
  folder_lock& operator=(const folder_lock&) = delete;

 private:
  int file_;
};

comparison_input input_of(const ablation_batch& batch, const ablation_material& material,
                          const policy_numbers& numbers, int timed_tokens) {
  const auto& key = batch[0]->key;
  comparison_input input;
  input.policies = {&all_policies()[0]};
  for (const auto* cell : batch) {
    input.policies.push_back(&cell->entry);
  }
  input.numbers = numbers;
  input.context = key.context;
  input.generated = key.generated;
  if (key.windows > 0) {
    input.windows = material.windows.at({key.context, key.generated});
  }
  if (key.line_prompts > 0) {
    input.prompts = material.prompts.at({key.lines, key.line_prompts});
  }
  input.timed_tokens = timed_tokens;
  input.kl_stretch = ablation_stretch;
  return input;
}

std::string material_of(const ablation_cell& cell) {
  const auto& key = cell.key;
  return key.windows > 0
             ? std::to_string(key.context) + " + " + std::to_string(key.generated) + " tokens"
             : "prompts of " + std::to_string(key.lines) + " lines";
}

std::string names_of(const ablation_batch& batch) {
  std::string names;
  for (const auto* cell : batch) {
    names += (names.empty() ? "" : "; ") + cell->entry.name;
  }
  return names;
}

void measure(ablate_options options, const std::vector<const experiment*>& experiments) {
  require(options.model, "--model");
  require(options.text, "--text");
  auto& settings = options.settings;
  ablation_material material;
  const auto text = read_text_file(options.text);
  const auto file = gguf_file::open(options.model);
  const auto parameters = read_hyper_parameters(file);
  const tokenizer tokenizer(file);
  material.tokens = tokenizer.encode(text);
  draw_all_windows(options, experiments, parameters.context_length, material);
  name_inputs(options, settings);
  const auto cells = plan_cells(experiments, settings);
  make_all_prompts(settings, cells, tokenizer, parameters.context_length, material);
  thread_pool pool(options.threads);
  const attention_shape shape{parameters.num_layers, parameters.num_qo_heads,
                              parameters.num_kv_heads, parameters.head_dim};
  policy_numbers numbers;
  numbers.seed = settings.seed;
  check_policies(cells, shape, numbers);
  make_folder(options.out);
  const auto path = records_in(options);
  const folder_lock lock(path);
  auto records = read_noted_records(path);
  auto output = open_records(path, records);

  const auto batches = plan_batches(cells, [&](const ablation_cell& cell) {
    return !options.force && records.cells.count(cell.key) > 0;
  });
  std::vector<comparison_input> inputs;
  std::size_t total = 0;
  std::size_t to_measure = 0;
  for (const auto& batch : batches) {
    inputs.push_back(input_of(batch, material, numbers, options.timed_tokens));
    total += comparison_steps(inputs.back());
    to_measure += batch.size();
  }
  std::printf("%s, %s, seed %llu, %zu threads\n%zu cells, %zu of them to measure in %zu batches\n",
              settings.model.c_str(), fs::path(options.text).filename().c_str(),
              static_cast<unsigned long long>(settings.seed), pool.size(), cells.size(), to_measure,
              batches.size());
  std::fflush(stdout);
  if (!batches.empty()) {
    model model(file, pool);
    progress_bar progress("", total);
    std::size_t finished = 0;
    for (std::size_t i = 0; i < batches.size(); ++i) {
      const auto& batch = batches[i];
      const auto& input = inputs[i];
      const std::string title = "batch " + std::to_string(i + 1) + " of " +
                                std::to_string(batches.size()) + ", " + material_of(*batch[0]);
      progress.set_label(title);
      const auto start = std::chrono::steady_clock::now();
      const auto results =
          compare_policies(input, model, tokenizer, pool, {},
                           [&progress](std::size_t steps) { progress.advance(steps); });
      const report_settings reported{shape, numbers, input.context, input.generated, settings.seed};
      std::string lines;
      for (std::size_t cell = 0; cell < batch.size(); ++cell) {
        lines += record_line(*batch[cell], results[cell + 1], results[0], reported, settings);
      }
      output.write(lines);  // all of a batch at once
      finished += comparison_steps(input);
      progress.advance_to(finished);
      if (!progress.is_visible()) {
        const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
        std::printf("%s: %s; %s left: %s\n", title.c_str(), spelled_duration(took.count()).c_str(),
                    spelled_duration(progress.seconds_left()).c_str(), names_of(batch).c_str());
        std::fflush(stdout);
      }
    }
  }
  records = read_records(path);
  std::printf("%s", write_reports(options.out, experiments, records.cells, settings).c_str());
}

void ablate(ablate_options options) {
  const auto experiments = select_experiments(options.experiments);
  if (options.list) {
    list_experiments(experiments);
    return;
  }
  require(options.out, "--out");
  std::vector<int> contexts;
  for (const int context : options.settings.contexts) {
    if (std::find(contexts.begin(), contexts.end(), context) == contexts.end()) {
      contexts.push_back(context);
    }
  }
  options.settings.contexts = contexts;
  if (options.report_only) {
    report(options, experiments);
  } else {
    measure(std::move(options), experiments);
  }
}

}  // namespace

void add_ablate_command(CLI::App& program) {
  auto* command = program.add_subcommand(
      "ablate", "the paper's experiments and ours, resumable, as tables and charts");
  const auto options = std::make_shared<ablate_options>();
  auto& settings = options->settings;
  const auto count = [&](const char* name, int& value, const char* help, int least, int most) {
    command->add_option(name, value, help)->check(CLI::Range(least, most))->capture_default_str();
  };
  command->add_option("--model", options->model, "GGUF file");
  command->add_option("--text", options->text, "English text");
  command->add_option("--experiments", options->experiments, "names, or all; see --list")
      ->capture_default_str();
  command->add_option("--out", options->out,
                      "folder of ablations.jsonl, which a second run continues, tables and charts");
  command
      ->add_option("--context", settings.contexts,
                   "tokens of a window that are prefilled, one or more numbers")
      ->delimiter(',')
      ->check(CLI::Range(1, 1 << 24))
      ->capture_default_str();
  count("--generated", settings.generated,
        "tokens that are decoded after them, but in an experiment that says its own", 1, 1 << 24);
  count("--contexts", settings.windows, "windows of the text", 1, 1 << 20);
  count("--lines", settings.lines,
        "lines of a retrieval prompt, but in an experiment of their number", 1, 1 << 20);
  count("--line-prompts", settings.line_prompts,
        "retrieval prompts, but in an experiment that says its own; 0: none", 0, 1 << 20);
  count("--timed-tokens", options->timed_tokens, "tokens that are timed one by one; 0: none", 0,
        1 << 20);
  command->add_option("--seed", settings.seed, "of windows, prompts, probes and intervals")
      ->capture_default_str();
  count("--threads", options->threads, "0: one for each core", 0, 1024);
  command->add_flag("--force", options->force, "measure anew what has been measured");
  command->add_flag("--report-only", options->report_only,
                    "tables and charts of what has been measured; --model and --text may be left "
                    "out");
  command->add_flag("--list", options->list,
                    "the experiments and their variants, and nothing else");
  command->callback([options] { ablate(*options); });
}

}  // namespace zipcache_llama

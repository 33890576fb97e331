#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <string>

#include <nlohmann/json.hpp>

#include "ablation_experiments.hpp"
#include "ablation_plan.hpp"
#include "ablation_record.hpp"
#include "ablation_report.hpp"
#include "support/catch.hpp"
#include "text_file.hpp"

using namespace zipcache_llama;

namespace {

ablation_settings small_settings() {
  ablation_settings settings;
  settings.contexts = {100, 200};
  settings.generated = 250;
  settings.windows = 2;
  settings.lines = 3;
  settings.line_prompts = 4;
  settings.model = "tiny.gguf";
  settings.model_bytes = 10;
  settings.text_bytes = 20;
  return settings;
}

// The line of a cell whose KL is `kl` in the first window and three times that in the second.
std::string line_of(const ablation_cell& cell, double kl, const ablation_settings& settings) {
  policy_result result;
  result.policy = &cell.entry;
  if (cell.key.windows > 0) {
    result.surprise = {2, 2};
    result.kl = {kl, 3 * kl};
    result.kl_along = {{kl, kl, kl}, {3 * kl, 4 * kl, 5 * kl}};
    result.top1 = {0.5, 1};
  }
  if (cell.key.line_prompts > 0) {
    result.retrieved = {1, 1, 0, 1};
  }
  result.after_prefill = {.code_bytes = 100, .uncompressed_bytes = 400};
  result.after_decode = {.code_bytes = 200, .uncompressed_bytes = 800};
  policy_result reference = result;
  return record_line(cell, result, reference,
                     {{2, 4, 2, 32}, {}, cell.key.context, cell.key.generated, settings.seed},
                     settings);
}

class record_file {
 public:
  record_file() {
    std::string pattern =
        (std::filesystem::temp_directory_path() / "zipcache_ablation_XXXXXX").string();
    REQUIRE(mkdtemp(pattern.data()) != nullptr);
    folder_ = pattern;
  }
  ~record_file() {
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }
  record_file(const record_file&) = delete;
  record_file& operator=(const record_file&) = delete;

  const std::filesystem::path& folder() const { return folder_; }
  std::filesystem::path path() const { return folder_ / "ablations.jsonl"; }
  ablation_records read(const std::string& content) const {
    std::ofstream(path(), std::ios::binary) << content;
    return read_records(path());
  }

 private:
  std::filesystem::path folder_;
};

std::vector<const experiment*> chosen(std::string_view list) { return select_experiments(list); }

}  // namespace

TEST_CASE("ablation: every variant is a policy of the registry, under a label of its own",
          "[llama][ablation]") {
  std::set<std::string> names;
  const attention_shape shape{
      .num_layers = 1, .num_qo_heads = 4, .num_kv_heads = 2, .head_dim = 32};
  for (const auto& experiment : all_experiments()) {
    INFO(experiment.name);
    CHECK(names.insert(experiment.name).second);
    CHECK_FALSE(experiment.title.empty());
    CHECK_FALSE(experiment.x_title.empty());
    std::set<std::string> labels;
    for (const auto& variant : experiment.variants) {
      INFO(variant.label);
      CHECK(labels.insert(variant.label).second);
      CHECK(find_policy(variant.policy).name == variant.policy);
      CHECK(variant.category.empty() == (experiment.x != chart_x::category));
      const auto entry = entry_of(variant);
      CHECK(entry.name == variant.label);
      CHECK(entry.make(shape, {}, 1) != nullptr);
    }
    CHECK(labels.size() >= 3);
  }
  CHECK(names == std::set<std::string>{"granularities", "probes", "probe_caps", "methods",
                                       "metrics", "ratios", "bits", "layers", "intervals", "sinks",
                                       "outliers", "key_transforms", "lines", "drift"});
}

TEST_CASE("ablation: of the layers, every placement of as many raised ones has the same size",
          "[llama][ablation]") {
  const attention_shape shape{
      .num_layers = 30, .num_qo_heads = 4, .num_kv_heads = 2, .head_dim = 32};
  std::map<std::pair<std::string, int>, std::set<double>> ratios;  // [policy, raised layers]
  for (const auto& variant : chosen("layers")[0]->variants) {
    const auto raised = variant.numbers.raised.value_or(raised_layers{});
    const auto ratio = entry_of(variant).paper_ratio(shape, {}, 1024);
    REQUIRE(ratio);
    ratios[{variant.policy, raised.first + raised.middle + raised.last}].insert(*ratio);
  }
  CHECK(ratios.size() == 3 * 4);  // none, 1, 2 and 4 layers
  for (const auto& [key, distinct] : ratios) {
    INFO(key.first << ", " << key.second);
    CHECK(distinct.size() == 1);
  }
}

TEST_CASE("ablation: a variant's numbers go over those of the command line", "[llama][ablation]") {
  const attention_shape shape{
      .num_layers = 1, .num_qo_heads = 32, .num_kv_heads = 32, .head_dim = 128};
  const auto entry =
      entry_of({.label = "all", .policy = "paper", .numbers = {.salient_ratio = 1.0}});
  CHECK(entry.paper_ratio(shape, {.salient_ratio = 0.2}, 4096).value() ==
        Approx(find_policy("uniform_4bit").paper_ratio(shape, {}, 4096).value()));
  CHECK(spelled_policy("paper", {0.4, 100}) == "paper, ratio 0.4, interval 100");
  CHECK(spelled_policy("paper", {.max_probes = 8}) == "paper, at most 8 probes of each kind");
  CHECK(spelled_policy("t", {.raised = raised_layers{.first = 1, .last = 2}}) ==
        "t, raised layers: first 1, last 2");
  // More raised layers, more bytes.
  const attention_shape layered{
      .num_layers = 4, .num_qo_heads = 32, .num_kv_heads = 32, .head_dim = 128};
  const auto ratio = [&](const raised_layers& raised) {
    return entry_of({.label = "", .policy = "paper_layers", .numbers = {.raised = raised}})
        .paper_ratio(layered, {}, 4096)
        .value();
  };
  const auto paper = find_policy("paper").paper_ratio(layered, {}, 4096).value();
  const auto uniform = find_policy("uniform_4bit").paper_ratio(layered, {}, 4096).value();
  CHECK(ratio({}) == Approx(paper));
  CHECK(ratio({.last = 4}) == Approx(uniform));
  CHECK(ratio({.first = 1, .last = 1}) == Approx(2 / (1 / paper + 1 / uniform)));
}

TEST_CASE("ablation: experiments are named, each once, in their order", "[llama][ablation]") {
  const auto names = [](std::string_view list) {
    std::string text;
    for (const auto* experiment : select_experiments(list)) {
      text += experiment->name + " ";
    }
    return text;
  };
  CHECK(names("sinks,probes,sinks") == "probes sinks ");
  CHECK(select_experiments("all").size() == all_experiments().size());
  for (const char* wrong : {"sink", "", "sinks,", "sinks, probes"}) {
    CHECK_THROWS_AS(select_experiments(wrong), std::invalid_argument);
  }
}

TEST_CASE("ablation: a cell that several experiments ask for is measured once",
          "[llama][ablation]") {
  auto settings = small_settings();
  settings.contexts = {100};
  const auto count = [&](std::string_view list) {
    return plan_cells(chosen(list), settings).size();
  };
  CHECK(count("ratios") == 11);
  CHECK(count("intervals") == 5);
  CHECK(count("ratios,intervals") == 15);       // 60 % and 160 tokens are `paper`
  CHECK(count("metrics,methods,sinks") == 28);  // 4 + 17 + 10, paper three times, ours twice
  CHECK(count("drift,methods") == 20);          // of another length
  CHECK(count("probe_caps,layers,probes") == 21 + 36 + 8 - 4);  // paper three times
  CHECK(count("lines") == 30);
  settings.contexts = {100, 200};
  CHECK(count("ratios,intervals") == 30);
  CHECK(count("lines") == 30);  // has no context
  settings.line_prompts = 0;
  CHECK(count("lines") == 0);
  CHECK(count("ratios") == 22);
}

TEST_CASE("ablation: batches share context and length, and are small", "[llama][ablation]") {
  const auto settings = small_settings();
  const auto cells = plan_cells(chosen("all"), settings);
  std::set<cell_key> planned;
  const auto batches =
      plan_batches(cells, [](const ablation_cell& cell) { return cell.key.policy == "mikv"; });
  for (const auto& batch : batches) {
    CHECK((!batch.empty() && batch.size() <= max_batch));
    for (const auto* cell : batch) {
      CHECK(cell->key.policy != "mikv");
      CHECK(cell->key.context == batch[0]->key.context);
      CHECK(cell->key.generated == batch[0]->key.generated);
      CHECK(cell->key.windows == batch[0]->key.windows);
      CHECK(cell->key.lines == batch[0]->key.lines);
      CHECK(cell->key.line_prompts == batch[0]->key.line_prompts);
      CHECK(planned.insert(cell->key).second);
    }
  }
  CHECK(planned.size() == cells.size() - 2);  // mikv at two contexts
  CHECK(plan_batches(cells, [](const auto&) { return true; }).empty());
}

TEST_CASE("ablation: a line has the fields of compare, the key, intervals and its experiments",
          "[llama][ablation]") {
  const auto settings = small_settings();
  const auto cells = plan_cells(chosen("ratios"), settings);
  const auto& cell = cells[6];  // 60 %: paper itself
  const auto object = nlohmann::json::parse(line_of(cell, 0.1, settings));
  CHECK(object["policy"] == "paper");
  CHECK(object["experiments"].size() == 8);
  CHECK(object["experiments"][0]["experiment"] == "probes");
  CHECK(object["experiments"][4]["label"] == "paper, 60 % salient");
  CHECK(object["experiments"][4]["x"] == 60);
  CHECK(object["kl_mean"] == Approx(0.2));
  CHECK(object["kl_low"] == Approx(0.1));
  CHECK(object["kl_high"] == Approx(0.3));
  CHECK(object["kl_by_hundred"].size() == 3);
  CHECK(object["bits_per_value"] == Approx(4));
  CHECK(object["retrieval_accuracy"] == 0.75);
  CHECK(object["retrieval_low"] < 0.75);
  CHECK(object["salient_ratio"].is_null());
  CHECK(object["contexts"] == 2);
  for (const char* field : {"context", "generated", "ratio_allocated", "ratio_paper", "perplexity",
                            "perplexity_fp16", "top1_agreement", "cache_bytes", "top1_high",
                            "bits_per_value_prefill", "lines", "line_prompts", "seed"}) {
    INFO(field);
    CHECK(object[field].is_number());
  }
}

TEST_CASE("ablation: what is written is read again, a torn line is not there yet",
          "[llama][ablation]") {
  const record_file file;
  CHECK(read_records(file.path()).cells.empty());
  const auto settings = small_settings();
  const auto cells = plan_cells(chosen("ratios,drift"), settings);
  const std::string first = line_of(cells[0], 0.1, settings);
  const std::string second = line_of(cells[11], 0.2, settings);  // of drift
  const auto whole = file.read(first + second);
  REQUIRE(whole.cells.size() == 2);
  CHECK_FALSE(whole.is_torn);
  CHECK(whole.whole_bytes == first.size() + second.size());
  const auto& cell = whole.cells.at(cells[0].key);
  CHECK(cell.kl.mean == Approx(0.2));
  REQUIRE(cell.retrieval);
  CHECK(cell.retrieval->mean == 0.75);
  CHECK(cell.bits_per_value_prefill == Approx(4));
  CHECK_FALSE(whole.cells.at(cells[11].key).retrieval);
  CHECK(whole.cells.at(cells[11].key).kl_along.size() == 3);

  for (const std::size_t lost : {std::size_t{1}, std::size_t{50}, second.size() - 1}) {
    const auto torn = file.read(first + second.substr(0, second.size() - lost));
    CHECK(torn.cells.size() == 1);
    CHECK(torn.is_torn);
    CHECK(torn.whole_bytes == first.size());
  }
  // Measured anew: the last one counts.
  CHECK(file.read(first + line_of(cells[0], 0.3, settings)).cells.at(cells[0].key).kl.mean ==
        Approx(0.6));
}

TEST_CASE("ablation: numbers that a file of before does not have are none", "[llama][ablation]") {
  const record_file file;
  const auto settings = small_settings();
  const auto cells = plan_cells(chosen("probe_caps,layers"), settings);
  for (const std::size_t i : {std::size_t{0}, std::size_t{1}, std::size_t{22}}) {
    auto object = nlohmann::ordered_json::parse(line_of(cells[i], 0.1, settings));
    const auto key = cells[i].key;
    CHECK(file.read(object.dump() + '\n').cells.count(key) == 1);
    object.erase("max_probes");
    object.erase("raised_layers");
    const bool has_none = !key.numbers.max_probes && !key.numbers.raised;
    CHECK(has_none == (i == 0));
    CHECK(file.read(object.dump() + '\n').cells.count(key) == (has_none ? 1 : 0));
  }
}

TEST_CASE("ablation: without windows there are lines found and nothing else", "[llama][ablation]") {
  const record_file file;
  const auto settings = small_settings();
  const auto& lines = *chosen("lines")[0];
  const auto cells = plan_cells({&lines}, settings);
  const std::string line = line_of(cells[1], 0, settings);
  const auto object = nlohmann::json::parse(line);
  CHECK(object["kl_mean"].is_null());
  CHECK(object["perplexity"].is_null());
  CHECK(object["lines"] == 8);
  CHECK(object["line_prompts"] == 60);
  CHECK(object["experiments"].size() == 1);
  const auto records = file.read(line);
  const auto rows = measured_rows(lines, records.cells, settings);
  REQUIRE(rows.size() == 1);
  const auto csv = experiment_csv(lines, rows);
  // Its size and then, behind twelve fields of windows and the paper's formula, what was found.
  CHECK(csv.find("\nlines,\"uncompressed, 8\",uncompressed,8,0,0,uncompressed,,,,,4,4,4,,,,,,,,,,,,"
                 ",8,0.75,") != std::string::npos);
  const auto svg = experiment_chart(lines, rows);
  CHECK(svg.find("60 prompts") != std::string::npos);
  CHECK(svg.find("windows") == std::string::npos);
  CHECK(svg.find("KL") == std::string::npos);
}

TEST_CASE("ablation: the change of KL is that of pairs of windows", "[llama][ablation]") {
  const record_file file;
  auto settings = small_settings();
  settings.contexts = {100};
  const auto& layers = *chosen("layers")[0];
  const auto cells = plan_cells({&layers}, settings);
  const std::string base = line_of(cells[0], 0.1, settings);     // windows 0.1 and 0.3
  const std::string raised = line_of(cells[1], 0.05, settings);  // 0.05 and 0.15
  const auto both = file.read(base + raised);
  const auto rows = measured_rows(layers, both.cells, settings);
  REQUIRE(rows.size() == 2);
  const auto csv = experiment_csv(layers, rows);
  CHECK(csv.find(",0.2,0.1,0.3,0,0,0,") != std::string::npos);
  CHECK(csv.find(",0.1,0.05,0.15,-0.1,-0.15,-0.05,") != std::string::npos);
  CHECK(experiment_chart(layers, rows).find("change of KL, %") != std::string::npos);

  // What it would be the change from is not there.
  const auto one = file.read(raised);
  const auto alone = measured_rows(layers, one.cells, settings);
  CHECK(experiment_csv(layers, alone).find(",0.1,0.05,0.15,,,,") != std::string::npos);
}

TEST_CASE("ablation: no ratio of the paper is null in a line and empty in a table",
          "[llama][ablation]") {
  const record_file file;
  auto settings = small_settings();
  settings.contexts = {100};
  const auto& methods = *chosen("methods")[0];
  const auto cells = plan_cells({&methods}, settings);
  const auto cell = std::find_if(cells.begin(), cells.end(),
                                 [](const auto& of) { return of.key.policy == "zipvl"; });
  REQUIRE(cell != cells.end());
  const std::string line = line_of(*cell, 0.1, settings);
  CHECK(nlohmann::json::parse(line)["ratio_paper"].is_null());
  const auto records = file.read(line);
  CHECK_FALSE(records.cells.at(cell->key).ratio_paper);
  const auto rows = measured_rows(methods, records.cells, settings);
  // bits, bits after the prompt, allocated ratio, paper's ratio, KL
  CHECK(experiment_csv(methods, rows).find(",zipvl,,,,,4,4,4,,0.2,") != std::string::npos);

  // Files of before have a number there.
  auto object = nlohmann::ordered_json::parse(line);
  object["ratio_paper"] = 3.9;
  CHECK(file.read(object.dump() + '\n').cells.at(cell->key).ratio_paper == 3.9);
}

TEST_CASE("ablation: a whole line that is no cell is an error with its number",
          "[llama][ablation]") {
  const record_file file;
  const auto settings = small_settings();
  const std::string good = line_of(plan_cells(chosen("ratios"), settings)[0], 0.1, settings);
  for (const char* wrong : {"{\"policy\":\"paper\"\n", "{\"policy\":\"paper\"}\n", "[]\n", "\n"}) {
    std::string message;
    try {
      file.read(good + wrong + good);
    } catch (const std::runtime_error& error) {
      message = error.what();
    }
    INFO(message);
    CHECK(message.find("ablations.jsonl:2: not a measured cell") != std::string::npos);
  }
}

TEST_CASE("ablation: the Pareto front is what nobody beats in both", "[llama][ablation]") {
  const std::vector<double> bits = {4, 3, 2, 3, 5, 2, 6};
  const std::vector<double> errors = {2, 3, 9, 4, 2, 9, 1};
  CHECK(pareto_front(bits, errors) == std::vector<std::size_t>{2, 1, 0, 6});
  CHECK(pareto_front({}, {}).empty());
  const std::vector<double> unknown = {1, std::nan("")};
  CHECK(pareto_front(unknown, std::vector<double>{1, 0}) == std::vector<std::size_t>{0});
}

TEST_CASE("ablation: tables and charts of what is there", "[llama][ablation]") {
  const record_file file;
  const auto settings = small_settings();
  const auto cells = plan_cells(chosen("all"), settings);
  std::string lines;
  for (std::size_t i = 0; i < cells.size(); ++i) {
    lines += line_of(cells[i], 0.001 * static_cast<double>(i + 1), settings);
  }
  const auto records = file.read(lines);
  REQUIRE(records.cells.size() == cells.size());
  const auto text = write_reports(file.folder(), chosen("all"), records.cells, settings);
  for (const auto& experiment : all_experiments()) {
    INFO(experiment.name);
    const std::size_t contexts = experiment.reads_windows ? 2 : 1;
    const auto wanted = std::to_string(contexts * experiment.variants.size());
    CHECK(text.find(experiment.name + ": " + wanted + " of " + wanted + " cells") !=
          std::string::npos);
    const auto rows = measured_rows(experiment, records.cells, settings);
    CHECK(rows.size() == contexts * experiment.variants.size());
    const auto csv = experiment_csv(experiment, rows);
    const std::size_t each = experiment.x == chart_x::decoded_tokens ? 3 : 1;
    CHECK(static_cast<std::size_t>(std::count(csv.begin(), csv.end(), '\n')) ==
          1 + each * rows.size());
    CHECK(std::filesystem::file_size(file.folder() / (experiment.name + ".csv")) == csv.size());
    CHECK(std::filesystem::file_size(file.folder() / (experiment.name + ".svg")) > 1000);
    const auto svg = experiment_chart(experiment, rows);
    CHECK(svg.find(experiment.title) != std::string::npos);
    CHECK((svg.find("200 tokens") != std::string::npos) == experiment.reads_windows);
  }
  CHECK(std::filesystem::exists(file.folder() / "pareto.svg"));
  const auto pareto = pareto_chart(cells, records.cells, settings);
  CHECK(pareto.find(">uniform_groupwise<") != std::string::npos);
  const auto drawn = read_text_file(file.folder() / "pareto.svg");
  CHECK(drawn.find(">uniform_groupwise<") != std::string::npos);
  CHECK(drawn.find("raised layers") == std::string::npos);  // would only crowd it
  CHECK(pareto_chart(cells, {}, settings).empty());

  const auto csv = experiment_csv(*chosen("probes")[0],
                                  measured_rows(*chosen("probes")[0], records.cells, settings));
  CHECK(csv.find("\nprobes,\"all rows, 40 % salient\",40 % salient,all rows,100,250,all_probes,0.4,"
                 ",,,4,4,4,") != std::string::npos);
}

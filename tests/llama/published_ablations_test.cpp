// The published tables and charts are what the command makes of the published lines, today.
#include <filesystem>
#include <string>

#include "ablation_report.hpp"
#include "support/catch.hpp"
#include "text_file.hpp"

using namespace zipcache_llama;

namespace {

namespace fs = std::filesystem;

const fs::path published = ZIPCACHE_LLAMA_ABLATIONS;

// Those of the README's command.
ablation_settings published_settings(const cell_map& cells) {
  ablation_settings settings;
  settings.windows = 6;
  settings.line_prompts = 24;
  const auto& any = cells.begin()->first;
  settings.model = any.model;
  settings.model_bytes = any.model_bytes;
  settings.text_bytes = any.text_bytes;
  return settings;
}

}  // namespace

TEST_CASE("published ablations: every cell of every experiment is there", "[llama][ablation]") {
  const auto records = read_records(published / "ablations.jsonl");
  CHECK_FALSE(records.is_torn);
  const auto settings = published_settings(records.cells);
  for (const auto& experiment : all_experiments()) {
    INFO(experiment.name);
    CHECK(measured_rows(experiment, records.cells, settings).size() == experiment.variants.size());
    CHECK(fs::exists(published / (experiment.name + ".csv")));
  }
}

TEST_CASE("published ablations: tables and charts are remade to the byte", "[llama][ablation]") {
  const auto records = read_records(published / "ablations.jsonl");
  std::vector<const experiment*> all;
  for (const auto& experiment : all_experiments()) {
    all.push_back(&experiment);
  }
  std::string pattern = (fs::temp_directory_path() / "zipcache_published_XXXXXX").string();
  REQUIRE(mkdtemp(pattern.data()) != nullptr);
  write_reports(pattern, all, records.cells, published_settings(records.cells));
  int compared = 0;
  for (const auto& file : fs::directory_iterator(published)) {
    const auto extension = file.path().extension();
    if (extension == ".csv" || extension == ".svg") {
      INFO(file.path().filename());
      const auto remade = fs::path(pattern) / file.path().filename();
      REQUIRE(fs::exists(remade));
      CHECK(read_text_file(file.path()) == read_text_file(remade));
      ++compared;
    }
  }
  fs::remove_all(pattern);
  CHECK(compared > static_cast<int>(all.size()));
}

// ablate from end to end: measuring, going on after an interruption, and refusing.
#include <algorithm>
#include <fstream>
#include <string>
#include <vector>

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include "support/catch.hpp"
#include "workplace.hpp"

using namespace zipcache_llama_test;

namespace {

constexpr const char* small =
    "ablate --model model.gguf --text text.txt --out results --context 100 --generated 40 "
    "--contexts 2 "
    "--lines 2 --line-prompts 2 ";

std::string content(const workplace& place, const std::string& name) {
  return zipcache_llama::read_text_file(place.path(name));
}

std::ptrdiff_t lines(const std::string& text) { return std::count(text.begin(), text.end(), '\n'); }

bool has(const std::string& text, const std::string& words) {
  return text.find(words) != std::string::npos;
}

}  // namespace

TEST_CASE("ablate: measures, and goes on where it was", "[llama][command][ablation]") {
  const workplace place;
  const auto first = place.run(std::string(small) + "--experiments metrics");
  INFO(first.err << first.out);
  REQUIRE(first.exit_code == 0);
  CHECK(first.err.empty());
  CHECK(has(first.out, "4 cells, 4 of them to measure in 1 batches"));
  CHECK(has(first.out, "batch 1 of 1, 100 + 40 tokens: "));
  CHECK(has(first.out, "metrics: 4 of 4 cells measured, metrics.csv, metrics.svg"));
  CHECK(lines(content(place, "results/ablations.jsonl")) == 4);
  CHECK(lines(content(place, "results/metrics.csv")) == 5);
  CHECK(has(content(place, "results/metrics.svg"), "normalized attention"));
  CHECK(has(content(place, "results/pareto.svg"), "4 caches"));

  // `paper` is there already.
  const auto second = place.run(std::string(small) + "--experiments metrics,intervals");
  CHECK(has(second.out, "8 cells, 4 of them to measure in 1 batches"));
  CHECK(lines(content(place, "results/ablations.jsonl")) == 8);
  CHECK(lines(content(place, "results/intervals.csv")) == 6);

  // An interruption in the last line: that cell is measured again, to the same numbers.
  const auto whole = content(place, "results/ablations.jsonl");
  std::ofstream(place.path("results/ablations.jsonl")) << whole.substr(0, whole.size() - 30);
  const auto third = place.run(std::string(small) + "--experiments metrics,intervals");
  CHECK(third.exit_code == 0);
  CHECK(has(third.err, "cut off by an interruption"));
  CHECK(has(third.out, "8 cells, 1 of them to measure in 1 batches"));
  CHECK(content(place, "results/ablations.jsonl") == whole);

  const auto fourth = place.run(std::string(small) + "--experiments metrics --force");
  CHECK(has(fourth.out, "4 cells, 4 of them to measure"));
  CHECK(lines(content(place, "results/ablations.jsonl")) == 12);
  CHECK(has(place.run(std::string(small) + "--experiments metrics --seed 1").out,
            "4 cells, 4 of them to measure"));
}

TEST_CASE("ablate: reports what is there without a model", "[llama][command][ablation]") {
  const workplace place;
  const std::string numbers =
      "--out results --context 20 --generated 30 --contexts 1 --line-prompts 0 ";
  const auto measured =
      place.run("ablate --model model.gguf --text text.txt --experiments drift " + numbers);
  INFO(measured.err);
  REQUIRE(measured.exit_code == 0);
  const auto csv = content(place, "results/drift.csv");
  CHECK(lines(csv) == 1 + 3 * 10);
  std::filesystem::remove(place.path("results/drift.csv"));
  const auto report = place.run("ablate --report-only --experiments drift,sinks " + numbers);
  INFO(report.err);
  CHECK(report.exit_code == 0);
  CHECK(has(report.out, "sinks: 0 of 10 cells measured\n"));
  CHECK(content(place, "results/drift.csv") == csv);
  const auto other = place.run("ablate --report-only --experiments sinks " + numbers);
  CHECK(other.exit_code == 2);
  CHECK(has(other.err, "its 3 cells are none of these experiments and options"));
}

TEST_CASE("ablate: one run at a time writes a folder", "[llama][command][ablation]") {
  const workplace place;
  std::filesystem::create_directory(place.path("results"));
  const int other = open(place.path("results/ablations.jsonl").c_str(), O_RDWR | O_CREAT, 0666);
  REQUIRE(flock(other, LOCK_EX) == 0);
  const auto refused = place.run(std::string(small) + "--experiments metrics");
  CHECK(refused.exit_code == 2);
  CHECK(has(refused.err, "another run is writing it"));
  close(other);
  CHECK(place.run(std::string(small) + "--experiments metrics").exit_code == 0);
}

TEST_CASE("ablate: lists the experiments", "[llama][command][ablation]") {
  const workplace place;
  const auto result = place.run("ablate --list");
  CHECK(result.exit_code == 0);
  for (const char* words : {"granularities: ", "drift: ", "(1000 tokens)", "paper, ratio 0.4"}) {
    CHECK(has(result.out, words));
  }
  CHECK_FALSE(has(place.run("ablate --list --experiments sinks").out, "drift"));
}

TEST_CASE("ablate: bad input is one sentence and exit code 2", "[llama][command][ablation]") {
  const workplace place;
  std::ofstream(place.path("file")) << "not a folder";
  std::filesystem::create_directory(place.path("corrupt"));
  std::ofstream(place.path("corrupt/ablations.jsonl")) << "{\"policy\": \"paper\"}\n";
  struct refusal {
    std::string arguments;
    const char* words;
  };
  const std::string ablate = "ablate --model model.gguf --text text.txt ";
  const std::string metrics = ablate + "--experiments metrics --context 100 ";
  const std::vector<refusal> refusals = {
      {ablate, "--out is required"},
      {"ablate --text text.txt --out results", "--model is required"},
      {"ablate --model model.gguf --out results", "--text is required"},
      {ablate + "--out results --experiments metric",
       "unknown experiment 'metric'; there are gran"},
      {ablate + "--out results --experiments metrics --context 1000",
       "longer than the model's context of 1024"},
      {ablate + "--out results --experiments drift --context 100",
       "experiment drift, which decodes"},
      {ablate + "--out results --context 0", "--context"},
      {ablate + "--out results --context 100,many", "--context"},
      {metrics + "--out results --contexts 100", "text.txt: too short"},
      {metrics + "--out results --generated 20 --lines 4000", "more than the model's context"},
      {metrics + "--generated 20 --lines 2 --out file", "file: cannot be made a folder"},
      {metrics + "--generated 20 --lines 2 --out corrupt",
       "corrupt/ablations.jsonl:1: not a measured cell"},
      {"ablate --model nothing.gguf --text text.txt --out results", "nothing.gguf"},
      {"ablate --model model.gguf --text nothing.txt --out results",
       "nothing.txt: no such text file"},
      {"ablate --report-only --out results", "results/ablations.jsonl: nothing has been measured"},
  };
  for (const auto& [arguments, words] : refusals) {
    INFO(arguments);
    const auto result = place.run(arguments);
    INFO(result.err);
    CHECK(result.exit_code == 2);
    CHECK(has(result.err, words));
    CHECK(result.out.empty());
  }
}

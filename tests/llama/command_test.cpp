// The program itself: what it prints, and how it refuses.
#include <algorithm>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "workplace.hpp"

using namespace zipcache_llama_test;

namespace {

constexpr const char* small =
    "compare --model model.gguf --text text.txt --context 200 --generated 170 --contexts 2 "
    "--lines 2 --line-prompts 2 --timed-tokens 5 ";

}  // namespace

TEST_CASE("compare: a table, claims, JSON lines and a plot from end to end", "[llama][command]") {
  const workplace place;
  const auto result =
      place.run(std::string(small) + "--policies claims --json c.jsonl --plot s.svg");
  INFO(result.err);
  CHECK(result.exit_code == 0);
  CHECK(result.err.empty());  // no progress bar in a pipe
  for (const char* words :
       {"windows of 200 + 170 tokens: 2;", "\npaper ", "\nuncompressed ", "paper - accumulated",
        "paper - tokenwise_values", "paper - all_probes"}) {
    CHECK(result.out.find(words) != std::string::npos);
  }
  const auto json = zipcache_llama::read_text_file(place.path("c.jsonl"));
  CHECK(std::count(json.begin(), json.end(), '\n') == 8);
  const auto plot = zipcache_llama::read_text_file(place.path("s.svg"));
  CHECK(plot.find("normalized attention") != std::string::npos);
  CHECK(plot.rfind("</svg>\n") == plot.size() - 7);

  const auto quick = place.run(
      "compare --model model.gguf --text text.txt --quick --policies h2o --interval 64 --lines 2");
  INFO(quick.err);
  CHECK(quick.exit_code == 0);
  CHECK(quick.out.find("windows of 256 + 160 tokens: 2;") != std::string::npos);
}

TEST_CASE("compare: the seed decides the numbers", "[llama][command]") {
  const workplace place;
  const std::string arguments =
      "compare --model model.gguf --text text.txt --context 100 --generated 20 --contexts 2 "
      "--line-prompts 0 --timed-tokens 0 --policies paper ";
  const auto first = place.run(arguments + "--seed 4");
  CHECK(first.exit_code == 0);
  CHECK(place.run(arguments + "--seed 4").out == first.out);
  CHECK(place.run(arguments + "--seed 5").out != first.out);
}

TEST_CASE("generate: prints the text, then one line of numbers", "[llama][command]") {
  const workplace place;
  const auto result =
      place.run("generate model.gguf --prompt 'abc abc' --policy kivi_2bit --max-tokens 12");
  INFO(result.err);
  CHECK(result.exit_code == 0);
  CHECK(result.out.find("\n[kivi_2bit: ") != std::string::npos);
  CHECK(result.out.find(" tokens/s; cache of ") != std::string::npos);
  CHECK(place
            .run("generate model.gguf --chat --prompt hello --temperature 0.8 --top-p 0.9 "
                 "--max-tokens 5")
            .exit_code == 0);
}

TEST_CASE("policies: lists every name", "[llama][command]") {
  const workplace place;
  const auto result = place.run("policies");
  CHECK(result.exit_code == 0);
  for (const char* name :
       {"uncompressed", "paper", "kivi_2bit", "tokenwise_values", "all_probes"}) {
    CHECK(result.out.find(name) != std::string::npos);
  }
}

TEST_CASE("command line: bad input is one sentence and exit code 2", "[llama][command]") {
  const workplace place;
  place.write("truncated.gguf", bytes(place.model().begin(), place.model().begin() + 9000));
  auto hostile = place.model();
  std::fill(hostile.begin() + 8, hostile.begin() + 24,
            std::byte{0xff});  // counts of tensors and entries
  place.write("hostile.gguf", hostile);
  struct refusal {
    std::string arguments;
    const char* words;
  };
  const std::string compare = "compare --model model.gguf --text text.txt ";
  const std::vector<refusal> refusals = {
      {"compare --model nothing.gguf --text text.txt", "nothing.gguf"},
      {"compare --model truncated.gguf --text text.txt", "truncated.gguf: "},
      {"compare --model hostile.gguf --text text.txt", "hostile.gguf: "},
      {"compare --model text.txt --text text.txt", "text.txt: "},
      {"compare --model model.gguf --text nothing.txt", "nothing.txt: no such text file"},
      {"compare --model model.gguf --text short.txt --context 100 --generated 10",
       "short.txt: too short"},
      {compare + "--policies papr", "unknown policy 'papr'; there are uncompressed, paper,"},
      {compare + "--context 1000 --generated 100", "longer than the model's context of 1024"},
      {compare + "--context 0", "--context"},
      {compare + "--context many", "--context"},
      {compare + "--generated 2000000000", "--generated"},
      {compare + "--ratio 1.5", "--ratio"},
      {compare + "--interval 0", "--interval"},
      {compare + "--threads -1", "--threads"},
      {compare + "--context 100 --generated 10 --lines 4000", "more than the model's context"},
      {compare + "--context 100 --generated 10 --lines 100000", "--lines is at most"},
      {compare + "--context 100 --generated 10 --contexts 1000", "text.txt: too short"},
      {compare + "--context 100 --generated 10 --lines 2 --plot-layer 7", "--plot-layer"},
      {compare + "--context 100 --generated 10 --lines 2 --json nowhere/c.jsonl",
       "nowhere/c.jsonl: cannot be written"},
      {"generate model.gguf --prompt abc --policy none", "unknown policy 'none'"},
      {"generate model.gguf --prompt ''", "--prompt"},
      {"generate nothing.gguf --prompt abc", "nothing.gguf"},
      {"generate model.gguf --prompt abc --temperature -1", "--temperature"},
      {"generate model.gguf --prompt \"$(cat text.txt)\"", "leave no room"},
      {"", "subcommand"},
      {"unknown", "subcommand"},
  };
  for (const auto& [arguments, words] : refusals) {
    INFO(arguments);
    const auto result = place.run(arguments);
    INFO(result.err);
    CHECK(result.exit_code == 2);
    CHECK(result.err.find(words) != std::string::npos);
    CHECK(result.out.empty());
  }
  CHECK(place.run("--help").exit_code == 0);
}

#include "comparison.hpp"

#include <numeric>
#include <sstream>

#include <nlohmann/json.hpp>

#include "comparison_object.hpp"
#include "comparison_report.hpp"
#include "statistics.hpp"
#include "support/catch.hpp"
#include "text_windows.hpp"
#include "tiny_model.hpp"

using namespace zipcache_llama;
using namespace zipcache_llama_test;

namespace {

struct tiny_comparison {
  gguf_file file = gguf_file::parse(
      tiny_model({.hidden = 128, .qo_heads = 4, .kv_heads = 2, .context = 2048}).file(),
      "tiny.gguf");
  zipcache_llama::tokenizer tokenizer{file};
  std::vector<int> tokens;
  comparison_input input;

  tiny_comparison() {
    random_stream random(11);
    for (int i = 0; i < 2000; ++i) {
      tokens.push_back(static_cast<int>(random.below(256)));
    }
    input.policies = select_policies("paper,accumulated,h2o");
    input.context = 200;
    input.generated = 200;
    input.windows = draw_windows(tokens, 401, 4, 3);
    input.prompts = {make_line_retrieval(4, 1), make_line_retrieval(4, 2)};
    input.timed_tokens = 6;
  }

  std::vector<policy_result> run(int threads) {
    thread_pool pool(threads);
    model model(file, pool);
    std::size_t steps = 0;
    return compare_policies(input, model, tokenizer, pool, {},
                            [&](std::size_t count) { steps += count; });
  }
};

}  // namespace

TEST_CASE("comparison: every window is measured, the reference against itself is perfect",
          "[llama][comparison]") {
  tiny_comparison comparison;
  const auto results = comparison.run(2);
  REQUIRE(results.size() == 4);
  for (const auto& result : results) {
    INFO(result.policy->name);
    REQUIRE(result.kl.size() == 4);
    REQUIRE(result.retrieved.size() == 2);
    for (std::size_t i = 0; i < 4; ++i) {
      CHECK(result.surprise[i] > 0);
      CHECK(result.kl[i] >= 0);
      CHECK((result.top1[i] >= 0 && result.top1[i] <= 1));
    }
    CHECK(result.tokens_per_second > 0);
    CHECK(result.after_prefill.num_tokens == 200 * 2);
    CHECK(result.after_decode.num_tokens == 400 * 2);
  }
  CHECK(mean(results[0].kl) == 0.0);
  CHECK(mean(results[0].top1) == 1.0);
  CHECK(mean(results[1].kl) > 0.0);
  CHECK(mean(results[1].kl) < mean(results[3].kl) * 100);
}

TEST_CASE("comparison: prompts are measured without windows, and tell the size",
          "[llama][comparison]") {
  tiny_comparison comparison;
  const auto with_windows = comparison.run(1);
  comparison.input.windows.clear();
  const auto results = comparison.run(1);
  const auto prompt = encode(comparison.input.prompts[0], comparison.tokenizer).prompt;
  for (std::size_t i = 0; i < results.size(); ++i) {
    CHECK(results[i].kl.empty());
    CHECK(results[i].retrieved == with_windows[i].retrieved);
    CHECK(results[i].tokens_per_second == 0);
    CHECK(results[i].after_prefill.num_tokens == static_cast<std::int64_t>(2 * prompt.size()));
    CHECK(results[i].after_decode.num_tokens > results[i].after_prefill.num_tokens);
  }
}

TEST_CASE("comparison: results do not depend on the number of threads", "[llama][comparison]") {
  tiny_comparison comparison;
  const auto one = comparison.run(1);
  const auto three = comparison.run(3);
  for (std::size_t i = 0; i < one.size(); ++i) {
    CHECK(one[i].surprise == three[i].surprise);
    CHECK(one[i].kl == three[i].kl);
    CHECK(one[i].top1 == three[i].top1);
    CHECK(one[i].retrieved == three[i].retrieved);
  }
}

TEST_CASE("comparison: KL and surprise are those of the definitions", "[llama][comparison]") {
  tiny_comparison comparison;
  comparison.input.windows.resize(1);
  comparison.input.prompts.clear();
  comparison.input.timed_tokens = 0;
  const auto results = comparison.run(1);

  thread_pool pool(1);
  model model(comparison.file, pool);
  const auto window = comparison.input.windows[0];
  std::vector<std::vector<float>> logits;
  for (const char* name : {"uncompressed", "paper"}) {
    const auto cache = find_policy(name).make(model.shape(), {}, 1);
    exact_attention exact(model.shape(), pool);
    exact.observe([&](const attended_layer& layer) { cache->prefill(layer); });
    model.forward(window.first(200), 0, exact, {});
    logits.emplace_back(200 * tiny_vocabulary);
    for (std::size_t first = 0; first < 200;
         first += 160) {  // in the pieces of the comparison, for equal rounding
      const std::size_t count = std::min<std::size_t>(160, 200 - first);
      decode(model, window.subspan(200 + first, count), *cache,
             std::span(logits.back()).subspan(first * tiny_vocabulary, count * tiny_vocabulary));
    }
  }
  std::vector<double> kl;
  std::vector<double> log_probabilities;
  double agreed = 0;
  for (std::size_t row = 0; row < 200; ++row) {
    const auto reference =
        std::span<const float>(logits[0]).subspan(row * tiny_vocabulary, tiny_vocabulary);
    const auto own =
        std::span<const float>(logits[1]).subspan(row * tiny_vocabulary, tiny_vocabulary);
    kl.push_back(kl_divergence(reference, own));
    log_probabilities.push_back(log_probability(own, window[200 + row + 1]));
    agreed += top1_agrees(reference, own) ? 1 : 0;
  }
  // Single-precision exponentials: 2 ulp each.
  CHECK(mean(results[1].kl) == Approx(mean(kl)).margin(1e-6));
  CHECK(mean(results[1].surprise) == Approx(-mean(log_probabilities)).margin(1e-6));
  CHECK(mean(results[1].top1) == Approx(agreed / 200));
}

TEST_CASE("comparison: the KL of stretches makes up the KL of the window", "[llama][comparison]") {
  tiny_comparison comparison;
  comparison.input.windows.resize(2);
  comparison.input.prompts.clear();
  comparison.input.timed_tokens = 0;
  CHECK(comparison.run(1)[1].kl_along.empty());
  comparison.input.kl_stretch = 90;  // 90 + 90 + 20
  for (const auto& result : comparison.run(2)) {
    REQUIRE(result.kl_along.size() == 2);
    for (std::size_t i = 0; i < 2; ++i) {
      const auto& along = result.kl_along[i];
      REQUIRE(along.size() == 3);
      CHECK((90 * along[0] + 90 * along[1] + 20 * along[2]) / 200 == Approx(result.kl[i]));
    }
  }
}

TEST_CASE("comparison: JSON lines have exactly their fields, in order", "[llama][comparison]") {
  tiny_comparison comparison;
  const bool all = GENERATE(true, false);
  if (!all) {
    comparison.input.prompts.clear();
    comparison.input.timed_tokens = 0;
  }
  const auto results = comparison.run(2);
  const report_settings settings{{2, 4, 2, 32}, {}, 200, 200, 0};
  std::istringstream lines(comparison_json(results, settings));
  const std::vector<std::string> fields = {"policy",
                                           "context",
                                           "generated",
                                           "ratio_allocated",
                                           "ratio_paper",
                                           "perplexity",
                                           "perplexity_fp16",
                                           "kl_mean",
                                           "top1_agreement",
                                           "retrieval_accuracy",
                                           "retrieval_accuracy_fp16",
                                           "decode_tokens_per_second",
                                           "cache_bytes",
                                           "cache_bytes_fp16"};
  std::size_t count = 0;
  for (std::string line; std::getline(lines, line); ++count) {
    const auto object = nlohmann::ordered_json::parse(line);
    std::vector<std::string> keys;
    for (const auto& [key, value] : object.items()) {
      keys.push_back(key);
      const bool measured =
          all || (key != "decode_tokens_per_second" && key.rfind("retrieval", 0) != 0);
      CHECK((key == "policy" ? value.is_string() : measured ? value.is_number() : value.is_null()));
    }
    CHECK(keys == fields);
    CHECK(object["policy"] == results[count].policy->name);
    CHECK(object["cache_bytes_fp16"] == results[0].after_decode.total_bytes());
  }
  CHECK(count == results.size());

  const auto table = comparison_table(results, settings);
  for (const auto& result : results) {
    CHECK(table.find("\n" + result.policy->name + " ") != std::string::npos);
  }
  const auto claims = comparison_claims(results, settings);
  CHECK(claims.find("paper - accumulated") != std::string::npos);
  CHECK(claims.find("tokenwise_values") == std::string::npos);  // was not measured
}

TEST_CASE("comparison: no ratio of the paper is null in JSON and a dash in the table",
          "[llama][comparison]") {
  const auto result_of = [](std::string_view name, std::int64_t bytes) {
    policy_result result;
    result.policy = &find_policy(name);
    result.surprise = result.kl = result.top1 = {1, 1};
    result.after_prefill = result.after_decode = {.code_bytes = bytes, .uncompressed_bytes = 400};
    return result;
  };
  const std::vector<policy_result> results = {result_of("uncompressed", 400),
                                              result_of("zipvl", 100)};
  const report_settings settings{{2, 4, 2, 32}, {}, 200, 200, 0};
  const auto object = comparison_object(results[1], results[0], settings);
  CHECK(object.at("ratio_paper").is_null());
  CHECK(object.at("ratio_allocated") == 4.0);
  const auto table = comparison_table(results, settings);
  INFO(table);
  CHECK(table.find("\nzipvl            4.00   4.00      -  ") != std::string::npos);
}

TEST_CASE("text windows: seeded, in order, without overlap", "[llama][comparison]") {
  std::vector<int> tokens(1000);
  std::iota(tokens.begin(), tokens.end(), 0);
  const auto windows = draw_windows(tokens, 90, 5, 1);
  REQUIRE(windows.size() == 5);
  for (std::size_t i = 0; i < windows.size(); ++i) {
    CHECK(windows[i].size() == 90);
    CHECK(windows[i][0] % 90 == 0);
    CHECK((i == 0 || windows[i - 1][0] < windows[i][0]));
  }
  CHECK(num_windows(1000, 90) == 11);
  CHECK(draw_windows(tokens, 90, 11, 1).size() == 11);
  const auto first_tokens = [&](std::uint64_t seed) {
    std::vector<int> firsts;
    for (const auto& window : draw_windows(tokens, 90, 5, seed)) {
      firsts.push_back(window[0]);
    }
    return firsts;
  };
  CHECK(first_tokens(1) == first_tokens(1));
  CHECK(first_tokens(1) != first_tokens(2));
}

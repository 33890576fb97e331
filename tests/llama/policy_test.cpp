#include <algorithm>
#include <array>
#include <cmath>
#include <set>
#include <string_view>

#include "comparison.hpp"
#include "policy_registry.hpp"
#include "support/catch.hpp"
#include "tiny_model.hpp"

using namespace zipcache_llama;
using namespace zipcache_llama_test;

namespace {

// Head dimension 32, which every policy takes.
const tiny_shape compressible = {.hidden = 128, .qo_heads = 4, .kv_heads = 2, .context = 1024};

std::vector<float> random_values(std::size_t count, std::uint64_t seed) {
  random_stream random(seed);
  std::vector<float> values(count);
  for (float& value : values) {
    value = static_cast<float>(4 * random.uniform() - 2);
  }
  return values;
}

std::string refusal(std::string_view list) {
  try {
    select_policies(list);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "";
}

std::vector<std::string> names_of(std::string_view list) {
  std::vector<std::string> names;
  for (const auto* policy : select_policies(list)) {
    names.push_back(policy->name);
  }
  return names;
}

}  // namespace

TEST_CASE("policies: names are unique and every one has a summary", "[llama][policies]") {
  std::set<std::string> names;
  for (const auto& policy : all_policies()) {
    CHECK(names.insert(policy.name).second);
    CHECK_FALSE(policy.summary.empty());
    CHECK(&find_policy(policy.name) == &policy);
  }
  for (const char* group : {"all", "presets", "ablations", "claims"}) {
    CHECK(names.count(group) == 0);
  }
}

TEST_CASE("policies: a list names policies and groups, each once, the reference first",
          "[llama][policies]") {
  using list = std::vector<std::string>;
  CHECK(names_of("paper") == list{"uncompressed", "paper"});
  CHECK(names_of("mikv,paper,mikv") == list{"uncompressed", "paper", "mikv"});
  CHECK(names_of("all").size() == all_policies().size());
  CHECK(names_of("presets") ==
        list{"uncompressed", "paper", "mikv", "h2o", "kivi_2bit", "uniform_4bit", "keys_4_values_2",
             "rotated_keys_3_values_2", "kivi_2bit_sinks", "ott", "zipvl", "zipvl_evicting",
             "quarot_4bit", "kitty", "kitty_pro", "oaken", "gear_l", "gear"});
  CHECK(names_of("presets,ablations") == names_of("all"));
  for (const char* wrong : {"papr", "", "paper,", "paper,,mikv", "paper, mikv"}) {
    const auto message = refusal(wrong);
    CHECK(message.find("unknown policy '") == 0);
    CHECK(message.find("kivi_2bit") != std::string::npos);
  }
}

TEST_CASE("policies: one call with many tokens is token-by-token decoding, to the bit",
          "[llama][policies]") {
  const attention_shape shape{
      .num_layers = 1, .num_qo_heads = 4, .num_kv_heads = 2, .head_dim = 32};
  const auto* name = GENERATE("paper", "kivi_2bit", "h2o", "kitty", "gear", "oaken", "per_layer",
                              "sinks_4", "interval_100");
  constexpr int prompt_len = 200;
  constexpr int len = 420;  // two intervals of 160 and the beginning of a third
  const auto q = random_values((prompt_len + len) * 4 * 32, 1);
  const auto k = random_values((prompt_len + len) * 2 * 32, 2);
  const auto v = random_values((prompt_len + len) * 2 * 32, 3);

  const auto decode_in_steps = [&](int step) {
    thread_pool pool(1);
    const auto cache = find_policy(name).make(shape, {}, 1);
    exact_attention exact(shape, pool);
    exact.observe([&](const attended_layer& layer) { cache->prefill(layer); });
    std::vector<float> out(q.size());
    exact.attend(0, 0, prompt_len, q.data(), k.data(), v.data(), out.data());
    for (int at = prompt_len; at < prompt_len + len; at += step) {
      const int count = std::min(step, prompt_len + len - at);
      cache->attend(0, at, count, q.data() + at * 128, k.data() + at * 64, v.data() + at * 64,
                    out.data() + at * 128);
    }
    CHECK(cache->length() == prompt_len + len);
    CHECK_THROWS_AS(cache->attend(0, 0, 1, q.data(), k.data(), v.data(), out.data()),
                    std::invalid_argument);
    return out;
  };
  const auto one_by_one = decode_in_steps(1);
  CHECK(decode_in_steps(len) == one_by_one);
  CHECK(decode_in_steps(53) == one_by_one);
}

TEST_CASE("policies: layers are raised at the ends and around the middle", "[llama][policies]") {
  using layers = std::vector<std::int32_t>;
  CHECK(layer_policy_of({}, 3) == layers{0, 0, 0});
  CHECK(layer_policy_of({.first = 2}, 5) == layers{1, 1, 0, 0, 0});
  CHECK(layer_policy_of({.last = 2}, 5) == layers{0, 0, 0, 1, 1});
  CHECK(layer_policy_of({.middle = 1}, 5) == layers{0, 0, 1, 0, 0});
  CHECK(layer_policy_of({.first = 1, .middle = 2, .last = 1}, 6) == layers{1, 0, 1, 1, 0, 1});
  CHECK(layer_policy_of({.first = 2, .last = 2}, 3) == layers{1, 1, 1});
}

TEST_CASE("policies: a table has in each layer what its policies have alone", "[llama][policies]") {
  const attention_shape shape{
      .num_layers = 3, .num_qo_heads = 4, .num_kv_heads = 2, .head_dim = 32};
  constexpr int prompt_len = 200;
  constexpr int len = 200;  // an interval of 160 and some of the next
  const auto q = random_values((prompt_len + len) * 4 * 32, 1);
  const auto k = random_values((prompt_len + len) * 2 * 32, 2);
  const auto v = random_values((prompt_len + len) * 2 * 32, 3);
  // What every layer, of the same keys and values, attends to.
  const auto outputs = [&](const char* name, const std::optional<raised_layers>& raised) {
    thread_pool pool(1);
    policy_numbers numbers;
    numbers.raised = raised;
    const auto cache = find_policy(name).make(shape, numbers, 1);
    exact_attention exact(shape, pool);
    exact.observe([&](const attended_layer& layer) { cache->prefill(layer); });
    std::vector<std::vector<float>> all;
    std::vector<float> out(q.size());
    for (int layer = 0; layer < shape.num_layers; ++layer) {
      exact.attend(layer, 0, prompt_len, q.data(), k.data(), v.data(), out.data());
      cache->attend(layer, prompt_len, len, q.data() + prompt_len * 128, k.data() + prompt_len * 64,
                    v.data() + prompt_len * 64, out.data() + prompt_len * 128);
      all.push_back(out);
    }
    return all;
  };
  for (const auto& [table, base, richer] : {std::array{"paper_layers", "paper", "uniform_4bit"},
                                            {"k3v2_layers", "k3v2", "k4v4"},
                                            {"k2v2_layers", "k2v2", "keys_4_values_2"}}) {
    INFO(table);
    const auto low = outputs(base, {});
    const auto high = outputs(richer, {});
    REQUIRE(low[0] != high[0]);
    using all = std::vector<std::vector<float>>;
    CHECK(outputs(table, raised_layers{}) == low);
    CHECK(outputs(table, raised_layers{.first = 1}) == all{high[0], low[1], low[2]});
    CHECK(outputs(table, raised_layers{.middle = 1}) == all{low[0], high[1], low[2]});
    CHECK(outputs(table, raised_layers{.last = 1}) == all{low[0], low[1], high[2]});
    CHECK(outputs(table, std::nullopt) == high);  // two at each end
  }
}

TEST_CASE("policies: the uncompressed cache is exact attention where 16 bits hold the values",
          "[llama][policies]") {
  const attention_shape shape{
      .num_layers = 1, .num_qo_heads = 4, .num_kv_heads = 2, .head_dim = 32};
  constexpr int prompt_len = 100;
  constexpr int len = 230;
  const auto q = random_values((prompt_len + len) * 4 * 32, 1);
  auto k = random_values((prompt_len + len) * 2 * 32, 2);
  auto v = random_values((prompt_len + len) * 2 * 32, 3);
  for (auto* values : {&k, &v}) {
    for (float& value : *values) {
      value = std::round(value * 256) / 256;
    }
  }
  thread_pool pool(2);
  const auto cache = all_policies()[0].make(shape, {}, 2);
  exact_attention exact(shape, pool);
  exact.observe([&](const attended_layer& layer) { cache->prefill(layer); });
  std::vector<float> out(q.size());
  exact.attend(0, 0, prompt_len, q.data(), k.data(), v.data(), out.data());
  std::vector<float> expected = out;
  exact.observe({});
  exact.attend(0, prompt_len, len, q.data() + prompt_len * 128, k.data() + prompt_len * 64,
               v.data() + prompt_len * 64, expected.data() + prompt_len * 128);
  cache->attend(0, prompt_len, len, q.data() + prompt_len * 128, k.data() + prompt_len * 64,
                v.data() + prompt_len * 64, out.data() + prompt_len * 128);
  float largest = 0;
  for (std::size_t i = 0; i < out.size(); ++i) {
    largest = std::max(largest, std::abs(out[i] - expected[i]));
  }
  CHECK(largest < 1e-5F);  // means of values up to 2: some tens of roundings of 2^-24
}

TEST_CASE("policies: every one takes a prompt, decodes behind it and starts afresh",
          "[llama][policies]") {
  thread_pool pool(1);
  model model(gguf_file::parse(tiny_model(compressible).file(), "tiny.gguf"), pool);
  std::vector<int> tokens(400, 7);
  for (const auto& policy : all_policies()) {
    INFO(policy.name);
    const auto cache = policy.make(model.shape(), {}, 1);
    for (int round = 0; round < 2; ++round) {
      exact_attention exact(model.shape(), pool);
      exact.observe([&](const attended_layer& layer) { cache->prefill(layer); });
      model.forward(std::span(tokens).first(200), 0, exact, {});
      CHECK(cache->length() == 200);
      std::vector<float> logits(tiny_vocabulary);
      model.forward(std::span(tokens).subspan(200), 200, *cache, logits);
      CHECK(cache->footprint().num_tokens == 400 * model.shape().num_layers);
      cache->clear();
      CHECK(cache->length() == 0);
    }
    CHECK(policy.paper_ratio(model.shape(), {}, 4096).value_or(1.0) >= 1.0);
  }
}

TEST_CASE("policies: the paper's ratio follows the share of salient tokens", "[llama][policies]") {
  const attention_shape shape{
      .num_layers = 1, .num_qo_heads = 32, .num_kv_heads = 32, .head_dim = 128};
  const auto ratio_of = [&](std::string_view name, const policy_numbers& numbers = {}) {
    return find_policy(name).paper_ratio(shape, numbers, 4096).value();
  };
  CHECK(ratio_of("uncompressed") == Approx(1.0));
  // 4.98 at 60 %; of 4096 tokens 59.4 % are whole tiles.
  CHECK(ratio_of("paper") == Approx(4.998).margin(0.005));
  CHECK(ratio_of("paper", {.salient_ratio = 1.0}) == Approx(ratio_of("uniform_4bit")));
}

TEST_CASE("policies: the paper's ratio is absent where attention decides the number of tokens",
          "[llama][policies]") {
  const attention_shape shape{
      .num_layers = 1, .num_qo_heads = 32, .num_kv_heads = 32, .head_dim = 128};
  for (const auto& policy : all_policies()) {
    INFO(policy.name);
    const bool follows_attention = policy.name == "zipvl" || policy.name == "zipvl_evicting";
    CHECK(policy.paper_ratio(shape, {}, 4096).has_value() != follows_attention);
  }
}

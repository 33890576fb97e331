#include "ablation_experiments.hpp"

#include <cstdio>
#include <initializer_list>
#include <stdexcept>

namespace zipcache_llama {
namespace {

// What `paper` has by itself. Variants with these numbers leave them out, so that they are the same
// cell as `paper` elsewhere.
constexpr double paper_salient_ratio = 0.6;
constexpr std::int64_t paper_interval = 160;

std::string spelled(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", value);
  return text;
}

variant_numbers with_ratio(double ratio) {
  return {.salient_ratio = ratio == paper_salient_ratio ? std::nullopt : std::optional(ratio)};
}

variant_numbers with_interval(std::int64_t interval) {
  return {.recompress_interval =
              interval == paper_interval ? std::nullopt : std::optional(interval)};
}

struct named_policy {
  const char* label;
  const char* policy;
};

std::vector<variant> categories(std::initializer_list<named_policy> policies) {
  std::vector<variant> variants;
  for (const auto& [label, policy] : policies) {
    variants.push_back({.label = label, .policy = policy, .category = label});
  }
  return variants;
}

// At their own settings, under their own names.
std::vector<variant> methods(std::initializer_list<const char*> policies) {
  std::vector<variant> variants;
  for (const char* policy : policies) {
    variants.push_back({.label = policy, .policy = policy});
  }
  return variants;
}

experiment granularities() {
  return {.name = "granularities",
          .title = "Group layouts at 4 bits, every token",
          .x_title = "keys + values",
          .variants = categories({{"groups of 32 + groups of 32", "uniform_groupwise"},
                                  {"tokenwise + tokenwise", "uniform_tokenwise"},
                                  {"channelwise + tokenwise", "uniform_tokenwise_values"},
                                  {"channelwise + channel-separable", "uniform_4bit"}})};
}

// The paper's fifth row, special tokens, needs a chat.
experiment probes() {
  experiment result{
      .name = "probes", .title = "Rows that are looked at for saliency", .x_title = "probes"};
  for (const double ratio : {0.4, 0.6}) {
    const std::string series = spelled(100 * ratio) + " % salient";
    for (const auto& [row, policy] : {named_policy{"all rows", "all_probes"},
                                      {"random 10 %", "random_probes"},
                                      {"recent 10 %", "recent_probes"},
                                      {"recent 5 % + random 5 %", "paper"}}) {
      result.variants.push_back({.label = std::string(row) + ", " + series,
                                 .policy = policy,
                                 .numbers = with_ratio(ratio),
                                 .series = series,
                                 .category = row});
    }
  }
  return result;
}

experiment published_methods() {
  return {
      .name = "methods",
      .title = "Methods at their own settings",
      .x_title = "allocated bits per value",
      .x = chart_x::bits_per_value,
      .variants = methods({"paper", "mikv", "h2o", "kivi_2bit", "kivi_2bit_sinks", "ott", "zipvl",
                           "zipvl_evicting", "quarot_4bit", "kitty", "kitty_pro", "oaken", "gear_l",
                           "gear", "uniform_4bit", "keys_4_values_2", "rotated_keys_3_values_2"})};
}

experiment metrics() {
  return {.name = "metrics",
          .title = "Saliency metrics of ZipCache",
          .x_title = "saliency",
          .variants = categories({{"recency", "recency"},
                                  {"accumulated attention", "accumulated"},
                                  {"normalized attention", "paper"},
                                  {"normalized by length", "normalized_by_length"}})};
}

experiment ratios() {
  experiment result{.name = "ratios",
                    .title = "Share of salient tokens of ZipCache",
                    .x_title = "salient tokens, %",
                    .x = chart_x::number};
  for (int tenths = 0; tenths <= 10; ++tenths) {
    const double ratio = tenths / 10.0;
    result.variants.push_back({.label = "paper, " + spelled(10 * tenths) + " % salient",
                               .policy = "paper",
                               .numbers = with_ratio(ratio),
                               .series = "paper",
                               .x = 10.0 * tenths});
  }
  return result;
}

experiment bits() {
  experiment result{.name = "bits",
                    .title = "Bits of keys / values: channelwise, channel-separable, 4 sinks",
                    .x_title = "allocated bits per value",
                    .x = chart_x::bits_per_value};
  for (const auto& [label, policy] : {named_policy{"2/2 bits", "k2v2"},
                                      {"3/2 bits", "k3v2"},
                                      {"3/3 bits", "k3v3"},
                                      {"4/2 bits", "keys_4_values_2"},
                                      {"4/3 bits", "k4v3"},
                                      {"4/4 bits", "k4v4"},
                                      {"8/8 bits", "k8v8"}}) {
    result.variants.push_back({.label = label, .policy = policy});
  }
  return result;
}

experiment intervals() {
  experiment result{.name = "intervals",
                    .title = "Tokens that ZipCache compresses together",
                    .x_title = "interval, tokens",
                    .x = chart_x::number};
  for (const std::int64_t interval : {32, 64, 100, 160, 320}) {
    result.variants.push_back({.label = "paper, every " + std::to_string(interval),
                               .policy = "paper",
                               .numbers = with_interval(interval),
                               .series = "paper",
                               .x = static_cast<double>(interval)});
  }
  return result;
}

experiment sinks() {
  struct row {
    int count;
    const char* paper;
    const char* ours;
  };
  experiment result{.name = "sinks",
                    .title = "First tokens that stay in 16 bits",
                    .x_title = "sinks, tokens",
                    .x = chart_x::number};
  for (const auto& [count, paper, ours] : {row{0, "paper", "k4v2"},
                                           {1, "sinks_1", "k4v2_sinks_1"},
                                           {4, "sinks_4", "keys_4_values_2"},
                                           {16, "sinks_16", "k4v2_sinks_16"},
                                           {32, "sinks_32", "k4v2_sinks_32"}}) {
    for (const auto& [series, policy] : {named_policy{"paper", paper}, {"keys_4_values_2", ours}}) {
      result.variants.push_back({.label = std::string(series) + ", " + std::to_string(count) +
                                          (count == 1 ? " sink" : " sinks"),
                                 .policy = policy,
                                 .series = series,
                                 .x = static_cast<double>(count)});
    }
  }
  return result;
}

// What makes 2-bit keys usable: all with the values and sinks of keys_4_values_2.
experiment key_transforms() {
  return {.name = "key_transforms",
          .title = "2-bit keys by channel behind a rotation and a scale for each token",
          .x_title = "keys",
          .variants = categories({{"as they are", "k2v2"},
                                  {"scaled tokens", "k2v2_scaled"},
                                  {"rotated", "k2v2_rotated"},
                                  {"rotated, scaled tokens", "k2v2_rotated_scaled"}})};
}

experiment drift() {
  return {.name = "drift",
          .title = "Divergence along a long continuation",
          .x_title = "decoded tokens",
          .x = chart_x::decoded_tokens,
          .variants = methods({"paper", "keys_4_values_2", "kivi_2bit"}),
          .generated = 1000,
          .finds_lines = false};
}

std::string known_names() {
  std::string names;
  for (const auto& experiment : all_experiments()) {
    names += (names.empty() ? "" : ", ") + experiment.name;
  }
  return names;
}

}  // namespace

std::span<const experiment> all_experiments() {
  static const std::vector<experiment> experiments = {
      granularities(), probes(), published_methods(), metrics(), ratios(), bits(),
      intervals(),     sinks(),  key_transforms(),    drift()};
  return experiments;
}

std::vector<const experiment*> select_experiments(std::string_view list) {
  const auto experiments = all_experiments();
  std::vector<bool> chosen(experiments.size());
  while (true) {
    const auto comma = list.find(',');
    const auto name = list.substr(0, comma);
    bool is_known = false;
    for (std::size_t i = 0; i < experiments.size(); ++i) {
      if (name == "all" || name == experiments[i].name) {
        chosen[i] = is_known = true;
      }
    }
    if (!is_known) {
      throw std::invalid_argument("unknown experiment '" + std::string(name) + "'; there are " +
                                  known_names());
    }
    if (comma == std::string_view::npos) {
      break;
    }
    list.remove_prefix(comma + 1);
  }
  std::vector<const experiment*> selected;
  for (std::size_t i = 0; i < experiments.size(); ++i) {
    if (chosen[i]) {
      selected.push_back(&experiments[i]);
    }
  }
  return selected;
}

policy_entry entry_of(const variant& variant) {
  policy_entry entry = find_policy(variant.policy);
  const auto fixed = [numbers = variant.numbers](policy_numbers given) {
    if (numbers.salient_ratio) {
      given.salient_ratio = numbers.salient_ratio;
    }
    if (numbers.recompress_interval) {
      given.recompress_interval = numbers.recompress_interval;
    }
    return given;
  };
  entry.name = variant.label;
  entry.make = [fixed, make = entry.make](const attention_shape& shape,
                                          const policy_numbers& numbers, int threads) {
    return make(shape, fixed(numbers), threads);
  };
  entry.paper_ratio = [fixed, paper_ratio = entry.paper_ratio](
                          const attention_shape& shape, const policy_numbers& numbers, int tokens) {
    return paper_ratio(shape, fixed(numbers), tokens);
  };
  return entry;
}

std::string spelled_policy(const std::string& policy, const variant_numbers& numbers) {
  std::string text = policy;
  if (numbers.salient_ratio) {
    text += ", ratio " + spelled(*numbers.salient_ratio);
  }
  if (numbers.recompress_interval) {
    text += ", interval " + std::to_string(*numbers.recompress_interval);
  }
  return text;
}

}  // namespace zipcache_llama

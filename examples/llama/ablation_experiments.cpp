#include "ablation_experiments.hpp"

#include <cstdio>
#include <initializer_list>
#include <stdexcept>
#include <utility>

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

variant_numbers with_cap(std::int64_t max_probes) {
  return {.max_probes = max_probes == 0 ? std::nullopt : std::optional(max_probes)};
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
                                  {"channelwise + channel-separable", "uniform_4bit"},
                                  {"16-bit keys + tokenwise", "keys_16_values_4_tokenwise"},
                                  {"16-bit keys + channel-separable", "keys_16_values_4"}})};
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

// Of 1024 tokens, 5 % recent and 5 % random ones are 52 of each kind.
experiment probe_caps() {
  experiment result{.name = "probe_caps",
                    .title = "Probes of ZipCache under a cap on the recent and on the random ones",
                    .x_title = "at most, of each kind",
                    .shows_change = true,
                    .is_in_pareto = false};
  for (const auto& [series, policy] : {named_policy{"recent + random", "paper"},
                                       {"recent only", "recent_probes"},
                                       {"random only", "random_probes"}}) {
    for (const std::int64_t cap : {0, 64, 32, 16, 8, 4, 2}) {
      const std::string row = cap == 0 ? "no cap" : std::to_string(cap);
      result.variants.push_back({.label = std::string(series) + ", " + row,
                                 .policy = policy,
                                 .numbers = with_cap(cap),
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

// Which tokens in 16 bits help 2-bit keys most.
experiment outliers() {
  return {.name = "outliers",
          .title = "OTT: which tokens stay in 16 bits",
          .x_title = "tokens in 16 bits",
          .variants = categories({{"none", "ott_untraced"},
                                  {"the first 35", "ott_sinks_35"},
                                  {"3 of 128 with the shortest keys", "ott"}})};
}

// Equal numbers of raised layers are equal numbers of bits, wherever they are.
experiment layers() {
  struct base_policy {
    const char* series;
    const char* base;
    const char* table;
  };
  constexpr raised_layers placements[] = {{.first = 1},
                                          {.middle = 1},
                                          {.last = 1},
                                          {.first = 2},
                                          {.first = 1, .last = 1},
                                          {.middle = 2},
                                          {.last = 2},
                                          {.first = 4},
                                          {.first = 2, .last = 2},
                                          {.middle = 4},
                                          {.last = 4}};
  experiment result{.name = "layers",
                    .title = "Layers at more bits than the others",
                    .x_title = "layers at more bits",
                    .shows_change = true,
                    .is_in_pareto = false};
  for (const auto& [series, base, table] :
       {base_policy{"paper, raised to 4 bits", "paper", "paper_layers"},
        base_policy{"k3v2, raised to k4v4", "k3v2", "k3v2_layers"},
        base_policy{"k2v2, raised to k4v2", "k2v2", "k2v2_layers"}}) {
    const auto add = [&](const std::string& row, const char* policy, variant_numbers numbers) {
      result.variants.push_back({.label = std::string(base) + ", " + row,
                                 .policy = policy,
                                 .numbers = numbers,
                                 .series = series,
                                 .category = row});
    };
    add("none", base, {});
    for (const auto& raised : placements) {
      add(spelled_layers(raised), table, {.raised = raised});
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

// The longer the record, the more tokens compete for the bits and the lower the odds of a guess.
experiment line_counts() {
  experiment result{.name = "lines",
                    .title = "Line retrieval by number of lines",
                    .x_title = "lines of a prompt (log)",
                    .x = chart_x::number,
                    .x_is_logarithmic = true,
                    .line_prompts = 60,
                    .reads_windows = false};
  for (const char* policy : {"uncompressed", "quarot_4bit", "uniform_4bit", "keys_4_values_2",
                             "rotated_keys_3_values_2", "paper"}) {
    for (const int lines : {4, 8, 16, 32, 64}) {
      result.variants.push_back({.label = std::string(policy) + ", " + std::to_string(lines),
                                 .policy = policy,
                                 .series = policy,
                                 .x = static_cast<double>(lines),
                                 .lines = lines});
    }
  }
  return result;
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
      granularities(), probes(), probe_caps(), published_methods(),
      metrics(),       ratios(), bits(),       layers(),
      intervals(),     sinks(),  outliers(),   key_transforms(),
      line_counts(),   drift()};
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
    if (numbers.max_probes) {
      given.max_probes = *numbers.max_probes;
    }
    if (numbers.raised) {
      given.raised = numbers.raised;
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

std::string spelled_layers(const raised_layers& raised) {
  std::string text;
  for (const auto& [place, count] :
       {std::pair{"first ", raised.first}, {"middle ", raised.middle}, {"last ", raised.last}}) {
    if (count > 0) {
      text += (text.empty() ? "" : ", ") + std::string(place) + std::to_string(count);
    }
  }
  return text.empty() ? "none" : text;
}

std::string spelled_policy(const std::string& policy, const variant_numbers& numbers) {
  std::string text = policy;
  if (numbers.salient_ratio) {
    text += ", ratio " + spelled(*numbers.salient_ratio);
  }
  if (numbers.recompress_interval) {
    text += ", interval " + std::to_string(*numbers.recompress_interval);
  }
  if (numbers.max_probes) {
    text += ", at most " + std::to_string(*numbers.max_probes) + " probes of each kind";
  }
  if (numbers.raised) {
    text += ", raised layers: " + spelled_layers(*numbers.raised);
  }
  return text;
}

}  // namespace zipcache_llama

// The experiments of `ablate` as data: which policies, with which numbers, against what.
#pragma once

#include <compare>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "policy_registry.hpp"

namespace zipcache_llama {

// What a chart of an experiment has along its x axis.
enum class chart_x {
  category,        // the variants by name
  number,          // variant::x
  bits_per_value,  // what the cache was measured to allocate
  decoded_tokens,  // how far behind the context: one line for each variant
};

// Numbers that a variant fixes; those left out are the policy's own.
struct variant_numbers {
  std::optional<double> salient_ratio = {};
  std::optional<std::int64_t> recompress_interval = {};
  std::optional<std::int64_t> max_probes = {};
  std::optional<raised_layers> raised = {};

  auto operator<=>(const variant_numbers&) const = default;
};

struct variant {
  std::string label;   // in its experiment the only one of this name
  std::string policy;  // its name in the registry
  variant_numbers numbers = {};
  std::string series =
      {};  // variants of one series have one colour, and one line where x is a number
  std::string category = {};  // the row it belongs to, where x is a category
  double x = 0;               // where x is a number
  int lines = 0;              // of a retrieval prompt; 0: as many as the command line says
};

struct experiment {
  std::string name;  // on the command line, and of its files
  std::string title;
  std::string x_title;
  chart_x x = chart_x::category;
  bool x_is_logarithmic = false;  // of chart_x::number
  std::vector<variant> variants = {};
  int generated = 0;          // tokens to decode; 0: as many as the command line says
  int line_prompts = 0;       // if it says any; 0: as many as it says
  bool reads_windows = true;  // whether windows of the text are part of it
  bool finds_lines = true;    // whether line retrieval is part of it
  // Whether the chart has the change of KL from the first variant of a series instead of KL: for
  // what is small beside the differences between windows.
  bool shows_change = false;
  bool is_in_pareto = true;  // whether its cells are in the chart of all, or would only crowd it
};

std::span<const experiment> all_experiments();

// Comma-separated names, or `all`; each once, in the order of all_experiments.
// @throws std::invalid_argument that lists the known names
std::vector<const experiment*> select_experiments(std::string_view list);

// The variant's policy under its label, with its numbers over those of the command line.
policy_entry entry_of(const variant& variant);

// "first 2, last 2"; "none" where there are none.
std::string spelled_layers(const raised_layers& raised);

// "paper, ratio 0.4": what a variant is, whatever its label.
std::string spelled_policy(const std::string& policy, const variant_numbers& numbers);

}  // namespace zipcache_llama

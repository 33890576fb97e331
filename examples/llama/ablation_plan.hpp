// From experiments to what has to be measured: each cell once, whoever asks for it, in batches of
// cells that share their windows.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "ablation_experiments.hpp"

namespace zipcache_llama {

// What the command line says about every cell.
struct ablation_settings {
  std::vector<int> contexts = {1024};  // tokens that are prefilled
  int generated = 400;                 // tokens that are decoded after them
  int windows = 10;
  int lines = 12;
  int line_prompts = 40;
  std::uint64_t seed = 0;
  std::string model = {};  // file name, without folders
  std::uint64_t model_bytes = 0;
  std::uint64_t text_bytes = 0;
};

// All that decides the numbers of a cell. Two cells with equal keys are one measurement.
struct cell_key {
  std::string policy;
  std::string policies;  // its type, so that a policy that has changed is measured anew
  variant_numbers numbers;
  int context = 0;  // this, generated and windows: 0 without windows
  int generated = 0;
  int windows = 0;
  int lines = 0;  // 0 without prompts
  int line_prompts = 0;
  std::uint64_t seed = 0;
  std::string model;
  std::uint64_t model_bytes = 0;
  std::uint64_t text_bytes = 0;

  auto operator<=>(const cell_key&) const = default;
};
cell_key key_of(const experiment& experiment, const variant& variant, int context,
                const ablation_settings& settings);

// Of an experiment without windows, one: 0.
std::vector<int> contexts_of(const experiment& experiment, const ablation_settings& settings);

struct ablation_cell {
  cell_key key;
  policy_entry entry;  // under the label of the first variant that asks for it
};

// Each cell once: context by context, in the order of the experiments. Where the settings leave
// nothing to measure, there is none.
std::vector<ablation_cell> plan_cells(const std::vector<const experiment*>& experiments,
                                      const ablation_settings& settings);

inline constexpr std::size_t max_batch = 6;  // cells: what an interruption can cost

// Cells of one context and length, in the order in which they come.
using ablation_batch = std::vector<const ablation_cell*>;
std::vector<ablation_batch> plan_batches(
    const std::vector<ablation_cell>& cells,
    const std::function<bool(const ablation_cell&)>& is_measured);

}  // namespace zipcache_llama

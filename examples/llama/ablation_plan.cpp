#include "ablation_plan.hpp"

#include <algorithm>
#include <set>
#include <tuple>

namespace zipcache_llama {
namespace {

// Cells that can be measured together.
auto material_of(const cell_key& key) {
  return std::tuple(key.context, key.generated, key.windows, key.lines, key.line_prompts);
}

// In as few batches as needed, and as even as possible.
void add_batches(const ablation_batch& cells, std::vector<ablation_batch>& batches) {
  const std::size_t count = (cells.size() + max_batch - 1) / max_batch;
  for (std::size_t i = 0; i < count; ++i) {
    const auto first = static_cast<std::ptrdiff_t>(cells.size() * i / count);
    const auto last = static_cast<std::ptrdiff_t>(cells.size() * (i + 1) / count);
    batches.emplace_back(cells.begin() + first, cells.begin() + last);
  }
}

}  // namespace

cell_key key_of(const experiment& experiment, const variant& variant, int context,
                const ablation_settings& settings) {
  const bool lines_wanted = experiment.finds_lines && settings.line_prompts > 0;
  const int line_prompts = !lines_wanted                 ? 0
                           : experiment.line_prompts > 0 ? experiment.line_prompts
                                                         : settings.line_prompts;
  const int lines = variant.lines > 0 ? variant.lines : settings.lines;
  const int generated = experiment.generated > 0 ? experiment.generated : settings.generated;
  const bool windows = experiment.reads_windows;
  return {.policy = variant.policy,
          .policies = find_policy(variant.policy).policies,
          .numbers = variant.numbers,
          .context = windows ? context : 0,
          .generated = windows ? generated : 0,
          .windows = windows ? settings.windows : 0,
          .lines = line_prompts > 0 ? lines : 0,
          .line_prompts = line_prompts,
          .seed = settings.seed,
          .model = settings.model,
          .model_bytes = settings.model_bytes,
          .text_bytes = settings.text_bytes};
}

std::vector<int> contexts_of(const experiment& experiment, const ablation_settings& settings) {
  return experiment.reads_windows ? settings.contexts : std::vector{0};
}

std::vector<ablation_cell> plan_cells(const std::vector<const experiment*>& experiments,
                                      const ablation_settings& settings) {
  std::vector<ablation_cell> cells;
  std::set<cell_key> planned;
  for (const int context : settings.contexts) {
    for (const auto* experiment : experiments) {
      for (const auto& variant : experiment->variants) {
        auto key = key_of(*experiment, variant, context, settings);
        const bool is_empty = key.windows == 0 && key.line_prompts == 0;
        if (!is_empty && planned.insert(key).second) {
          cells.push_back({std::move(key), entry_of(variant)});
        }
      }
    }
  }
  return cells;
}

std::vector<ablation_batch> plan_batches(
    const std::vector<ablation_cell>& cells,
    const std::function<bool(const ablation_cell&)>& is_measured) {
  std::vector<ablation_batch> groups;
  for (const auto& cell : cells) {
    if (is_measured(cell)) {
      continue;
    }
    const auto group = std::find_if(groups.begin(), groups.end(), [&](const auto& other) {
      return material_of(other[0]->key) == material_of(cell.key);
    });
    if (group == groups.end()) {
      groups.push_back({&cell});
    } else {
      group->push_back(&cell);
    }
  }
  std::vector<ablation_batch> batches;
  for (const auto& group : groups) {
    add_batches(group, batches);
  }
  return batches;
}

}  // namespace zipcache_llama

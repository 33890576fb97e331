// ablations.jsonl: one line for each measured cell, appended when its batch is finished. A line is
// whole when it ends in a newline; what an interruption left of the last one is no line yet.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "ablation_plan.hpp"
#include "comparison_report.hpp"
#include "statistics.hpp"

namespace zipcache_llama {

// Decoded tokens whose KL a cell keeps for itself.
inline constexpr int ablation_stretch = 100;

struct measured_cell {
  cell_key key;
  double bits_per_value = 0;  // 16 / ratio_allocated
  double bits_per_value_prefill = 0;
  double ratio_allocated = 0;
  std::optional<double> ratio_paper;
  double perplexity = 0;
  double perplexity_fp16 = 0;
  interval kl;  // not a number without windows, and so the others of theirs
  std::vector<double> kl_by_window;
  interval top1;
  std::optional<interval> retrieval;
  double retrieval_fp16 = 0;       // where there is retrieval
  std::vector<interval> kl_along;  // of each ablation_stretch
};

// The line of a cell, with its newline: the fields of `compare --json`, the key, the intervals, and
// every experiment that the cell is part of.
std::string record_line(const ablation_cell& cell, const policy_result& result,
                        const policy_result& reference, const report_settings& settings,
                        const ablation_settings& ablation);

struct ablation_records {
  std::map<cell_key, measured_cell> cells;  // of equal ones the last
  std::uintmax_t whole_bytes = 0;           // of the lines that are whole
  bool is_torn = false;                     // something follows them
};

// A file that is not there has no records.
// @throws std::runtime_error naming file and line if a whole line is not a cell
ablation_records read_records(const std::filesystem::path& path);

}  // namespace zipcache_llama

// What `ablate` writes about measured cells: a table and a chart for each experiment, and one chart
// of all cells.
#pragma once

#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "ablation_plan.hpp"
#include "ablation_record.hpp"

namespace zipcache_llama {

using cell_map = std::map<cell_key, measured_cell>;

// A variant at a context, with what was measured.
struct experiment_row {
  const variant* what = nullptr;
  const measured_cell* cell = nullptr;
};
// Those that were measured: context by context, in the order of the variants.
std::vector<experiment_row> measured_rows(const experiment& experiment, const cell_map& cells,
                                          const ablation_settings& settings);

// One line for each row under a line of names; of an experiment along decoded tokens, one for each
// hundred. `kl_change` is the difference from the first variant of the series at the same context.
std::string experiment_csv(const experiment& experiment, std::span<const experiment_row> rows);

// @pre there are rows
std::string experiment_chart(const experiment& experiment, std::span<const experiment_row> rows);

// Indices of those that nobody beats in both, by rising bits. Of equal ones the first.
std::vector<std::size_t> pareto_front(std::span<const double> bits, std::span<const double> errors);

// KL against bits per value, of every planned cell of the first context that decodes as many tokens
// as the command line says; empty if there is none.
std::string pareto_chart(const std::vector<ablation_cell>& planned, const cell_map& cells,
                         const ablation_settings& settings);

// <experiment>.csv and <experiment>.svg in `folder`, and pareto.svg of all experiments that belong
// there, whether they are among `experiments` or not. An experiment without any measured cell has
// no files.
// @return what was written, one line of text for each experiment
// @throws std::runtime_error naming a file that cannot be written
std::string write_reports(const std::filesystem::path& folder,
                          const std::vector<const experiment*>& experiments, const cell_map& cells,
                          const ablation_settings& settings);

}  // namespace zipcache_llama

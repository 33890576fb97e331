#include "ablation_report.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <limits>
#include <numeric>

#include "output_file.hpp"
#include "svg_chart.hpp"

namespace zipcache_llama {
namespace {

constexpr const char* kl_title = "KL to 16 bits, nats a token (log)";
constexpr const char* bits_title = "allocated bits per value (log)";
constexpr const char* front_title = "no other has both fewer bits and a lower KL";
constexpr double not_measured = std::numeric_limits<double>::quiet_NaN();
constexpr interval no_interval = {not_measured, not_measured, not_measured};

std::string spelled(double value) {
  if (std::isnan(value)) {
    return "";
  }
  char text[32];
  std::snprintf(text, sizeof text, "%.9g", value);
  return text;
}

std::string quoted(const std::string& text) {
  if (text.find_first_of(",\"\n") == std::string::npos) {
    return text;
  }
  std::string result = "\"";
  for (const char c : text) {
    result += c == '"' ? std::string("\"\"") : std::string(1, c);
  }
  return result + '"';
}

std::string csv_line(const std::vector<std::string>& fields) {
  std::string line = quoted(fields.at(0));
  for (std::size_t i = 1; i < fields.size(); ++i) {
    line += ',';
    line += quoted(fields[i]);
  }
  return line + '\n';
}

// What the others of a series are compared with: its first variant, at the same context.
// @return null where that was not measured
const measured_cell* baseline_of(const experiment& experiment, std::span<const experiment_row> rows,
                                 const experiment_row& row) {
  const auto first =
      std::find_if(experiment.variants.begin(), experiment.variants.end(),
                   [&](const auto& variant) { return variant.series == row.what->series; });
  const auto baseline = std::find_if(rows.begin(), rows.end(), [&](const auto& other) {
    return other.what == &*first && other.cell->key.context == row.cell->key.context;
  });
  return baseline == rows.end() ? nullptr : baseline->cell;
}

// Of KL, paired over the windows: what they have in common cancels.
interval change_from(const measured_cell* baseline, const measured_cell& cell) {
  if (baseline == nullptr || cell.kl_by_window.empty()) {
    return no_interval;
  }
  return paired_difference_interval(cell.kl_by_window, baseline->kl_by_window, cell.key.seed);
}

std::string csv_row(const experiment& experiment, const experiment_row& row, const std::string& x,
                    const interval& kl, const interval& change) {
  const auto& cell = *row.cell;
  const auto& numbers = cell.key.numbers;
  const interval retrieval = cell.retrieval.value_or(no_interval);
  return csv_line({experiment.name,
                   row.what->label,
                   row.what->series,
                   x,
                   std::to_string(cell.key.context),
                   std::to_string(cell.key.generated),
                   cell.key.policy,
                   numbers.salient_ratio ? spelled(*numbers.salient_ratio) : "",
                   numbers.recompress_interval ? std::to_string(*numbers.recompress_interval) : "",
                   numbers.max_probes ? std::to_string(*numbers.max_probes) : "",
                   numbers.raised ? spelled_layers(*numbers.raised) : "",
                   spelled(cell.bits_per_value),
                   spelled(cell.bits_per_value_prefill),
                   spelled(cell.ratio_allocated),
                   spelled(cell.ratio_paper.value_or(not_measured)),
                   spelled(kl.mean),
                   spelled(kl.low),
                   spelled(kl.high),
                   spelled(change.mean),
                   spelled(change.low),
                   spelled(change.high),
                   spelled(cell.top1.mean),
                   spelled(cell.top1.low),
                   spelled(cell.top1.high),
                   spelled(cell.perplexity),
                   spelled(cell.perplexity_fp16),
                   cell.retrieval ? std::to_string(cell.key.lines) : "",
                   spelled(retrieval.mean),
                   spelled(retrieval.low),
                   spelled(retrieval.high),
                   spelled(cell.retrieval ? cell.retrieval_fp16 : not_measured)});
}

std::string x_of(const experiment& experiment, const experiment_row& row) {
  switch (experiment.x) {
    case chart_x::category:
      return row.what->category;
    case chart_x::number:
      return spelled(row.what->x);
    default:
      return spelled(row.cell->bits_per_value);
  }
}

double stretch_end(const measured_cell& cell, std::size_t stretch) {
  return std::min(static_cast<double>(stretch + 1) * ablation_stretch,
                  static_cast<double>(cell.key.generated));
}

// What a chart shows of a cell.
struct quantity {
  chart_axis axis;
  std::function<chart_value(const measured_cell&)> of;
};

constexpr chart_value no_value = {not_measured, not_measured, not_measured};

chart_value in_percent(const interval& share) {
  return {100 * share.mean, 100 * share.low, 100 * share.high};
}

quantity kl_quantity() {
  return {{kl_title, true}, [](const measured_cell& cell) {
            return chart_value{cell.kl.mean, cell.kl.low, cell.kl.high};
          }};
}
// @param experiment, rows  outlive the quantity
quantity change_quantity(const experiment& experiment, std::span<const experiment_row> rows) {
  return {{"change of KL, %"}, [&experiment, rows](const measured_cell& cell) {
            const auto row = std::find_if(rows.begin(), rows.end(),
                                          [&](const auto& other) { return other.cell == &cell; });
            const auto* baseline = baseline_of(experiment, rows, *row);
            const auto change = change_from(baseline, cell);
            const double unit = baseline == nullptr ? not_measured : 1 / baseline->kl.mean;
            return in_percent({unit * change.mean, unit * change.low, unit * change.high});
          }};
}
quantity bits_quantity() {
  return {{"allocated bits per value"}, [](const measured_cell& cell) {
            return chart_value{cell.bits_per_value, cell.bits_per_value, cell.bits_per_value};
          }};
}
// The prompts are the same at every context, so it is shown at one.
quantity retrieval_quantity(int context) {
  return {{"lines found, %"}, [context](const measured_cell& cell) {
            return cell.retrieval && cell.key.context == context ? in_percent(*cell.retrieval)
                                                                 : no_value;
          }};
}
quantity top1_quantity() {
  return {{"top-1 agreement, %"}, [](const measured_cell& cell) { return in_percent(cell.top1); }};
}

// @pre there are rows
std::vector<quantity> quantities(const experiment& experiment,
                                 std::span<const experiment_row> rows) {
  const bool found_lines =
      std::any_of(rows.begin(), rows.end(), [](const auto& row) { return row.cell->retrieval; });
  const auto context = rows[0].cell->key.context;
  if (!experiment.reads_windows) {
    return {retrieval_quantity(context)};
  }
  if (experiment.shows_change) {
    return {change_quantity(experiment, rows), bits_quantity()};
  }
  return {kl_quantity(), found_lines ? retrieval_quantity(context) : top1_quantity()};
}

// What has one colour: a series of variants at one context.
std::string series_title(const experiment_row& row, bool has_contexts) {
  if (!has_contexts) {
    return row.what->series;
  }
  return row.what->series + (row.what->series.empty() ? "" : ", ") +
         std::to_string(row.cell->key.context) + " tokens";
}

template <class Value>
std::size_t index_of(std::vector<Value>& values, const Value& value) {
  const auto place = std::find(values.begin(), values.end(), value);
  const auto index = static_cast<std::size_t>(place - values.begin());
  if (place == values.end()) {
    values.push_back(value);
  }
  return index;
}

// @param key  of any of its cells
std::string subtitle_of(const cell_key& key, bool has_contexts, bool shows_lines,
                        bool has_line_counts) {
  std::string text = key.model;
  if (key.windows > 0) {
    text += "; " + std::to_string(key.windows) + " windows" +
            (has_contexts ? "" : " of " + std::to_string(key.context) + " tokens") + ", " +
            std::to_string(key.generated) + " more decoded";
  }
  if (shows_lines) {
    text += "; " + std::to_string(key.line_prompts) + " prompts" +
            (has_line_counts ? "" : " of " + std::to_string(key.lines) + " lines");
  }
  return text + "; bars: 95 % intervals";
}

std::string category_chart(const experiment& experiment, std::span<const experiment_row> rows,
                           const std::string& subtitle, bool has_contexts) {
  row_chart chart{experiment.title, subtitle, experiment.x_title, {}, {}, {}};
  for (const auto& row : rows) {
    index_of(chart.rows, row.what->category);
    index_of(chart.series, series_title(row, has_contexts));
  }
  for (const auto& quantity : quantities(experiment, rows)) {
    row_panel panel{quantity.axis,
                    std::vector(chart.series.size(), std::vector(chart.rows.size(), no_value))};
    for (const auto& row : rows) {
      panel.series[index_of(chart.series, series_title(row, has_contexts))]
                  [index_of(chart.rows, row.what->category)] = quantity.of(*row.cell);
    }
    chart.panels.push_back(std::move(panel));
  }
  return draw(chart);
}

std::string number_chart(const experiment& experiment, std::span<const experiment_row> rows,
                         const std::string& subtitle, bool has_contexts) {
  xy_chart chart{experiment.title, subtitle, {experiment.x_title, experiment.x_is_logarithmic}, {}};
  for (const auto& quantity : quantities(experiment, rows)) {
    xy_panel panel{quantity.axis, {}};
    std::vector<std::string> titles;
    for (const auto& row : rows) {
      const auto series = index_of(titles, series_title(row, has_contexts));
      panel.series.resize(titles.size());
      panel.series[series].title = titles[series];
      panel.series[series].points.push_back({row.what->x, quantity.of(*row.cell)});
    }
    chart.panels.push_back(std::move(panel));
  }
  return draw(chart);
}

std::string draw_panels(const std::string& title, const std::string& subtitle, const chart_axis& x,
                        std::vector<xy_panel> panels) {
  xy_chart chart;
  chart.title = title;
  chart.subtitle = subtitle;
  chart.x = x;
  chart.panels = std::move(panels);
  return draw(chart);
}

std::string token_chart(const experiment& experiment, std::span<const experiment_row> rows,
                        const std::string& subtitle, bool has_contexts) {
  xy_panel panel;
  panel.y = kl_quantity().axis;
  for (const auto& row : rows) {
    chart_series series;
    series.title = row.what->label +
                   (has_contexts ? ", " + std::to_string(row.cell->key.context) + " tokens" : "");
    for (std::size_t i = 0; i < row.cell->kl_along.size(); ++i) {
      const auto& kl = row.cell->kl_along[i];
      series.points.push_back({stretch_end(*row.cell, i), {kl.mean, kl.low, kl.high}});
    }
    panel.series.push_back(std::move(series));
  }
  return draw_panels(experiment.title, subtitle, {experiment.x_title}, {panel});
}

struct labelled_cell {
  std::string label;
  const measured_cell* cell;
};

// A quantity against bits: those on the front of bits and KL, and the others behind them in grey.
std::vector<chart_series> front_and_others(const std::vector<labelled_cell>& cells,
                                           const std::string& title, const quantity& shown) {
  std::vector<double> bits;
  std::vector<double> errors;
  for (const auto& [label, cell] : cells) {
    bits.push_back(cell->bits_per_value);
    errors.push_back(cell->kl.mean);
  }
  const auto front = pareto_front(bits, errors);
  std::vector<chart_series> series(2);
  series[0].title = title;
  series[0].is_joined = shown.axis.is_logarithmic;  // only there it is a bound
  series[1].is_joined = false;
  series[1].is_quiet = true;
  for (const std::size_t i : front) {
    series[0].points.push_back({bits[i], shown.of(*cells[i].cell), cells[i].label});
  }
  for (std::size_t i = 0; i < cells.size(); ++i) {
    if (std::find(front.begin(), front.end(), i) == front.end()) {
      series[1].points.push_back({bits[i], shown.of(*cells[i].cell), cells[i].label});
    }
  }
  return series;
}

std::string bits_chart(const experiment& experiment, std::span<const experiment_row> rows,
                       const std::string& subtitle, bool has_contexts) {
  std::vector<int> contexts;
  for (const auto& row : rows) {
    index_of(contexts, row.cell->key.context);
  }
  std::vector<xy_panel> panels;
  for (const auto& quantity : quantities(experiment, rows)) {
    xy_panel panel;
    panel.y = quantity.axis;
    for (const int context : contexts) {
      std::vector<labelled_cell> cells;
      for (const auto& row : rows) {
        if (row.cell->key.context == context) {
          cells.push_back({row.what->label, row.cell});
        }
      }
      const auto series = front_and_others(
          cells, has_contexts ? std::to_string(context) + " tokens" : std::string(front_title),
          quantity);
      panel.series.insert(panel.series.end(), series.begin(), series.end());
    }
    panels.push_back(std::move(panel));
  }
  return draw_panels(experiment.title, subtitle, {experiment.x_title + " (log)", true}, panels);
}

}  // namespace

std::vector<experiment_row> measured_rows(const experiment& experiment, const cell_map& cells,
                                          const ablation_settings& settings) {
  std::vector<experiment_row> rows;
  for (const int context : contexts_of(experiment, settings)) {
    for (const auto& variant : experiment.variants) {
      const auto cell = cells.find(key_of(experiment, variant, context, settings));
      if (cell != cells.end()) {
        rows.push_back({&variant, &cell->second});
      }
    }
  }
  return rows;
}

std::string experiment_csv(const experiment& experiment, std::span<const experiment_row> rows) {
  std::string text = csv_line({"experiment",
                               "label",
                               "series",
                               "x",
                               "context",
                               "generated",
                               "policy",
                               "salient_ratio",
                               "recompress_interval",
                               "max_probes",
                               "raised_layers",
                               "bits_per_value",
                               "bits_per_value_prefill",
                               "ratio_allocated",
                               "ratio_paper",
                               "kl_mean",
                               "kl_low",
                               "kl_high",
                               "kl_change",
                               "kl_change_low",
                               "kl_change_high",
                               "top1_agreement",
                               "top1_low",
                               "top1_high",
                               "perplexity",
                               "perplexity_fp16",
                               "lines",
                               "retrieval_accuracy",
                               "retrieval_low",
                               "retrieval_high",
                               "retrieval_accuracy_fp16"});
  for (const auto& row : rows) {
    if (experiment.x != chart_x::decoded_tokens) {
      text += csv_row(experiment, row, x_of(experiment, row), row.cell->kl,
                      change_from(baseline_of(experiment, rows, row), *row.cell));
      continue;
    }
    for (std::size_t i = 0; i < row.cell->kl_along.size(); ++i) {
      text += csv_row(experiment, row, spelled(stretch_end(*row.cell, i)), row.cell->kl_along[i],
                      no_interval);
    }
  }
  return text;
}

std::string experiment_chart(const experiment& experiment, std::span<const experiment_row> rows) {
  const auto& key = rows[0].cell->key;
  const auto varies = [&](int cell_key::*number) {
    return std::any_of(rows.begin(), rows.end(),
                       [&](const auto& row) { return row.cell->key.*number != key.*number; });
  };
  const bool has_contexts = varies(&cell_key::context);
  const bool shows_lines = key.line_prompts > 0 && !experiment.shows_change;
  const auto subtitle = subtitle_of(key, has_contexts, shows_lines, varies(&cell_key::lines));
  switch (experiment.x) {
    case chart_x::category:
      return category_chart(experiment, rows, subtitle, has_contexts);
    case chart_x::number:
      return number_chart(experiment, rows, subtitle, has_contexts);
    case chart_x::bits_per_value:
      return bits_chart(experiment, rows, subtitle, has_contexts);
    case chart_x::decoded_tokens:
      break;
  }
  return token_chart(experiment, rows, subtitle, has_contexts);
}

std::vector<std::size_t> pareto_front(std::span<const double> bits,
                                      std::span<const double> errors) {
  std::vector<std::size_t> order(bits.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::erase_if(order, [&](std::size_t i) { return std::isnan(bits[i]) || std::isnan(errors[i]); });
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return bits[a] < bits[b] || (bits[a] == bits[b] && errors[a] < errors[b]);
  });
  std::vector<std::size_t> front;
  for (const std::size_t i : order) {
    if (front.empty() || errors[i] < errors[front.back()]) {
      front.push_back(i);
    }
  }
  return front;
}

std::string pareto_chart(const std::vector<ablation_cell>& planned, const cell_map& cells,
                         const ablation_settings& settings) {
  std::vector<labelled_cell> shown;
  for (const auto& cell : planned) {
    const auto measured = cells.find(cell.key);
    if (cell.key.context == settings.contexts[0] && cell.key.generated == settings.generated &&
        measured != cells.end()) {
      shown.push_back({spelled_policy(cell.key.policy, cell.key.numbers), &measured->second});
    }
  }
  if (shown.empty()) {
    return "";
  }
  const auto kl = kl_quantity();
  xy_panel panel;
  panel.y = kl.axis;
  panel.series = front_and_others(shown, front_title, kl);
  return draw_panels("Divergence against size, " + std::to_string(shown.size()) + " caches",
                     subtitle_of(shown[0].cell->key, false, false, false), {bits_title, true},
                     {panel});
}

std::string write_reports(const std::filesystem::path& folder,
                          const std::vector<const experiment*>& experiments, const cell_map& cells,
                          const ablation_settings& settings) {
  std::string text;
  for (const auto* experiment : experiments) {
    const auto rows = measured_rows(*experiment, cells, settings);
    const std::size_t wanted =
        experiment->variants.size() * contexts_of(*experiment, settings).size();
    text += experiment->name + ": " + std::to_string(rows.size()) + " of " +
            std::to_string(wanted) + " cells measured";
    if (!rows.empty()) {
      output_file((folder / (experiment->name + ".csv")).string())
          .write(experiment_csv(*experiment, rows));
      output_file((folder / (experiment->name + ".svg")).string())
          .write(experiment_chart(*experiment, rows));
      text += ", " + experiment->name + ".csv, " + experiment->name + ".svg";
    }
    text += '\n';
  }
  std::vector<const experiment*> all;
  for (const auto& experiment : all_experiments()) {
    if (experiment.is_in_pareto) {
      all.push_back(&experiment);
    }
  }
  const auto pareto = pareto_chart(plan_cells(all, settings), cells, settings);
  if (!pareto.empty()) {
    output_file((folder / "pareto.svg").string()).write(pareto);
    text += "all that was measured at " + std::to_string(settings.contexts[0]) +
            " tokens: pareto.svg\n";
  }
  return text;
}

}  // namespace zipcache_llama

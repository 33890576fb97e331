// Charts of measured values with their intervals, as SVG files. What is not a number, or has no
// place on a logarithmic axis, is left out.
#pragma once

#include <string>
#include <vector>

namespace zipcache_llama {

struct chart_axis {
  std::string title;  // with its unit
  bool is_logarithmic = false;
};

// A value and the ends of its error bar; no bar where they are equal.
struct chart_value {
  double value = 0;
  double low = 0;
  double high = 0;
};

struct chart_point {
  double x = 0;
  chart_value y;
  std::string label = {};  // stands beside it, where there is room
};

struct chart_series {
  std::string title;  // in the legend; empty: not there
  std::vector<chart_point> points;
  bool is_joined = true;  // by a line, in the order of the points
  bool is_quiet = false;  // grey, with small labels: what the others stand out from
};

// Panels over one x axis, one below the other.
struct xy_panel {
  chart_axis y;
  std::vector<chart_series> series;
};
struct xy_chart {
  std::string title;
  std::string subtitle;
  chart_axis x;
  std::vector<xy_panel> panels;
};

// Panels beside each other, a row for each name: one dot a series.
struct row_panel {
  chart_axis x;
  std::vector<std::vector<chart_value>> series;  // [series][row]
};
struct row_chart {
  std::string title;
  std::string subtitle;
  std::string row_title;
  std::vector<std::string> rows;
  std::vector<std::string> series;  // titles; one that is empty is not in the legend
  std::vector<row_panel> panels;
};

// @throws std::invalid_argument if there is no panel, or no row, or a panel has other series or
// rows than the chart
std::string draw(const xy_chart& chart);
std::string draw(const row_chart& chart);

}  // namespace zipcache_llama

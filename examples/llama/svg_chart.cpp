#include "svg_chart.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string_view>

#include "svg_elements.hpp"

namespace zipcache_llama {
namespace {

using namespace svg;

constexpr double width = 1100;
constexpr double right = 28;
constexpr double top = 96;
constexpr double bottom = 62;
constexpr std::array<const char*, 7> colours = {"#0072b2", "#d55e00", "#009e73", "#cc79a7",
                                                "#e69f00", "#56b4e9", "#1f2933"};
constexpr const char* quiet_colour = "#9aa5b1";

std::string_view colour_of(std::size_t series) { return colours[series % colours.size()]; }

// About what a sans-serif face takes; a little more rather than less.
double text_width(std::string_view text, double font_size) {
  return 0.57 * font_size * static_cast<double>(text.size());
}

struct tick {
  double value;
  bool is_labelled;
};

// Where the values of an axis are on the page.
class chart_scale {
 public:
  // @param from, to  pixels of the ends; may fall
  chart_scale(const chart_axis& axis, const std::vector<double>& values, double from, double to)
      : is_logarithmic_(axis.is_logarithmic), from_(from), to_(to) {
    double low = std::numeric_limits<double>::infinity();
    double high = -low;
    for (const double value : values) {
      if (has_place(value)) {
        low = std::min(low, along(value));
        high = std::max(high, along(value));
      }
    }
    if (low > high) {
      low = 0;
      high = 1;
    }
    // A single value gets an axis too.
    const double least = is_logarithmic_ ? 0.3 : std::max(1e-9, 0.05 * std::abs(high));
    const double padding = std::max((high - low) * 0.06, (least - (high - low)) / 2);
    low_ = low - padding;
    high_ = high + padding;
  }

  bool has_place(double value) const {
    return std::isfinite(value) && (!is_logarithmic_ || value > 0);
  }
  double operator()(double value) const { return place(along(value)); }
  // An end of an error bar may lie outside, or have no place at all.
  double clamped(double value) const {
    return has_place(value) ? place(std::clamp(along(value), low_, high_)) : from_;
  }

  std::vector<tick> ticks() const { return is_logarithmic_ ? logarithmic_ticks() : linear_ticks(); }

 private:
  double along(double value) const { return is_logarithmic_ ? std::log10(value) : value; }
  double place(double position) const {
    return from_ + (to_ - from_) * (position - low_) / (high_ - low_);
  }

  std::vector<tick> linear_ticks() const {
    const double step = tick_step(high_ - low_, 5);
    std::vector<tick> result;
    for (double i = std::ceil(low_ / step); i * step <= high_; ++i) {
      result.push_back({i * step + 0.0, true});
    }
    return result;
  }

  // 1 to 9 of every decade; those that come first here are labelled first, as long as there is
  // room.
  std::vector<tick> logarithmic_ticks() const {
    const double room = from_ < to_ ? 44 : 24;  // pixels between labels: side by side, or stacked
    std::vector<tick> result;
    for (const double digit : {1.0, 2.0, 5.0, 3.0, 7.0, 1.5, 4.0, 1.2, 6.0, 8.0, 9.0}) {
      for (double decade = std::floor(low_); decade <= high_; ++decade) {
        const double value = digit * std::pow(10.0, decade);
        if (along(value) < low_ || along(value) > high_) {
          continue;
        }
        const bool is_labelled = std::none_of(result.begin(), result.end(), [&](const tick& other) {
          return other.is_labelled && std::abs((*this)(value) - (*this)(other.value)) < room;
        });
        if (is_labelled || digit == std::floor(digit)) {
          result.push_back({value, is_labelled});
        }
      }
    }
    return result;
  }

  bool is_logarithmic_;
  double from_;
  double to_;
  double low_ = 0;
  double high_ = 1;
};

std::string dot(double x, double y, std::string_view colour, double radius) {
  return joined({"<circle cx=\"", at(x), "\" cy=\"", at(y), "\" r=\"", at(radius), "\" fill=\"",
                 colour, "\" stroke=\"#ffffff\"/>\n"});
}

std::string heading(const std::string& title, const std::string& subtitle, double left) {
  return text_element(left, 32, "font-size=\"19\" font-weight=\"700\"", title) +
         text_element(left, 54, joined({"font-size=\"13\" fill=\"", quiet_ink, "\""}), subtitle);
}

std::string legend(const std::vector<std::string>& titles, double left) {
  std::string elements;
  double x = left;
  for (std::size_t i = 0; i < titles.size(); ++i) {
    if (!titles[i].empty()) {
      elements += swatch(x, 66, colour_of(i));
      elements += text_element(x + 18, 77, "font-size=\"13\"", titles[i]);
      x += 44 + text_width(titles[i], 13);
    }
  }
  return elements;
}

std::string draw_x_axis(const chart_axis& axis, const chart_scale& scale, double left, double end,
                        double panel_top, double base, bool is_labelled) {
  std::string elements;
  for (const auto& [value, labelled] : scale.ticks()) {
    const double x = scale(value);
    if (labelled) {
      elements += line_element(x, panel_top, x, base, faint_ink);
    }
    if (is_labelled) {
      elements += line_element(x, base, x, base + (labelled ? 6 : 3), ink);
      if (labelled) {
        elements +=
            text_element(x, base + 20, "font-size=\"12\" text-anchor=\"middle\"", number(value));
      }
    }
  }
  elements += line_element(left, base, end, base, ink);
  if (is_labelled) {
    elements += text_element((left + end) / 2, base + 44, "font-size=\"13\" text-anchor=\"middle\"",
                             axis.title);
  }
  return elements;
}

struct box {
  double left, top, right, bottom;

  bool overlaps(const box& other) const {
    return left < other.right && other.left < right && top < other.bottom && other.top < bottom;
  }
  bool is_inside(const box& other) const {
    return left >= other.left && right <= other.right && top >= other.top && bottom <= other.bottom;
  }
};

// Puts labels beside points where nothing is yet; far ones get a thin line to their point.
class label_placer {
 public:
  explicit label_placer(const box& area) : area_(area) {}

  void keep_clear(const box& taken) { taken_.push_back(taken); }
  void keep_clear_along(double x1, double y1, double x2, double y2) {
    const double steps = std::ceil(std::hypot(x2 - x1, y2 - y1) / 6) + 1;
    for (double i = 0; i <= steps; ++i) {
      const double x = x1 + (x2 - x1) * i / steps;
      const double y = y1 + (y2 - y1) * i / steps;
      taken_.push_back({x - 2, y - 2, x + 2, y + 2});
    }
  }

  std::string place(double x, double y, const std::string& label, double font_size,
                    std::string_view colour, bool is_bold) {
    const double label_width = text_width(label, font_size) * (is_bold ? 1.06 : 1);
    for (const double distance : {9.0, 15.0, 24.0, 36.0, 50.0, 66.0, 84.0, 104.0, 126.0, 150.0}) {
      for (const double angle : {0, -40, 40, 180, -140, 140, -90, 90, -65, 65, -115, 115}) {
        const double radians = angle * 3.14159265358979 / 180;
        const double across = std::cos(radians);
        const double centre_x = x + across * distance;
        const double centre_y = y + std::sin(radians) * distance;
        const double left =
            centre_x - label_width * (0.5 - 0.5 * std::clamp(across * 2, -1.0, 1.0));
        const box candidate = {left, centre_y - font_size * 0.6, left + label_width,
                               centre_y + font_size * 0.6};
        if (candidate.is_inside(area_) && is_free(candidate)) {
          taken_.push_back(candidate);
          return draw_label(x, y, centre_x, centre_y, distance, candidate, label, font_size, colour,
                            is_bold);
        }
      }
    }
    return "";  // no room: the tables have it
  }

 private:
  bool is_free(const box& candidate) const {
    return std::none_of(taken_.begin(), taken_.end(),
                        [&](const box& taken) { return candidate.overlaps(taken); });
  }

  std::string draw_label(double x, double y, double centre_x, double centre_y, double distance,
                         const box& place, const std::string& label, double font_size,
                         std::string_view colour, bool is_bold) {
    std::string elements;
    if (distance > 20) {
      const double end_x = std::clamp(centre_x, place.left, place.right);
      const double end_y = std::clamp(centre_y, place.top, place.bottom);
      elements += line_element(x, y, end_x, end_y, quiet_colour, 0.6);
      keep_clear_along(x, y, end_x, end_y);
    }
    return elements + text_element(place.left, place.bottom - font_size * 0.27,
                                   joined({"font-size=\"", number(font_size), "\" fill=\"", colour,
                                           "\"", is_bold ? " font-weight=\"600\"" : ""}),
                                   label);
  }

  box area_;
  std::vector<box> taken_;
};

// One panel of an xy_chart: its frame, lines, error bars, dots and labels.
class xy_panel_drawing {
 public:
  xy_panel_drawing(const xy_panel& panel, const chart_scale& x, double left, double panel_top,
                   double base)
      : panel_(panel),
        x_(x),
        y_(panel.y, values_of(panel), base, panel_top),
        labels_({left + 2, panel_top, width - 4, base - 2}),
        left_(left),
        top_(panel_top),
        base_(base) {}

  std::string draw() {
    std::string elements = draw_y_axis();
    for (std::size_t i = 0; i < panel_.series.size(); ++i) {
      elements += draw_line(panel_.series[i], colour_at(i));
    }
    for (const bool quiet : {true, false}) {
      for (std::size_t i = 0; i < panel_.series.size(); ++i) {
        if (panel_.series[i].is_quiet == quiet) {
          elements += draw_points(panel_.series[i], colour_at(i));
        }
      }
    }
    for (const bool quiet : {false, true}) {
      for (std::size_t i = 0; i < panel_.series.size(); ++i) {
        if (panel_.series[i].is_quiet == quiet) {
          elements += draw_labels(panel_.series[i]);
        }
      }
    }
    return elements;
  }

 private:
  static std::vector<double> values_of(const xy_panel& panel) {
    std::vector<double> values;
    for (const auto& series : panel.series) {
      for (const auto& point : series.points) {
        values.insert(values.end(), {point.y.value, point.y.low, point.y.high});
      }
    }
    return values;
  }

  std::string_view colour_at(std::size_t series) const {
    return panel_.series[series].is_quiet ? quiet_colour : colour_of(series);
  }
  bool is_shown(const chart_point& point) const {
    return x_.has_place(point.x) && y_.has_place(point.y.value);
  }

  std::string draw_y_axis() const {
    std::string elements;
    for (const auto& [value, labelled] : y_.ticks()) {
      const double y = y_(value);
      if (labelled) {
        elements += line_element(left_, y, width - right, y, faint_ink);
        elements +=
            text_element(left_ - 9, y + 4, "font-size=\"12\" text-anchor=\"end\"", number(value));
      }
      elements += line_element(left_ - (labelled ? 6 : 3), y, left_, y, ink);
    }
    return elements + line_element(left_, top_, left_, base_, ink) +
           upright_text_element(22, (top_ + base_) / 2, panel_.y.title);
  }

  std::string draw_line(const chart_series& series, std::string_view colour) {
    std::string elements;
    const chart_point* previous = nullptr;
    for (const auto& point : series.points) {
      if (!series.is_joined || !is_shown(point)) {
        continue;
      }
      if (previous != nullptr) {
        elements += line_element(x_(previous->x), y_(previous->y.value), x_(point.x),
                                 y_(point.y.value), colour, 1.8);
        labels_.keep_clear_along(x_(previous->x), y_(previous->y.value), x_(point.x),
                                 y_(point.y.value));
      }
      previous = &point;
    }
    return elements;
  }

  std::string draw_points(const chart_series& series, std::string_view colour) {
    std::string elements;
    for (const auto& point : series.points) {
      if (!is_shown(point)) {
        continue;
      }
      const double x = x_(point.x);
      const double y = y_(point.y.value);
      if (point.y.low < point.y.high) {
        const double low = y_.clamped(point.y.low);
        const double high = y_.clamped(point.y.high);
        elements += line_element(x, low, x, high, colour, series.is_quiet ? 1 : 1.4);
        for (const double end : {low, high}) {
          elements += line_element(x - 3, end, x + 3, end, colour, series.is_quiet ? 1 : 1.4);
        }
        if (!series.is_quiet) {
          labels_.keep_clear_along(x, low, x, high);
        }
      }
      elements += dot(x, y, colour, series.is_quiet ? 4 : 5);
      labels_.keep_clear({x - 6, y - 6, x + 6, y + 6});
    }
    return elements;
  }

  std::string draw_labels(const chart_series& series) {
    std::string elements;
    for (const auto& point : series.points) {
      if (is_shown(point) && !point.label.empty()) {
        elements += labels_.place(x_(point.x), y_(point.y.value), point.label,
                                  series.is_quiet ? 10.5 : 12.5, series.is_quiet ? quiet_ink : ink,
                                  !series.is_quiet);
      }
    }
    return elements;
  }

  const xy_panel& panel_;
  const chart_scale& x_;
  chart_scale y_;
  label_placer labels_;
  double left_;
  double top_;
  double base_;
};

std::string draw_row_panel(const row_panel& panel, const row_chart& chart, double left, double end,
                           double row_height) {
  constexpr double series_gap = 13;
  std::vector<double> values;
  for (const auto& series : panel.series) {
    for (const auto& value : series) {
      values.insert(values.end(), {value.value, value.low, value.high});
    }
  }
  const chart_scale scale(panel.x, values, left, end);
  const double base = top + row_height * static_cast<double>(chart.rows.size());
  std::string elements = draw_x_axis(panel.x, scale, left, end, top, base, true);
  for (std::size_t i = 0; i < panel.series.size(); ++i) {
    const double offset =
        series_gap * (static_cast<double>(i) - static_cast<double>(panel.series.size() - 1) / 2);
    for (std::size_t row = 0; row < chart.rows.size(); ++row) {
      const auto& value = panel.series[i][row];
      if (!scale.has_place(value.value)) {
        continue;
      }
      const double y = top + row_height * (static_cast<double>(row) + 0.5) + offset;
      if (value.low < value.high) {
        const double low = scale.clamped(value.low);
        const double high = scale.clamped(value.high);
        elements += line_element(low, y, high, y, colour_of(i), 1.4);
        for (const double x : {low, high}) {
          elements += line_element(x, y - 3, x, y + 3, colour_of(i), 1.4);
        }
      }
      elements += dot(scale(value.value), y, colour_of(i), 5);
    }
  }
  return elements;
}

}  // namespace

std::string draw(const xy_chart& chart) {
  if (chart.panels.empty()) {
    throw std::invalid_argument("xy_chart: no panels");
  }
  constexpr double left = 86;
  constexpr double gap = 30;
  const auto count = static_cast<double>(chart.panels.size());
  const double panel_height = chart.panels.size() == 1 ? 700 : 320;
  const double height = top + count * panel_height + (count - 1) * gap + bottom;

  std::vector<double> xs;
  for (const auto& panel : chart.panels) {
    for (const auto& series : panel.series) {
      for (const auto& point : series.points) {
        xs.push_back(point.x);
      }
    }
  }
  const chart_scale x(chart.x, xs, left, width - right);
  std::vector<std::string> titles;
  for (const auto& series : chart.panels[0].series) {
    titles.push_back(series.title);
  }
  std::string elements = heading(chart.title, chart.subtitle, left) + legend(titles, left);
  double panel_top = top;
  for (const auto& panel : chart.panels) {
    const double base = panel_top + panel_height;
    elements += draw_x_axis(chart.x, x, left, width - right, panel_top, base,
                            &panel == &chart.panels.back());
    elements += xy_panel_drawing(panel, x, left, panel_top, base).draw();
    panel_top += panel_height + gap;
  }
  return document(width, height, elements);
}

std::string draw(const row_chart& chart) {
  if (chart.panels.empty() || chart.rows.empty()) {
    throw std::invalid_argument("row_chart: nothing to draw");
  }
  for (const auto& panel : chart.panels) {
    if (panel.series.size() != chart.series.size()) {
      throw std::invalid_argument("row_chart: a panel of other series");
    }
    for (const auto& series : panel.series) {
      if (series.size() != chart.rows.size()) {
        throw std::invalid_argument("row_chart: a series of other rows");
      }
    }
  }
  constexpr double margin = 28;
  constexpr double gap = 44;
  double left = text_width(chart.row_title, 13);
  for (const auto& row : chart.rows) {
    left = std::max(left, text_width(row, 13));
  }
  left += margin + 12;
  const double row_height = 30 + 13 * static_cast<double>(chart.series.size());
  const auto rows = static_cast<double>(chart.rows.size());
  const double height = top + rows * row_height + bottom;

  std::string elements = heading(chart.title, chart.subtitle, margin) + legend(chart.series, left);
  elements += text_element(
      left - 12, top - 10,
      joined({"font-size=\"13\" text-anchor=\"end\" fill=\"", quiet_ink, "\""}), chart.row_title);
  for (std::size_t row = 0; row < chart.rows.size(); ++row) {
    const double y = top + row_height * (static_cast<double>(row) + 0.5);
    elements += line_element(left, y, width - right, y, faint_ink);
    elements +=
        text_element(left - 12, y + 4, "font-size=\"13\" text-anchor=\"end\"", chart.rows[row]);
  }
  const auto count = static_cast<double>(chart.panels.size());
  const double panel_width = (width - right - left - gap * (count - 1)) / count;
  double panel_left = left;
  for (const auto& panel : chart.panels) {
    elements += draw_row_panel(panel, chart, panel_left, panel_left + panel_width, row_height);
    panel_left += panel_width + gap;
  }
  return document(width, height, elements);
}

}  // namespace zipcache_llama

#include "svg_plot.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <initializer_list>
#include <stdexcept>
#include <string_view>

namespace zipcache_llama {
namespace {

constexpr double width = 1100;
constexpr double left = 78;
constexpr double right = 24;
constexpr double top = 84;
constexpr double panel_height = 190;
constexpr double panel_gap = 46;
constexpr double bottom = 58;
constexpr double plot_width = width - left - right;

constexpr const char* regular_colour = "#9aa5b1";
constexpr const char* salient_colour = "#c2410c";
constexpr const char* ink = "#1f2933";
constexpr const char* faint_ink = "#e4e7eb";

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.6g", value);
  return text;
}

// Coordinates: a tenth of a pixel is enough and keeps the file small.
std::string at(double value) { return number(std::round(value * 10) / 10); }

std::string hundredths(double value) { return number(std::round(value * 100) / 100); }

std::string escaped(const std::string& text) {
  std::string result;
  for (const char c : text) {
    switch (c) {
      case '&': result += "&amp;"; break;
      case '<': result += "&lt;"; break;
      case '>': result += "&gt;"; break;
      case '"': result += "&quot;"; break;
      default: result += c;
    }
  }
  return result;
}

std::string joined(std::initializer_list<std::string_view> parts) {
  std::string result;
  for (const auto part : parts) {
    result += part;
  }
  return result;
}

std::string text_element(double x, double y, std::string_view attributes, const std::string& text) {
  return joined({"<text x=\"", at(x), "\" y=\"", at(y), "\" ", attributes, ">", escaped(text), "</text>\n"});
}

std::string line_element(double x1, double y1, double x2, double y2, std::string_view colour) {
  return joined({"<line x1=\"", at(x1), "\" y1=\"", at(y1), "\" x2=\"", at(x2), "\" y2=\"", at(y2), "\" stroke=\"",
                 colour, "\"/>\n"});
}

std::string swatch(double x, double y, std::string_view colour) {
  return joined({"<rect x=\"", at(x), "\" y=\"", at(y), "\" width=\"12\" height=\"12\" rx=\"2\" fill=\"", colour,
                 "\"/>\n"});
}

// The largest of 1, 2, 5 times a power of ten that gives at least `count` steps up to `extent`.
double tick_step(double extent, int count) {
  const double rough = extent / count;
  const double power = std::pow(10.0, std::floor(std::log10(rough)));
  for (const double factor : {5.0, 2.0}) {
    if (factor * power <= rough) {
      return factor * power;
    }
  }
  return power;
}

// All bars of one colour as a single path: 4096 tokens would be as many elements.
std::string bars(const saliency_panel& panel, bool salient, double base, double unit) {
  const double step = plot_width / static_cast<double>(panel.saliency.size());
  // Bars touch when there is no pixel to spare, and never get thinner than what can be seen.
  const double bar_width = std::max(step > 3 ? step * 0.8 : step, 0.6);
  std::string path;
  for (std::size_t token = 0; token < panel.saliency.size(); ++token) {
    const double height = static_cast<double>(panel.saliency[token]) * unit;
    if (panel.salient[token] != salient || !(height > 0) || !std::isfinite(height)) {
      continue;
    }
    const double x = left + static_cast<double>(token) * step + (step - bar_width) / 2;
    path += joined({"M", at(x), " ", at(base), "v", at(-height), "h", hundredths(bar_width), "v", at(height), "z"});
  }
  return joined({"<path d=\"", path, "\" fill=\"", salient ? salient_colour : regular_colour, "\"/>\n"});
}

std::string draw_panel(const saliency_panel& panel, double panel_top) {
  const double base = panel_top + panel_height;
  double largest = 0;
  for (const float value : panel.saliency) {
    largest = std::max(largest, std::isfinite(value) ? static_cast<double>(value) : 0.0);
  }
  if (largest <= 0) {
    largest = 1;
  }
  const double unit = panel_height / (largest * 1.05);
  const auto count = std::count(panel.salient.begin(), panel.salient.end(), true);

  std::string svg = text_element(left, panel_top - 10, "font-size=\"15\" font-weight=\"600\"",
                                 joined({panel.title, " (", std::to_string(count), " of ",
                                         std::to_string(panel.salient.size()), " tokens salient)"}));
  const double step = tick_step(largest, 3);
  for (int i = 0; i * step <= largest; ++i) {
    const double y = base - i * step * unit;
    svg += line_element(left, y, width - right, y, faint_ink);
    svg += text_element(left - 8, y + 4, "font-size=\"12\" text-anchor=\"end\"", number(i * step));
  }
  svg += bars(panel, false, base, unit);
  svg += bars(panel, true, base, unit);
  svg += line_element(left, base, width - right, base, ink);
  svg += line_element(left, panel_top, left, base, ink);
  const double middle = panel_top + panel_height / 2;
  svg += text_element(
      20, middle, joined({"font-size=\"13\" text-anchor=\"middle\" transform=\"rotate(-90 20 ", at(middle), ")\""}),
      "saliency");
  return svg;
}

std::string draw_token_axis(std::size_t num_tokens, double base) {
  std::string svg;
  const double step_width = plot_width / static_cast<double>(num_tokens);
  const double step = std::max(tick_step(static_cast<double>(num_tokens), 6), 1.0);
  for (double token = 0; token < static_cast<double>(num_tokens); token += step) {
    const double x = left + (token + 0.5) * step_width;
    svg += line_element(x, base, x, base + 5, ink);
    svg += text_element(x, base + 19, "font-size=\"12\" text-anchor=\"middle\"", number(token));
  }
  svg += text_element(left + plot_width / 2, base + 42, "font-size=\"13\" text-anchor=\"middle\"", "token position");
  return svg;
}

}  // namespace

std::string saliency_plot(const std::string& title, std::span<const saliency_panel> panels) {
  if (panels.empty() || panels[0].saliency.empty()) {
    throw std::invalid_argument("saliency_plot: nothing to draw");
  }
  const std::size_t num_tokens = panels[0].saliency.size();
  for (const auto& panel : panels) {
    if (panel.saliency.size() != num_tokens || panel.salient.size() != num_tokens) {
      throw std::invalid_argument("saliency_plot: panels of different length");
    }
  }
  const auto count = static_cast<double>(panels.size());
  const double height = top + count * panel_height + (count - 1) * panel_gap + bottom;

  std::string svg = joined({"<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"", at(width), "\" height=\"", at(height),
                            "\" viewBox=\"0 0 ", at(width), " ", at(height),
                            "\" font-family=\"Helvetica, Arial, 'DejaVu Sans', sans-serif\" fill=\"", ink, "\">\n"});
  svg += "<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n";
  svg += text_element(left, 34, "font-size=\"19\" font-weight=\"700\"", title);
  svg += swatch(width - right - 210, 23, salient_colour);
  svg += text_element(width - right - 192, 34, "font-size=\"13\"", "salient");
  svg += swatch(width - right - 110, 23, regular_colour);
  svg += text_element(width - right - 92, 34, "font-size=\"13\"", "regular");
  double panel_top = top;
  for (const auto& panel : panels) {
    svg += draw_panel(panel, panel_top);
    panel_top += panel_height + panel_gap;
  }
  svg += draw_token_axis(num_tokens, panel_top - panel_gap);
  return svg + "</svg>\n";
}

}  // namespace zipcache_llama

#include "svg_plot.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "svg_elements.hpp"

namespace zipcache_llama {
namespace {

using namespace svg;

constexpr double width = 1100;
constexpr double left = 78;
constexpr double right = 24;
constexpr double top = 88;
constexpr double panel_height = 190;
constexpr double panel_gap = 46;
constexpr double bottom = 58;
constexpr double plot_width = width - left - right;

constexpr const char* regular_colour = "#9aa5b1";
constexpr const char* salient_colour = "#c2410c";

// A token's height. Logarithmic: the first token of a text draws hundreds of times the attention of
// any other, and all structure would vanish beside it.
class saliency_scale {
 public:
  explicit saliency_scale(std::span<const float> saliency) {
    std::vector<double> decades;
    for (const float value : saliency) {
      if (std::isfinite(value) && value > 0) {
        decades.push_back(std::log10(static_cast<double>(value)));
      }
    }
    if (decades.empty()) {
      return;
    }
    // The lowest percent may fall below the axis.
    const auto lowest = decades.begin() + static_cast<std::ptrdiff_t>(decades.size() / 100);
    std::nth_element(decades.begin(), lowest, decades.end());
    low_ = std::floor(*lowest * 2) / 2;
    high_ = std::max(*std::max_element(decades.begin(), decades.end()), low_ + 0.5);
  }

  double low() const { return low_; }  // decades
  double high() const { return high_; }
  double height(double decade) const {
    return std::clamp((decade - low_) / (high_ - low_), 0.0, 1.0) * panel_height * 0.96;
  }

 private:
  double low_ = -1;
  double high_ = 0;
};

// All bars of one colour as a single path: 4096 tokens would be as many elements.
std::string bars(const saliency_panel& panel, bool salient, double base,
                 const saliency_scale& scale) {
  const double step = plot_width / static_cast<double>(panel.saliency.size());
  // Bars touch when there is no pixel to spare, and never get thinner than what can be seen.
  const double bar_width = std::max(step > 3 ? step * 0.8 : step, 0.6);
  std::string path;
  for (std::size_t token = 0; token < panel.saliency.size(); ++token) {
    const float value = panel.saliency[token];
    if (panel.salient[token] != salient || !(value > 0) || !std::isfinite(value)) {
      continue;
    }
    const double height = std::max(scale.height(std::log10(static_cast<double>(value))), 1.0);
    const double x = left + static_cast<double>(token) * step + (step - bar_width) / 2;
    path += joined({"M", at(x), " ", at(base), "v", at(-height), "h", hundredths(bar_width), "v",
                    at(height), "z"});
  }
  return joined(
      {"<path d=\"", path, "\" fill=\"", salient ? salient_colour : regular_colour, "\"/>\n"});
}

// "614 of 1024 tokens salient: 99, 80, 50 and 11 % of the quarters"
std::string count_salient(const std::vector<bool>& salient) {
  const auto count_in = [&](std::size_t first, std::size_t last) {
    return std::count(salient.begin() + static_cast<std::ptrdiff_t>(first),
                      salient.begin() + static_cast<std::ptrdiff_t>(last), true);
  };
  const std::size_t size = salient.size();
  std::string text =
      joined({std::to_string(count_in(0, size)), " of ", std::to_string(size), " tokens salient"});
  if (size < 4) {
    return text;
  }
  for (std::size_t quarter = 0; quarter < 4; ++quarter) {
    const std::size_t first = size * quarter / 4;
    const std::size_t last = size * (quarter + 1) / 4;
    const double share =
        100 * static_cast<double>(count_in(first, last)) / static_cast<double>(last - first);
    text += joined({quarter == 0   ? ": "
                    : quarter == 3 ? " and "
                                   : ", ",
                    number(std::round(share))});
  }
  return text + " % of the four quarters";
}

std::string draw_panel(const saliency_panel& panel, double panel_top) {
  const double base = panel_top + panel_height;
  const saliency_scale scale(panel.saliency);

  std::string svg =
      text_element(left, panel_top - 10, "font-size=\"15\" font-weight=\"600\"", panel.title);
  svg += text_element(width - right, panel_top - 10, "font-size=\"13\" text-anchor=\"end\"",
                      count_salient(panel.salient));
  for (double decade = std::ceil(scale.low()); decade <= scale.high(); ++decade) {
    const double y = base - scale.height(decade);
    svg += line_element(left, y, width - right, y, faint_ink);
    svg += text_element(left - 8, y + 4, "font-size=\"12\" text-anchor=\"end\"",
                        number(std::pow(10.0, decade)));
  }
  svg += bars(panel, false, base, scale);
  svg += bars(panel, true, base, scale);
  svg += line_element(left, base, width - right, base, ink);
  svg += line_element(left, panel_top, left, base, ink);
  const double middle = panel_top + panel_height / 2;
  svg += upright_text_element(20, middle, "saliency (log scale)");
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
  svg += text_element(left + plot_width / 2, base + 42, "font-size=\"13\" text-anchor=\"middle\"",
                      "token position");
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

  std::string svg;
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
  return document(width, height, svg);
}

}  // namespace zipcache_llama

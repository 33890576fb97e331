// The elements that the SVG files are made of, as text.
#pragma once

#include <cmath>
#include <cstdio>
#include <initializer_list>
#include <string>
#include <string_view>

namespace zipcache_llama::svg {

inline constexpr const char* ink = "#1f2933";
inline constexpr const char* quiet_ink = "#616e7c";
inline constexpr const char* faint_ink = "#e4e7eb";

inline std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.6g", value);
  return text;
}

// Coordinates: a tenth of a pixel is enough and keeps the file small.
inline std::string at(double value) { return number(std::round(value * 10) / 10); }
inline std::string hundredths(double value) { return number(std::round(value * 100) / 100); }

inline std::string escaped(std::string_view text) {
  std::string result;
  for (const char c : text) {
    switch (c) {
      case '&':
        result += "&amp;";
        break;
      case '<':
        result += "&lt;";
        break;
      case '>':
        result += "&gt;";
        break;
      case '"':
        result += "&quot;";
        break;
      default:
        result += c;
    }
  }
  return result;
}

inline std::string joined(std::initializer_list<std::string_view> parts) {
  std::string result;
  for (const auto part : parts) {
    result += part;
  }
  return result;
}

inline std::string text_element(double x, double y, std::string_view attributes,
                                std::string_view text) {
  return joined(
      {"<text x=\"", at(x), "\" y=\"", at(y), "\" ", attributes, ">", escaped(text), "</text>\n"});
}

// Reads from bottom to top, centred on the point.
inline std::string upright_text_element(double x, double y, std::string_view text) {
  return text_element(x, y,
                      joined({"font-size=\"13\" text-anchor=\"middle\" transform=\"rotate(-90 ",
                              at(x), " ", at(y), ")\""}),
                      text);
}

inline std::string line_element(double x1, double y1, double x2, double y2, std::string_view colour,
                                double width = 1) {
  return joined({"<line x1=\"", at(x1), "\" y1=\"", at(y1), "\" x2=\"", at(x2), "\" y2=\"", at(y2),
                 "\" stroke=\"", colour, "\"",
                 width == 1 ? "" : " stroke-width=\"" + hundredths(width) + "\"", "/>\n"});
}

inline std::string swatch(double x, double y, std::string_view colour) {
  return joined({"<rect x=\"", at(x), "\" y=\"", at(y),
                 "\" width=\"12\" height=\"12\" rx=\"2\" fill=\"", colour, "\"/>\n"});
}

// A whole file: `elements` on white.
inline std::string document(double width, double height, std::string_view elements) {
  return joined({"<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"", at(width), "\" height=\"",
                 at(height), "\" viewBox=\"0 0 ", at(width), " ", at(height),
                 "\" font-family=\"Helvetica, Arial, 'DejaVu Sans', sans-serif\" fill=\"", ink,
                 "\">\n", "<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n", elements,
                 "</svg>\n"});
}

// The largest of 1, 2, 5 times a power of ten that gives at least `count` steps up to `extent`.
inline double tick_step(double extent, int count) {
  const double rough = extent / count;
  const double power = std::pow(10.0, std::floor(std::log10(rough)));
  for (const double factor : {5.0, 2.0}) {
    if (factor * power <= rough) {
      return factor * power;
    }
  }
  return power;
}

}  // namespace zipcache_llama::svg

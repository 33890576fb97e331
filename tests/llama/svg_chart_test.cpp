#include "svg_chart.hpp"

#include <cmath>
#include <limits>
#include <regex>
#include <string>
#include <utility>
#include <vector>

#include "support/catch.hpp"

using namespace zipcache_llama;

namespace {

std::size_t count(const std::string& text, const std::string& part) {
  std::size_t found = 0;
  for (auto at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) {
    ++found;
  }
  return found;
}

std::vector<double> numbers(const std::string& svg, const std::string& pattern) {
  const std::regex expression(pattern);
  std::vector<double> values;
  for (std::sregex_iterator at(svg.begin(), svg.end(), expression), end; at != end; ++at) {
    values.push_back(std::stod((*at)[1]));
  }
  return values;
}

constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();

xy_chart one_panel(const chart_axis& x, const chart_axis& y, std::vector<chart_series> series) {
  xy_chart chart;
  chart.title = "title";
  chart.subtitle = "subtitle";
  chart.x = x;
  chart.panels.resize(1);
  chart.panels[0].y = y;
  chart.panels[0].series = std::move(series);
  return chart;
}

}  // namespace

TEST_CASE("svg chart: a dot for each value that has a place, its series in the legend",
          "[llama][svg]") {
  chart_series first{"one <&>", {{1, {0.1, 0.05, 0.2}, "a"}, {2, {0.2, 0.2, 0.2}, "b"}}};
  chart_series second{
      "two", {{1, {0, 0, 0}}, {2, {not_a_number, not_a_number, not_a_number}}, {3, {10, 1, 100}}}};
  const auto svg = draw(one_panel({"x, tokens"}, {"KL, nats", true}, {first, second}));
  CHECK(svg.starts_with("<svg "));
  CHECK(svg.ends_with("</svg>\n"));
  CHECK(svg.find("nan") == std::string::npos);
  CHECK(count(svg, "<circle") == 3);  // no place for 0 on a logarithmic axis
  for (const char* words : {">one &lt;&amp;&gt;<", ">two<", ">title<", ">subtitle<", ">x, tokens<",
                            ">KL, nats<", ">a<", ">b<", ">0.1<", ">100<"}) {
    CHECK(svg.find(words) != std::string::npos);
  }
  // More is higher, and further to the right.
  const auto heights = numbers(svg, "cy=\"([0-9.]+)\"");
  const auto places = numbers(svg, "cx=\"([0-9.]+)\"");
  CHECK((heights[0] > heights[1] && heights[1] > heights[2]));
  CHECK((places[0] < places[1] && places[1] < places[2]));
}

TEST_CASE("svg chart: labels of many points at one place do not overlap", "[llama][svg]") {
  chart_series series{"", {}, false, true};
  for (int i = 0; i < 12; ++i) {
    series.points.push_back({1.0 + 0.001 * i, {1, 1, 1}, "label_" + std::to_string(i)});
  }
  series.points.push_back({10, {10, 10, 10}});
  const auto svg = draw(one_panel({"x"}, {"y"}, {series}));
  const auto lefts = numbers(svg, "<text x=\"([0-9.]+)\"[^>]*>label_");
  const auto baselines = numbers(svg, "<text x=\"[0-9.]+\" y=\"([0-9.]+)\"[^>]*>label_");
  REQUIRE(lefts.size() == 12);
  for (std::size_t i = 0; i < lefts.size(); ++i) {
    for (std::size_t j = 0; j < i; ++j) {
      // 10.5 pixels a line, 7 letters of about half of that.
      CHECK((std::abs(lefts[i] - lefts[j]) > 37 || std::abs(baselines[i] - baselines[j]) > 10.5));
    }
  }
}

TEST_CASE("svg chart: rows with a dot for each series, what is not measured left out",
          "[llama][svg]") {
  row_panel panel;
  panel.x.is_logarithmic = true;
  panel.series = {{{1, 0.5, 2}, {2, 1, 4}},
                  {{3, 3, 3}, {not_a_number, not_a_number, not_a_number}}};
  row_chart chart;
  chart.rows = {"first row", "second row"};
  chart.series = {"a", "b"};
  chart.panels = {panel, panel};
  const auto svg = draw(chart);
  CHECK(count(svg, "<circle") == 6);
  CHECK(svg.find(">second row<") != std::string::npos);
  chart.panels[1].series.pop_back();
  CHECK_THROWS_AS(draw(chart), std::invalid_argument);
  chart.panels[1].series = {{{1, 1, 1}}, {{1, 1, 1}}};
  CHECK_THROWS_AS(draw(chart), std::invalid_argument);
  CHECK_THROWS_AS(draw(row_chart{}), std::invalid_argument);
  CHECK_THROWS_AS(draw(xy_chart{}), std::invalid_argument);
}

TEST_CASE("svg chart: one value, or none, gets an axis", "[llama][svg]") {
  for (const bool is_logarithmic : {false, true}) {
    for (const double value : {3.0, not_a_number}) {
      const chart_series series{"", {{value, {value, value, value}}}};
      const auto svg = draw(one_panel({"x", is_logarithmic}, {"y", is_logarithmic}, {series}));
      CHECK(count(svg, "<circle") == (value == 3 ? 1 : 0));
      CHECK(svg.find("nan") == std::string::npos);
      CHECK(svg.find("inf") == std::string::npos);
    }
  }
}

TEST_CASE("svg chart: labels of a logarithmic axis keep their distance, however wide it is",
          "[llama][svg]") {
  for (const double high : {1.3, 2.0, 9.0, 300.0, 1e7, 1e40}) {
    INFO(high);
    const auto svg = draw(one_panel({"x", true}, {"y"}, {{"", {{1, {}}, {high, {}}}}}));
    const auto places =
        numbers(svg, "<text x=\"([0-9.]+)\" y=\"[0-9.]+\" font-size=\"12\" text-anchor=\"middle");
    CHECK(places.size() >= 2);
    for (std::size_t i = 0; i < places.size(); ++i) {
      for (std::size_t j = 0; j < i; ++j) {
        CHECK(std::abs(places[i] - places[j]) > 43);
      }
    }
  }
}

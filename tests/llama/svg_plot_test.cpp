#include "svg_plot.hpp"

#include <limits>

#include "support/catch.hpp"

using namespace zipcache_llama;

TEST_CASE("svg plot: one path for each colour and panel, text escaped", "[llama][svg]") {
  const std::vector<float> values = {1.0F, 0.0F, 3.0F};
  const std::vector<bool> salient = {false, false, true};
  const std::vector<saliency_panel> panels = {{"accumulated <&>", values, salient},
                                              {"normalized", values, salient}};
  const auto svg = saliency_plot("title", panels);
  CHECK(svg.starts_with("<svg "));
  CHECK(svg.ends_with("</svg>\n"));
  CHECK(svg.find("accumulated &lt;&amp;&gt;") != std::string::npos);
  CHECK(svg.find("1 of 3 tokens salient<") != std::string::npos);
  std::size_t paths = 0;
  for (auto at = svg.find("<path"); at != std::string::npos; at = svg.find("<path", at + 1)) {
    ++paths;
  }
  CHECK(paths == 4);
}

TEST_CASE("svg plot: odd values give a plot, odd shapes an error", "[llama][svg]") {
  const std::vector<float> values = {std::numeric_limits<float>::quiet_NaN(), -1.0F,
                                     std::numeric_limits<float>::infinity()};
  const std::vector<bool> salient(3);
  CHECK(saliency_plot("", std::vector<saliency_panel>{{"a", values, salient}}).find("inf") ==
        std::string::npos);
  CHECK_THROWS_AS(saliency_plot("", {}), std::invalid_argument);
  CHECK_THROWS_AS(
      saliency_plot("", std::vector<saliency_panel>{{"a", values, std::vector<bool>(2)}}),
      std::invalid_argument);
}

TEST_CASE("svg plot: says where the salient tokens are", "[llama][svg]") {
  const std::vector<float> values(8, 1.0F);
  const std::vector<bool> salient = {true, true, true, false, false, false, false, true};
  CHECK(saliency_plot("", std::vector<saliency_panel>{{"a", values, salient}})
            .find("4 of 8 tokens salient: 100, 50, 0 and 50 % of the four quarters") !=
        std::string::npos);
}

// The saliency of every token as an SVG file: stacked panels over one token axis, salient tokens in
// another colour.
#pragma once

#include <span>
#include <string>
#include <vector>

namespace zipcache_llama {

struct saliency_panel {
  std::string title;                // "accumulated attention"
  std::span<const float> saliency;  // one value for each token, not negative
  std::vector<bool> salient;        // one flag for each token
};

// @param panels  all of the same, non-zero number of tokens
// @throws std::invalid_argument otherwise
std::string saliency_plot(const std::string& title, std::span<const saliency_panel> panels);

}  // namespace zipcache_llama

// The saliency of every token of a window at one layer, accumulated beside normalized, from all
// rows (the paper's figure 3 on the user's own text).
#pragma once

#include <string>
#include <vector>

#include "exact_attention.hpp"

namespace zipcache_llama {

class saliency_trace {
 public:
  // @param head  a KV head, or -1 for the mean over heads
  // @param salient_ratio  share of the tokens that are marked
  saliency_trace(const attention_shape& shape, int layer, int head, double salient_ratio);

  // For exact_attention::observe: looks at its layer of a prompt.
  void observe(const attended_layer& layer);

  // SVG. @pre the layer was observed
  std::string plot(const std::string& title) const;

 private:
  std::vector<float> scores(const attended_layer& layer, bool normalized) const;

  attention_shape shape_;
  int layer_;
  int head_;
  double salient_ratio_;
  std::vector<float> accumulated_;
  std::vector<float> normalized_;
};

}  // namespace zipcache_llama

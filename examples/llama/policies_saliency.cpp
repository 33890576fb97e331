// Ablations of how `paper` scores tokens.
#include "compressed_attention.hpp"

namespace zipcache_llama {

std::vector<policy_entry> saliency_policies() {
  using namespace zipcache;
  using presets::paper;
  std::vector<policy_entry> entries;
  entries.push_back(ablation<paper::with<accumulated_attention>>(
      "accumulated", "saliency by accumulated attention"));
  entries.push_back(ablation<paper::with<normalized_by_length>>(
      "normalized_by_length",
      "attention of the probes divided by all rows, as in the published code"));
  entries.push_back(ablation<paper::with<per_layer>>(
      "per_layer", "all heads of a layer share their salient tokens"));
  entries.push_back(ablation<paper::with<recency>>(
      "recency", "the newest tokens of a segment are the salient ones"));
  return entries;
}

}  // namespace zipcache_llama

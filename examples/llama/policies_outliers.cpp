// OTT with other tokens in 16 bits than those of short keys: what tracing them is worth.
#include "compressed_attention.hpp"

namespace zipcache_llama {

std::vector<policy_entry> outlier_policies() {
  using zipcache::sink_tokens;
  using zipcache::presets::ott;
  std::vector<policy_entry> entries;
  entries.push_back(
      ablation<ott::with<sink_tokens<0>>>("ott_untraced", "ott without tokens in 16 bits"));
  entries.push_back(ablation<ott::with<sink_tokens<35>>>(
      "ott_sinks_35", "ott, as many of the first tokens in 16 bits as it traces at most"));
  return entries;
}

}  // namespace zipcache_llama

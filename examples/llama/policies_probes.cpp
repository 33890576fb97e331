// Ablations of the query rows that `paper` looks at.
#include "compressed_attention.hpp"

namespace zipcache_llama {

std::vector<policy_entry> probe_policies() {
  using namespace zipcache;
  using presets::paper;
  std::vector<policy_entry> entries;
  entries.push_back(ablation<paper::with<all_probes>>("all_probes", "every row is a probe"));
  entries.push_back(ablation<paper::with<all_probes>::with<accumulated_attention>>(
      "accumulated_all_probes", "accumulated attention of every row, as MiKV scores"));
  entries.push_back(
      ablation<paper::with<recent_probes>>("recent_probes", "the last 10 % are the probes"));
  entries.push_back(
      ablation<paper::with<random_probes>>("random_probes", "a random 10 % are the probes"));
  return entries;
}

}  // namespace zipcache_llama

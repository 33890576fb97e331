// Ablations of `keys_4_values_2`: what each of its choices is worth.
#include "compressed_attention.hpp"

namespace zipcache_llama {

std::vector<policy_entry> design_policies() {
  using namespace zipcache;
  using ours = presets::keys_4_values_2;
  using rotated_keys = ours::with<keys<rotated<channelwise>, 4, 4>>;
  std::vector<policy_entry> entries;
  entries.push_back(ablation<ours::with<sink_tokens<0>>>("k4v2", "keys_4_values_2 without sinks"));
  entries.push_back(ablation<ours::with<sink_tokens<32>>>("k4v2_sinks_32", "with 32 sinks"));
  entries.push_back(
      ablation<rotated_keys>("k4v2_rotated_keys", "keys_4_values_2 with rotated keys"));
  entries.push_back(ablation<rotated_keys::with<values<rotated<tokenwise>, 2, 2>>>(
      "k4v2_rotated", "with keys and values rotated, values tokenwise"));
  entries.push_back(ablation<ours::with<keys<channelwise, 3, 3>>>("k3v2", "3-bit keys"));
  entries.push_back(ablation<ours::with<keys<channelwise, 2, 2>>>("k2v2", "2-bit keys"));
  entries.push_back(ablation<ours::with<keys<rotated<channelwise>, 2, 2>>>("k2v2_rotated",
                                                                           "2-bit keys, rotated"));
  // The paper's classes on one side only.
  using scored = presets::paper::with<sink_tokens<4>>;
  entries.push_back(ablation<scored::with<keys<channelwise, 4, 4>>>(
      "k4_values_by_saliency", "4-bit keys, values 4/2 bits by saliency, sinks"));
  return entries;
}

}  // namespace zipcache_llama

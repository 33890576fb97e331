// `keys_4_values_2` at other bits; k3v2 and k2v2 are in policies_design.cpp.
#include "compressed_attention.hpp"

namespace zipcache_llama {

std::vector<policy_entry> bits_policies() {
  using namespace zipcache;
  using ours = presets::keys_4_values_2;
  using values_3 = ours::with<values<compact_pairs<channel_separable_tokenwise>, 3, 3>>;
  std::vector<policy_entry> entries;
  entries.push_back(ablation<values_3::with<keys<channelwise, 3, 3>>>(
      "k3v3", "keys_4_values_2 with 3-bit keys and values"));
  entries.push_back(ablation<values_3>("k4v3", "keys_4_values_2 with 3-bit values"));
  entries.push_back(ablation<ours::with<values<compact_pairs<channel_separable_tokenwise>, 4, 4>>>(
      "k4v4", "keys_4_values_2 with 4-bit values"));
  entries.push_back(
      ablation<
          ours::with<keys<channelwise, 8, 8>>::with<values<channel_separable_tokenwise, 8, 8>>>(
          "k8v8", "keys_4_values_2 with 8-bit keys and values"));
  return entries;
}

}  // namespace zipcache_llama

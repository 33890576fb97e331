// Tables of two sets of policies, the richer one for some of the layers. Their names stand for
// themselves with the first two and the last two layers raised; experiments say others.
#include "compressed_attention.hpp"

namespace zipcache_llama {

std::vector<policy_entry> layer_policies() {
  using namespace zipcache;
  using presets::paper;
  using ours = presets::keys_4_values_2;
  using k2v2 = ours::with<keys<channelwise, 2, 2>>;
  using k3v2 = ours::with<keys<channelwise, 3, 3>>;
  using k4v4 = ours::with<values<compact_pairs<channel_separable_tokenwise>, 4, 4>>;
  std::vector<policy_entry> entries;
  entries.push_back(ablation<policy_table<paper, presets::uniform_4bit>>(
      "paper_layers", "paper, the first two and last two layers as uniform_4bit"));
  entries.push_back(ablation<policy_table<k3v2, k4v4>>(
      "k3v2_layers", "k3v2, the first two and last two layers as k4v4"));
  entries.push_back(ablation<policy_table<k2v2, ours>>(
      "k2v2_layers", "k2v2, the first two and last two layers as keys_4_values_2"));
  return entries;
}

}  // namespace zipcache_llama

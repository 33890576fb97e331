// The published methods whose quantizers are block codecs, and what is left of GEAR without its
// residual. Apart from policies_presets.cpp because
// every set of policies is a cache to compile.
#include "compressed_attention.hpp"

namespace zipcache_llama {

std::vector<policy_entry> codec_policies() {
  namespace presets = zipcache::presets;
  std::vector<policy_entry> entries;
  entries.push_back(preset<presets::kitty>(
      "kitty", "Kitty: 2 bits, 12.5 % of the key channels boosted to 4, 32 sinks"));
  entries.push_back(
      preset<presets::kitty_pro>("kitty_pro", "Kitty-Pro: 25 % of the key channels boosted"));
  entries.push_back(preset<presets::oaken>(
      "oaken",
      "Oaken: outer, middle and inner values in 5, 4 and 5 bits, thresholds of the segment"));
  entries.push_back(preset<presets::gear_l>(
      "gear_l", "GEAR-L: 2 bits in groups of 64 and a residual of rank 4 (2 while decoding)"));
  entries.push_back(preset<presets::gear>("gear", "GEAR: the same and 2 % outliers in 16 bits"));
  using zipcache::parameter_axis;
  using keys = zipcache::uniform_groups<parameter_axis::channel, 2, 64>;
  using values = zipcache::uniform_groups<parameter_axis::token, 2, 64>;
  using groups =
      presets::gear_l::with<zipcache::coded_keys<keys>>::with<zipcache::coded_values<values>>;
  entries.push_back(ablation<groups>("gear_groups", "gear_l without the residual"));
  // 2-bit keys of which each token has a scale, beside k2v2 and k2v2_rotated.
  using ours = presets::keys_4_values_2;
  using scaled = zipcache::token_scaled<zipcache::uniform_groups<parameter_axis::channel, 2, 1024>>;
  entries.push_back(ablation<ours::with<zipcache::coded_keys<scaled>>>(
      "k2v2_scaled", "keys_4_values_2 with 2-bit keys behind a scale for each token"));
  entries.push_back(ablation<ours::with<zipcache::coded_keys<zipcache::rotated<scaled>>>>(
      "k2v2_rotated_scaled", "the same with rotated keys"));
  return entries;
}

}  // namespace zipcache_llama

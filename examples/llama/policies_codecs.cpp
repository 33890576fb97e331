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
  return entries;
}

}  // namespace zipcache_llama

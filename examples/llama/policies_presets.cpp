// The published methods.
#include "compressed_attention.hpp"

namespace zipcache_llama {

std::vector<policy_entry> preset_policies() {
  namespace presets = zipcache::presets;
  // The reference: its numbers decide nothing but its speed.
  const auto own_numbers = [](policy_numbers& numbers) { numbers = {}; };
  // Its ratio is of the attention mass, not of the tokens.
  const auto mass_of_its_own = [](policy_numbers& numbers) { numbers.salient_ratio.reset(); };
  std::vector<policy_entry> entries;
  entries.push_back(
      preset<presets::uncompressed>("uncompressed", "16 bits, the reference", own_numbers));
  entries.push_back(
      preset<presets::paper>("paper", "ZipCache: 60 % of the tokens at 4 bits, the others at 2"));
  entries.push_back(preset<presets::mikv>(
      "mikv", "MiKV: accumulated attention, tokenwise keys and values, 4/2 bits"));
  entries.push_back(preset<presets::h2o>(
      "h2o", "H2O: 20 % heavy hitters and 20 % recent tokens, the others evicted"));
  entries.push_back(preset<presets::kivi_2bit>(
      "kivi_2bit", "KIVI: 2 bits in groups of 32, 128 recent tokens in 16"));
  entries.push_back(preset<presets::uniform_4bit>(
      "uniform_4bit", "the group layouts of paper, every token at 4 bits"));
  entries.push_back(preset<presets::keys_4_values_2>(
      "keys_4_values_2", "4-bit keys, 2-bit values, the first 4 tokens in 16 bits; no scores"));
  entries.push_back(preset<presets::rotated_keys_3_values_2>(
      "rotated_keys_3_values_2", "the same with 3-bit keys, channels rotated"));
  entries.push_back(preset<presets::kivi_2bit_sinks>("kivi_2bit_sinks",
                                                     "KIVI with the first 32 tokens in 16 bits"));
  entries.push_back(preset<presets::ott>(
      "ott", "OTT: KIVI's layouts, tokens of unusually short keys in 16 bits"));
  entries.push_back(preset<presets::zipvl>(
      "zipvl", "ZipVL: 4 bits for the tokens that hold 97.5 % of a layer's attention, 2 for others",
      mass_of_its_own));
  entries.push_back(preset<presets::zipvl_evicting>(
      "zipvl_evicting", "ZipVL, second version: the others are evicted", mass_of_its_own));
  entries.push_back(preset<presets::quarot_4bit>(
      "quarot_4bit", "QuaRot's cache: rotated channels, tokenwise, 4 bits"));
  return entries;
}

}  // namespace zipcache_llama

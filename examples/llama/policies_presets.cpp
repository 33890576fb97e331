// The published methods.
#include "compressed_attention.hpp"

namespace zipcache_llama {

std::vector<policy_entry> preset_policies() {
  namespace presets = zipcache::presets;
  // The reference: its numbers decide nothing but its speed.
  const auto own_numbers = [](policy_numbers& numbers) { numbers = {}; };
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
  return entries;
}

}  // namespace zipcache_llama

// The group layouts that the paper's Table 1 compares, every token at 4 bits. Its last row,
// channelwise keys with channel-separable values, is `uniform_4bit`.
#include "compressed_attention.hpp"

namespace zipcache_llama {

std::vector<policy_entry> granularity_policies() {
  using namespace zipcache;
  using presets::uniform_4bit;
  using tokenwise_values = uniform_4bit::with<values<tokenwise, 4, 4>>;
  std::vector<policy_entry> entries;
  entries.push_back(
      ablation<uniform_4bit::with<keys<groupwise<32>, 4, 4>>::with<values<groupwise<32>, 4, 4>>>(
          "uniform_groupwise", "uniform_4bit, keys and values in groups of 32 channels"));
  entries.push_back(ablation<tokenwise_values::with<keys<tokenwise, 4, 4>>>(
      "uniform_tokenwise", "uniform_4bit, keys and values tokenwise"));
  entries.push_back(
      ablation<tokenwise_values>("uniform_tokenwise_values", "uniform_4bit, values tokenwise"));
  // With exact keys, what is left is the error of the values.
  using exact_keys = uniform_4bit::with<keys<channelwise, 16, 16>>;
  entries.push_back(ablation<exact_keys>("keys_16_values_4", "uniform_4bit, keys in 16 bits"));
  entries.push_back(ablation<exact_keys::with<values<tokenwise, 4, 4>>>(
      "keys_16_values_4_tokenwise", "uniform_4bit, keys in 16 bits, values tokenwise"));
  return entries;
}

}  // namespace zipcache_llama

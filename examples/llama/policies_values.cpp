// Ablations of how `paper` quantizes.
#include "compressed_attention.hpp"

namespace zipcache_llama {

std::vector<policy_entry> value_policies() {
  using namespace zipcache;
  using presets::paper;
  std::vector<policy_entry> entries;
  entries.push_back(
      ablation<paper::with<values<tokenwise, 4, 2>>>("tokenwise_values", "values tokenwise"));
  entries.push_back(ablation<paper::with<values<groupwise<32>, 4, 2>>>(
      "groupwise_values", "values in groups of 32 channels"));
  entries.push_back(
      ablation<paper::with<keys<tokenwise, 4, 2>>>("tokenwise_keys", "keys tokenwise"));
  // With exact keys, what is left is the error of the values.
  using exact_keys = paper::with<keys<channelwise, 16, 16>>;
  entries.push_back(ablation<exact_keys>("keys_16", "keys in 16 bits"));
  entries.push_back(ablation<exact_keys::with<values<tokenwise, 4, 2>>>(
      "keys_16_tokenwise", "keys in 16 bits, values tokenwise"));
  entries.push_back(
      ablation<paper::with<sink_tokens<4>>>("sinks_4", "the first 4 tokens in 16 bits"));
  entries.push_back(
      ablation<paper>("interval_100", "a new segment every 100 tokens, as published",
                      [](policy_numbers& numbers) { numbers.recompress_interval = 100; }));
  return entries;
}

}  // namespace zipcache_llama

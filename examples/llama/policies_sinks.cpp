// How many of the first tokens stay in 16 bits. Others of these are in policies_values.cpp and
// policies_design.cpp.
#include "compressed_attention.hpp"

namespace zipcache_llama {

std::vector<policy_entry> sink_policies() {
  using namespace zipcache;
  using presets::paper;
  using ours = presets::keys_4_values_2;
  std::vector<policy_entry> entries;
  entries.push_back(ablation<paper::with<sink_tokens<1>>>("sinks_1", "the first token in 16 bits"));
  entries.push_back(
      ablation<paper::with<sink_tokens<16>>>("sinks_16", "the first 16 tokens in 16 bits"));
  entries.push_back(
      ablation<paper::with<sink_tokens<32>>>("sinks_32", "the first 32 tokens in 16 bits"));
  entries.push_back(
      ablation<ours::with<sink_tokens<1>>>("k4v2_sinks_1", "keys_4_values_2 with 1 sink"));
  entries.push_back(
      ablation<ours::with<sink_tokens<16>>>("k4v2_sinks_16", "keys_4_values_2 with 16 sinks"));
  return entries;
}

}  // namespace zipcache_llama

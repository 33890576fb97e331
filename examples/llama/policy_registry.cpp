#include "policy_registry.hpp"

#include <algorithm>
#include <iterator>
#include <stdexcept>

#include "compressed_attention.hpp"

namespace zipcache_llama {
namespace {

constexpr std::string_view claim_policies[] = {
    "paper",      "accumulated",           "tokenwise_values", "keys_16", "keys_16_tokenwise",
    "all_probes", "accumulated_all_probes"};

std::string known_names() {
  std::string names;
  for (const auto& entry : all_policies()) {
    names += (names.empty() ? "" : ", ") + entry.name;
  }
  return names;
}

bool is_in_group(const policy_entry& entry, std::string_view group) {
  if (group == "all") {
    return true;
  }
  if (group == "claims") {
    return std::find(std::begin(claim_policies), std::end(claim_policies), entry.name) !=
           std::end(claim_policies);
  }
  return (group == "presets" && entry.is_preset) || (group == "ablations" && !entry.is_preset);
}

}  // namespace

std::span<const policy_entry> all_policies() {
  static const std::vector<policy_entry> entries = [] {
    std::vector<policy_entry> all = preset_policies();
    for (auto&& group : {codec_policies(), saliency_policies(), probe_policies(), value_policies(),
                         design_policies(), granularity_policies(), bits_policies(),
                         sink_policies(), outlier_policies(), layer_policies()}) {
      all.insert(all.end(), group.begin(), group.end());
    }
    return all;
  }();
  return entries;
}

const policy_entry& find_policy(std::string_view name) {
  for (const auto& entry : all_policies()) {
    if (entry.name == name) {
      return entry;
    }
  }
  throw std::invalid_argument("unknown policy '" + std::string(name) + "'; there are " +
                              known_names());
}

std::vector<const policy_entry*> select_policies(std::string_view list) {
  const auto entries = all_policies();
  std::vector<bool> chosen(entries.size());
  chosen[0] = true;
  while (true) {
    const auto comma = list.find(',');
    const auto name = list.substr(0, comma);
    bool is_group = false;
    for (std::size_t i = 0; i < entries.size(); ++i) {
      if (is_in_group(entries[i], name)) {
        chosen[i] = is_group = true;
      }
    }
    if (!is_group) {
      chosen[static_cast<std::size_t>(&find_policy(name) - entries.data())] = true;
    }
    if (comma == std::string_view::npos) {
      break;
    }
    list.remove_prefix(comma + 1);
  }
  std::vector<const policy_entry*> selected;
  for (std::size_t i = 0; i < entries.size(); ++i) {
    if (chosen[i]) {
      selected.push_back(&entries[i]);
    }
  }
  return selected;
}

}  // namespace zipcache_llama

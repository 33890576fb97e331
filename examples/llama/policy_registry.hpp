// The cache policies by name. A policy is a type, and each is compiled once (policies_*.cpp); the
// commands choose among them at run time.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "policy_cache.hpp"

namespace zipcache_llama {

struct policy_entry {
  std::string name;      // on the command line
  std::string summary;   // what it is, or what it changes about `paper`
  std::string policies;  // its type, slot by slot
  bool is_preset = false;

  // @throws zipcache::argument_error for a number out of range or a head_dim that the policies
  // cannot take
  std::function<std::unique_ptr<policy_cache>(const attention_shape&, const policy_numbers&,
                                              int threads)>
      make;
  // The paper's formula for one sequence of `tokens`, compressed at once. None where the attention
  // decides how many tokens are salient, which the formula has to know.
  std::function<std::optional<double>(const attention_shape&, const policy_numbers&, int tokens)>
      paper_ratio;
};

// Presets first, then ablations. The first one is `uncompressed`, the reference.
std::span<const policy_entry> all_policies();

// @throws std::invalid_argument that lists the known names
const policy_entry& find_policy(std::string_view name);

// Comma-separated names, or the groups `presets`, `ablations`, `claims` (those that compare prints
// sentences about) and `all`. Each policy once, `uncompressed` always and first, the others in the
// order of the registry.
// @throws std::invalid_argument as find_policy, or for an empty list
std::vector<const policy_entry*> select_policies(std::string_view list);

}  // namespace zipcache_llama

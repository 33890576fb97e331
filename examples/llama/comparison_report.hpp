// What is printed about a comparison: the table, the claims in sentences, the JSON lines.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "comparison.hpp"
#include "statistics.hpp"

namespace zipcache_llama {

struct report_settings {
  attention_shape shape;
  policy_numbers numbers;
  int context = 0;
  int generated = 0;
  std::uint64_t seed = 0;  // of the bootstrap
};

// Wilson's, of the share of prompts whose number was right. @pre there were prompts
interval retrieval_interval(const policy_result& result);

// Each ends in a newline. Intervals are 95 %: bootstrap over windows, Wilson for line retrieval.
// @param results  the first is the reference
std::string comparison_table(std::span<const policy_result> results,
                             const report_settings& settings);

// Paired over windows, for each pair of policies that both were measured; empty if there is none.
std::string comparison_claims(std::span<const policy_result> results,
                              const report_settings& settings);

// One object a line. What was not measured is null.
std::string comparison_json(std::span<const policy_result> results,
                            const report_settings& settings);

}  // namespace zipcache_llama

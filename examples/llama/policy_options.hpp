// The numbers of a policy on the command line.
#pragma once

#include <CLI/CLI.hpp>

#include "policy_cache.hpp"

namespace zipcache_llama {

inline void add_policy_numbers(CLI::App& command, policy_numbers& numbers) {
  command.add_option("--ratio", numbers.salient_ratio, "share of salient tokens, 0 to 1")
      ->check(CLI::Range(0.0, 1.0));
  command
      .add_option("--interval", numbers.recompress_interval,
                  "new tokens that are compressed together (the paper: 100)")
      ->check(CLI::Range(1, 1 << 20));
  command
      .add_option("--recent", numbers.recent_window, "newest tokens that always stay in 16 bits")
      ->check(CLI::Range(0, 1 << 20));
  command.add_option("--max-probes", numbers.max_probes, "cap on the probes of each kind; 0: none")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
}

}  // namespace zipcache_llama

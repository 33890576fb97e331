// policies: the names that --policy and --policies take.
#include <cstdio>

#include "commands.hpp"
#include "policy_registry.hpp"

namespace zipcache_llama {

void add_policies_command(CLI::App& program) {
  auto* command = program.add_subcommand("policies", "list the cache policies");
  command->callback([] {
    for (const bool preset : {true, false}) {
      std::printf(preset ? "presets\n" : "\nablations: paper, but\n");
      for (const auto& entry : all_policies()) {
        if (entry.is_preset == preset) {
          std::printf("  %-24s%s\n", entry.name.c_str(), entry.summary.c_str());
        }
      }
    }
  });
}

}  // namespace zipcache_llama

// The subcommands of zipcache-llama. Each adds itself to the command line and runs when it is
// chosen; what it throws is reported by main.
#pragma once

#include <CLI/CLI.hpp>

namespace zipcache_llama {

void add_ablate_command(CLI::App& program);
void add_inspect_command(CLI::App& program);
void add_check_command(CLI::App& program);
void add_compare_command(CLI::App& program);
void add_generate_command(CLI::App& program);
void add_policies_command(CLI::App& program);

}  // namespace zipcache_llama

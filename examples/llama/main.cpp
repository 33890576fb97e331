// zipcache-llama: runs a Llama-architecture model from a GGUF file.
#include <cstdio>
#include <exception>
#include <new>

#include "commands.hpp"

int main(int argc, char** argv) {
  constexpr int usage_or_input_error = 2;
  CLI::App program("Runs a Llama-architecture model from a GGUF file.", "zipcache-llama");
  program.require_subcommand(1);
  zipcache_llama::add_generate_command(program);
  zipcache_llama::add_compare_command(program);
  zipcache_llama::add_ablate_command(program);
  zipcache_llama::add_policies_command(program);
  zipcache_llama::add_inspect_command(program);
  zipcache_llama::add_check_command(program);
  try {
    program.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return program.exit(error) == 0 ? 0 : usage_or_input_error;  // 0: --help
  } catch (const std::bad_alloc&) {
    std::fputs("zipcache-llama: not enough memory\n", stderr);
    return usage_or_input_error;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "zipcache-llama: %s\n", error.what());
    return usage_or_input_error;
  }
  return 0;
}

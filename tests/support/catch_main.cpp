// Catch2's implementation and main(), compiled once and linked into every test program.
#define CATCH_CONFIG_RUNNER  // for Catch2 2.x; 3.x brings its implementation as a library

#include <cstdio>

#include "support/catch.hpp"
#include "support/skip_reason.hpp"

int main(int argc, char* argv[]) {
  Catch::Session session;
  if (const int error = session.applyCommandLine(argc, argv); error != 0) return error;
  // Only runs are skipped: --help and the --list options are of use without a GPU as well.
  if (argc == 1 || argv[1][0] != '-') {
    if (const char* reason = zipcache_test::skip_reason()) {
      std::printf("skipped: %s\n", reason);
      return zipcache_test::skip_exit_code;
    }
  }
  // Catch2 returns the number of failures, which could be the skip code.
  return session.run() == 0 ? 0 : 1;
}

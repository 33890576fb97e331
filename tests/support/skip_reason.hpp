// Whether a test program can run on this machine at all. Each program links one definition of
// skip_reason: always_runs.cpp, or needs_gpu.cpp for tests that launch kernels.
#pragma once

namespace zipcache_test {

// Why the tests cannot run here, or nullptr where they can.
const char* skip_reason();

// The exit code that CTest counts as "skipped" (SKIP_RETURN_CODE in tests/CMakeLists.txt).
inline constexpr int skip_exit_code = 77;

}  // namespace zipcache_test

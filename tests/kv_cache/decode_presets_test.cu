// Decoding on CUDA against the CPU under the other presets whose attention runs on tensor cores.
#define ZIPCACHE_HEAD_DIMS 64

#include "decode_equality.cuh"

using namespace zipcache_test;
namespace presets = zipcache::presets;
using f16 = zipcache::half;

TEST_CASE("kv_cache: decoding on CUDA equals the CPU's under mikv", "[kv_cache][cuda]") {
  check_separated<f16, presets::mikv>({group_shape(4, 64), 300, 330});
}

TEST_CASE("kv_cache: decoding on CUDA equals the CPU's under h2o", "[kv_cache][cuda]") {
  check_separated<f16, presets::h2o>({group_shape(4, 64), 320, 330});
}

TEST_CASE("kv_cache: decoding on CUDA equals the CPU's under uniform_4bit", "[kv_cache][cuda]") {
  check_random<f16, presets::uniform_4bit>({group_shape(8, 64), 1000, 330});
}

TEST_CASE("kv_cache: decoding on CUDA equals the CPU's under keys_4_values_2", "[kv_cache][cuda]") {
  for (const int64_t prompt : {0, 1000})
    check_random<f16, presets::keys_4_values_2>({group_shape(4, 64), prompt, 330});
}

TEST_CASE("kv_cache: decoding on CUDA equals the CPU's under uncompressed", "[kv_cache][cuda]") {
  for (const int64_t prompt : {0, 1, 333})
    check_random<f16, presets::uncompressed>({group_shape(1, 64), prompt, 100});
}

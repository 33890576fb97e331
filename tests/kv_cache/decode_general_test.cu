// Decoding on CUDA against the CPU under policies that the general attention kernel serves, and at
// a head dimension that is no power of two.
#define ZIPCACHE_HEAD_DIMS 64, 80

#include "decode_equality.cuh"

using namespace zipcache_test;
namespace presets = zipcache::presets;
using f16 = zipcache::half;

TEST_CASE("kv_cache: decoding on CUDA equals the CPU's under kivi_2bit", "[kv_cache][cuda]") {
  for (const int64_t prompt : {1, 128, 500})
    check_random<f16, presets::kivi_2bit>({group_shape(4, 64), prompt, 200});
}

TEST_CASE("kv_cache: decoding on CUDA equals the CPU's at head_dim 80", "[kv_cache][cuda]") {
  check_separated<f16, presets::paper>({group_shape(4, 80), 200, 330});
}

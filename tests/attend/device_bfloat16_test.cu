// Attention on CUDA in bfloat16.
#define ZIPCACHE_HEAD_DIMS 64

#include "device_attention.cuh"

using namespace zipcache_test;
namespace presets = zipcache::presets;

TEMPLATE_TEST_CASE("attend: on CUDA within rounding of exact attention in bfloat16",
                   "[attend][cuda]", presets::paper, presets::uncompressed) {
  check_axes<zipcache::bfloat16, TestType>(64);
}

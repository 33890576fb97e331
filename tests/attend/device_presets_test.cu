// Attention on CUDA under the other presets.
#define ZIPCACHE_HEAD_DIMS 64

#include "device_attention.cuh"

using namespace zipcache_test;
namespace presets = zipcache::presets;

TEMPLATE_TEST_CASE("attend: on CUDA within rounding of exact attention under every preset",
                   "[attend][cuda]", presets::mikv, presets::h2o, presets::kivi_2bit,
                   presets::uniform_4bit::with<zipcache::sink_tokens<5>>, presets::uncompressed,
                   presets::keys_4_values_2) {
  check_axes<zipcache::half, TestType>(64);
}

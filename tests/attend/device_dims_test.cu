// Attention on CUDA at head dimensions that are no power of two, and the largest one.
#define ZIPCACHE_HEAD_DIMS 16, 80, 96, 112, 256

#include "device_attention.cuh"

using namespace zipcache_test;

TEST_CASE("attend: on CUDA within rounding of exact attention at any head dimension",
          "[attend][cuda]") {
  for (const int32_t head_dim : {16, 80, 96, 112, 256}) {
    for (const int32_t group : {1, 4, 7})
      check_device_attention<zipcache::half, zipcache::presets::paper>(
          {.head_dim = head_dim, .group = group, .decoded = 200});
  }
}

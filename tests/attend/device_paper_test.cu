// Attention on CUDA under the method's own policies, in half.
#define ZIPCACHE_HEAD_DIMS 64, 128

#include "device_attention.cuh"

using namespace zipcache_test;
using paper = zipcache::presets::paper;

TEST_CASE("attend: on CUDA within rounding of exact attention, whatever unused slots hold",
          "[attend][cuda]") {
  for (const int32_t head_dim : {64, 128}) check_axes<zipcache::half, paper>(head_dim);
}

TEST_CASE("attend: policies get the kernel that serves them", "[attend][cuda]") {
  namespace presets = zipcache::presets;
  REQUIRE(zipcache::attend_kernel_name<paper>() == std::string("tensor_core"));
  REQUIRE(zipcache::attend_kernel_name<presets::mikv>() == std::string("tensor_core"));
  REQUIRE(zipcache::attend_kernel_name<presets::h2o>() == std::string("tensor_core"));
  REQUIRE(zipcache::attend_kernel_name<presets::uniform_4bit>() == std::string("tensor_core"));
  REQUIRE(zipcache::attend_kernel_name<presets::keys_4_values_2>() == std::string("tensor_core"));
  REQUIRE(zipcache::attend_kernel_name<presets::uncompressed>() == std::string("tensor_core"));
  REQUIRE(zipcache::attend_kernel_name<presets::kivi_2bit>() == std::string("general"));
}

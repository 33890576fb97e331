// Attention on CUDA under the other presets.
#define ZIPCACHE_HEAD_DIMS 64

#include "device_attention.cuh"

using namespace zipcache_test;
namespace presets = zipcache::presets;

/// 4 and 2 bits with one group layout on both sides.
template <class Layout>
using everywhere = typename presets::paper::with<zipcache::keys<Layout, 4, 2>>::template with<
    zipcache::values<Layout, 4, 2>>;

TEMPLATE_TEST_CASE("attend: on CUDA within rounding of exact attention under every preset",
                   "[attend][cuda]", presets::mikv, presets::h2o, presets::kivi_2bit,
                   presets::uniform_4bit::with<zipcache::sink_tokens<5>>, presets::uncompressed,
                   presets::keys_4_values_2,
                   (everywhere<zipcache::compact_pairs<zipcache::tokenwise>>),
                   (everywhere<zipcache::channel_separable_tokenwise>)) {
  check_axes<zipcache::half, TestType>(64);
}

// Every number of bits and every group layout, for keys and values.
#include "store_equality.cuh"

using namespace zipcache_test;
using namespace zipcache;

template <class Keys, class Values>
using quantized =
    policies<Keys, Values, normalized_attention, per_kv_head, recent_and_random_probes,
             salient_share<60>, sink_tokens<0>, every_interval<160>>;

template <class Granularity, int SalientBits, int RegularBits>
using everywhere = quantized<keys<Granularity, SalientBits, RegularBits>,
                             values<Granularity, SalientBits, RegularBits>>;

TEMPLATE_TEST_CASE(
    "store: both backends write the same bytes at any number of bits", "[equality][store]",
    (quantized<keys<channelwise, 3, 1>, values<channel_separable_tokenwise, 1, 3>>),
    (quantized<keys<channelwise, 8, 16>, values<channel_separable_tokenwise, 16, 8>>),
    (everywhere<tokenwise, 8, 1>), (quantized<keys<channelwise, 0, 4>, values<tokenwise, 0, 2>>),
    (quantized<keys<compact_pairs<tokenwise>, 3, 1>,
               values<compact_pairs<channel_separable_tokenwise>, 1, 3>>)) {
  for (const int32_t head_dim : {16, 80, 128})
    check_store<TestType, zipcache::half>(prompt_shape<TestType>(333, head_dim));
  check_store<TestType, bfloat16>(prompt_shape<TestType>(100, 64, content::denormals));
}

TEMPLATE_TEST_CASE("store: both backends write the same bytes under any group layout",
                   "[equality][store]", (everywhere<channel_separable_tokenwise, 4, 2>),
                   (everywhere<channelwise_blocks, 3, 1>), (everywhere<groupwise<16>, 4, 2>),
                   (everywhere<channelwise, 2, 3>), (everywhere<compact_pairs<tokenwise>, 4, 2>)) {
  for (const int32_t head_dim : {16, 80, 256})
    check_store<TestType, zipcache::half>(prompt_shape<TestType>(333, head_dim));
  check_store<TestType, bfloat16>(prompt_shape<TestType>(65, 64, content::constant_channels));
  check_store<TestType, zipcache::half>(prompt_shape<TestType>(65, 64, content::extremes));
}

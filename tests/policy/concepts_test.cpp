// Each concept accepts the library's own policies and refuses one that lacks a single member.
#include <zipcache/policy/concepts.hpp>
#include <zipcache/quantize/magnitude_classes.hpp>

#include "support/catch.hpp"

using namespace zipcache;

// Not an unnamed namespace, where a member that is only looked for counts as unused.
namespace concepts_test {

struct no_role {
  static constexpr bool needs_probes = true;
  static float score(float sum, token_visibility) { return sum; }
  static std::string name() { return "no_role"; }
};
struct no_name {
  using role = saliency_role;
  static constexpr bool needs_probes = true;
  static float score(float sum, token_visibility) { return sum; }
};
struct scores_in_double {
  using role = saliency_role;
  static constexpr bool needs_probes = true;
  static double score(float sum, token_visibility) { return static_cast<double>(sum); }
  static std::string name() { return "double"; }
};
struct complete_metric : no_name {
  static std::string name() { return "complete"; }
};

// A layout whose parameters vary by token cannot keep them with the segment.
struct tokenwise_in_segment : tokenwise {
  static constexpr parameter_home home = parameter_home::segment;
};
struct channelwise_with_magnitudes : channelwise {
  static constexpr bool has_channel_magnitudes = true;
};
struct groups_with_magnitudes : groupwise<32> {
  static constexpr bool has_channel_magnitudes = true;
};

struct complete_codec {
  static constexpr int bits = 2;
  static block_size size(const block_shape&) { return {}; }
  template <class Storage>
  static void encode(const float*, const block_shape&, std::byte*) {}
  template <class Storage>
  static void decode(const std::byte*, const block_shape&, int64_t, int64_t, float*) {}
  static std::string name() { return "complete"; }
};
struct codec_of_one_size : complete_codec {
  static int64_t size(const block_shape&) { return 1; }
};
struct codec_without_range : complete_codec {
  template <class Storage>
  static void decode(const std::byte*, const block_shape&, float*) {}
};

}  // namespace concepts_test

using namespace concepts_test;

TEST_CASE("policy: a metric needs role, name and a float score", "[policy][concepts]") {
  CHECK(saliency_metric<complete_metric>);
  CHECK_FALSE(saliency_metric<no_role>);
  CHECK_FALSE(saliency_metric<no_name>);
  CHECK_FALSE(saliency_metric<scores_in_double>);
}

TEST_CASE("policy: the library's policies fill their own role and no other", "[policy][concepts]") {
  CHECK(key_quantizer<keys<channelwise, 4, 2>>);
  CHECK_FALSE(value_quantizer<keys<channelwise, 4, 2>>);
  CHECK(value_quantizer<values<tokenwise, 4, 2>>);
  CHECK_FALSE(key_quantizer<values<tokenwise, 4, 2>>);
  CHECK(saliency_metric<normalized_attention>);
  CHECK(saliency_metric<accumulated_attention>);
  CHECK(saliency_metric<normalized_by_length>);
  CHECK(saliency_metric<recency>);
  CHECK_FALSE(saliency_metric<per_layer>);
  CHECK(saliency_scope<per_kv_head>);
  CHECK(saliency_scope<per_layer>);
  CHECK(probe_strategy<all_probes>);
  CHECK(probe_strategy<recent_probes>);
  CHECK(probe_strategy<random_probes>);
  CHECK(probe_strategy<recent_and_random_probes>);
  CHECK(probe_strategy<given_probes>);
  CHECK(budget<salient_share<60>>);
  CHECK(budget<salient_count>);
  CHECK(budget<heavy_and_recent_share<40>>);
  CHECK(budget<all_salient>);
  CHECK(budget<all_regular>);
  CHECK_FALSE(budget<sink_tokens<4>>);
  CHECK(sink_policy<sink_tokens<4>>);
  CHECK(schedule<every_interval<160>>);
  CHECK(schedule<blocks_behind_window<32, 128>>);
}

TEST_CASE("policy: group layouts that attention could not fold are refused", "[policy][concepts]") {
  CHECK(group_layout<tokenwise>);
  CHECK(group_layout<groupwise<32>>);
  CHECK(group_layout<channelwise>);
  CHECK(group_layout<channelwise_blocks>);
  CHECK(group_layout<channel_separable_tokenwise>);
  CHECK(group_layout<groups_with_magnitudes>);
  CHECK_FALSE(group_layout<tokenwise_in_segment>);
  CHECK_FALSE(group_layout<channelwise_with_magnitudes>);
}

TEST_CASE("policy: a block codec needs bits, a size by purpose, encode and decode of a range",
          "[policy][concepts]") {
  CHECK(block_codec<complete_codec>);
  CHECK_FALSE(block_codec<codec_of_one_size>);
  CHECK_FALSE(block_codec<codec_without_range>);
  CHECK_FALSE(block_codec<tokenwise>);
  CHECK(block_codec<rotated<complete_codec>>);
  CHECK(key_quantizer<coded_keys<complete_codec>>);
  CHECK_FALSE(value_quantizer<coded_keys<complete_codec>>);
  CHECK(value_quantizer<coded_values<magnitude_classes<40, 60>>>);
  CHECK(codes_blocks<coded_keys<complete_codec>>);
  CHECK_FALSE(codes_blocks<keys<channelwise, 4, 2>>);
}

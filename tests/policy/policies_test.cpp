// The composer: slots, with<> and names.
#include <string>
#include <type_traits>

#include <zipcache/policy/policies.hpp>
#include <zipcache/policy/presets.hpp>

#include "support/catch.hpp"

using namespace zipcache;

namespace {

using paper = presets::paper;

/// Whether the slots of A and B are the same, in data-flow order.
template <class A, class B>
std::string same_slots() {
  const auto mark = [](bool same) { return same ? '=' : 'x'; };
  return {
      mark(std::is_same_v<typename A::key_quantizer_policy, typename B::key_quantizer_policy>),
      mark(std::is_same_v<typename A::value_quantizer_policy, typename B::value_quantizer_policy>),
      mark(std::is_same_v<typename A::saliency_policy, typename B::saliency_policy>),
      mark(std::is_same_v<typename A::scope_policy, typename B::scope_policy>),
      mark(std::is_same_v<typename A::probe_policy, typename B::probe_policy>),
      mark(std::is_same_v<typename A::budget_policy, typename B::budget_policy>),
      mark(std::is_same_v<typename A::sink_policy_type, typename B::sink_policy_type>),
      mark(std::is_same_v<typename A::schedule_policy, typename B::schedule_policy>)};
}

}  // namespace

TEST_CASE("policy: with<> replaces the slot whose role it names, and no other", "[policy]") {
  CHECK(same_slots<paper, paper::with<keys<tokenwise, 8, 3>>>() == "x=======");
  CHECK(same_slots<paper, paper::with<values<groupwise<32>, 4, 2>>>() == "=x======");
  CHECK(same_slots<paper, paper::with<accumulated_attention>>() == "==x=====");
  CHECK(same_slots<paper, paper::with<per_layer>>() == "===x====");
  CHECK(same_slots<paper, paper::with<all_probes>>() == "====x===");
  CHECK(same_slots<paper, paper::with<salient_count>>() == "=====x==");
  CHECK(same_slots<paper, paper::with<sink_tokens<4>>>() == "======x=");
  CHECK(same_slots<paper, paper::with<every_interval<100>>>() == "=======x");
}

TEST_CASE("policy: with<> puts in what it was given, and the order of two does not matter",
          "[policy]") {
  CHECK(std::is_same_v<paper::with<recency>::saliency_policy, recency>);
  CHECK(std::is_same_v<paper::with<recency>::with<all_probes>,
                       paper::with<all_probes>::with<recency>>);
  CHECK(std::is_same_v<paper::with<paper::saliency_policy>, paper>);
}

TEST_CASE("policy: the composed name says every slot", "[policy]") {
  CHECK(paper::name() ==
        "keys_channelwise_4_2/values_compact_channel_separable_4_2/normalized/per_kv_head/"
        "recent_and_random/share/sinks0/every160");
  CHECK(presets::kivi_2bit::name() ==
        "keys_channelwise_blocks_2_2/values_groupwise32_2_2/recency/per_kv_head/recent/"
        "all_regular/sinks0/blocks32_behind128");
  CHECK(presets::h2o::name() ==
        "keys_channelwise_16_0/values_tokenwise_16_0/accumulated/per_kv_head/all/"
        "heavy_and_recent/sinks0/every160");
}

TEST_CASE("policy: bits are those of the class and side", "[policy]") {
  using mixed = paper::with<keys<channelwise, 8, 3>>::with<values<tokenwise, 4, 1>>;
  CHECK(mixed::key_bits<token_class::salient> == 8);
  CHECK(mixed::key_bits<token_class::regular> == 3);
  CHECK(mixed::value_bits<token_class::salient> == 4);
  CHECK(mixed::value_bits<token_class::regular> == 1);
}

TEST_CASE("policy: zero bits evict a class", "[policy]") {
  CHECK_FALSE(presets::h2o::evicts<token_class::salient>);
  CHECK(presets::h2o::evicts<token_class::regular>);
  CHECK_FALSE(paper::evicts<token_class::regular>);
}

TEST_CASE("policy: probes are needed only where scores decide", "[policy]") {
  CHECK(paper::needs_probes);
  CHECK(presets::mikv::needs_probes);
  CHECK(presets::h2o::needs_probes);
  CHECK_FALSE(presets::uncompressed::needs_probes);
  CHECK_FALSE(presets::kivi_2bit::needs_probes);
  CHECK_FALSE(presets::uniform_4bit::needs_probes);
  CHECK_FALSE(paper::with<recency>::needs_probes);
  CHECK_FALSE(paper::with<salient_share<0>>::needs_probes);
}

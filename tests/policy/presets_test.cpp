// What each preset reproduces, stated once more in numbers.
#include <zipcache/policy/presets.hpp>

#include "support/catch.hpp"

using namespace zipcache;

namespace {

template <class P>
bool has_bits(int salient, int regular) {
  return P::template key_bits<token_class::salient> == salient &&
         P::template value_bits<token_class::salient> == salient &&
         P::template key_bits<token_class::regular> == regular &&
         P::template value_bits<token_class::regular> == regular;
}

}  // namespace

TEST_CASE("policy: the paper's preset is 60 % at 4 bits and the rest at 2", "[policy][presets]") {
  CHECK(has_bits<presets::paper>(4, 2));
  CHECK(presets::paper::budget_policy::default_ratio == 0.6);
  CHECK(std::is_same_v<presets::paper::key_quantizer_policy::granularity, channelwise>);
  CHECK(std::is_same_v<presets::paper::value_quantizer_policy::granularity,
                       compact_pairs<channel_separable_tokenwise>>);
}

TEST_CASE("policy: presets have the bits and shares of their papers", "[policy][presets]") {
  CHECK(has_bits<presets::uncompressed>(16, 16));
  CHECK(has_bits<presets::mikv>(4, 2));
  CHECK(has_bits<presets::h2o>(16, 0));
  CHECK(has_bits<presets::kivi_2bit>(2, 2));
  CHECK(has_bits<presets::uniform_4bit>(4, 4));
  CHECK(presets::mikv::budget_policy::default_ratio == 0.6);
  CHECK(presets::h2o::budget_policy::default_ratio == 0.4);
}

TEST_CASE("policy: the presets beside the paper's", "[policy][presets]") {
  using ours = presets::keys_4_values_2;
  CHECK(ours::key_bits<token_class::salient> == 4);
  CHECK(ours::value_bits<token_class::salient> == 2);
  CHECK(ours::sink_policy_type::count == 4);
  CHECK_FALSE(ours::needs_probes);
  using rotating = presets::rotated_keys_3_values_2;
  CHECK(is_rotated<rotating::key_quantizer_policy::granularity>);
  CHECK(rotating::key_bits<token_class::salient> == 3);
  CHECK(rotating::value_bits<token_class::salient> == 2);
  CHECK(presets::kivi_2bit_sinks::sink_policy_type::count == 32);
  CHECK(has_bits<presets::zipvl>(4, 2));
  CHECK(has_bits<presets::zipvl_evicting>(4, 0));
  CHECK(counts_by_mass<presets::zipvl::budget_policy>);
  CHECK(has_bits<presets::quarot_4bit>(4, 4));
}

TEST_CASE("policy: the presets of block codecs have the shares, ranks and windows of their papers",
          "[policy][presets]") {
  using kitty = presets::kitty;
  CHECK(kitty::key_quantizer_policy::granularity::num_boosted(128) == 16);
  CHECK(presets::kitty_pro::key_quantizer_policy::granularity::num_boosted(128) == 32);
  CHECK(kitty::key_quantizer_policy::granularity::page_tokens == 128);
  CHECK(kitty::value_bits<token_class::regular> == 2);
  CHECK(kitty::sink_policy_type::count == 32);
  CHECK(kitty::schedule_policy::default_interval == 128);
  using oaken = presets::oaken::value_quantizer_policy::granularity;
  CHECK(oaken::outer_per_end(1000) == 20);
  CHECK(oaken::num_inner(1000) == 60);
  CHECK(has_bits<presets::oaken>(4, 4));
  CHECK(has_bits<presets::gear>(2, 2));
  CHECK(presets::gear::schedule_policy::default_interval == 64);
  CHECK(presets::gear_l::key_quantizer_policy::name() == "channel_groups64_2bit_rank4_2");
  CHECK(presets::gear::value_quantizer_policy::name() ==
        "token_groups64_2bit_rank4_2_outliers20_by_token");
}

TEST_CASE("policy: KIVI keeps the newest 128 tokens and seals whole blocks of 32",
          "[policy][presets]") {
  using schedule = presets::kivi_2bit::schedule_policy;
  const schedule_options options{schedule::default_interval, schedule::default_recent};
  CHECK(schedule::sealed_by_prefill(100, options) == 0);
  CHECK(schedule::sealed_by_prefill(128 + 31, options) == 0);
  CHECK(schedule::sealed_by_prefill(128 + 32, options) == 32);
  CHECK(schedule::sealed_by_prefill(1000, options) == 864);
}

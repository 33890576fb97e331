// Published methods as sets of policies; each differs from the others in its arguments alone.
#pragma once

#include <zipcache/policy/policies.hpp>
#include <zipcache/quantize/boosted_channels.hpp>
#include <zipcache/quantize/low_rank.hpp>
#include <zipcache/quantize/magnitude_classes.hpp>
#include <zipcache/quantize/outliers_apart.hpp>
#include <zipcache/quantize/token_scaled.hpp>
#include <zipcache/quantize/uniform_groups.hpp>

namespace zipcache::presets {

/// ZipCache (He et al., NeurIPS 2024): channelwise keys, channel-separable tokenwise values (with
/// pairs of 12 bits where the paper has 32, for each head where it has one for all), 60 % salient
/// tokens at 4 bits by normalized attention of 5 % recent and 5 % random probes, the rest at 2. The
/// interval is 160 instead of the paper's 100 since 160 tokens fill tiles of 32 exactly at 60 % (96
/// + 64).
using paper =
    policies<keys<channelwise, 4, 2>, values<compact_pairs<channel_separable_tokenwise>, 4, 2>,
             normalized_attention, per_kv_head, recent_and_random_probes, salient_share<60>,
             sink_tokens<0>, every_interval<160>>;

/// Everything in 16 bits, in the same pages.
using uncompressed =
    policies<keys<channelwise, 16, 16>, values<tokenwise, 16, 16>, recency, per_kv_head,
             recent_probes, all_salient, sink_tokens<0>, every_interval<32>>;

/// MiKV (Yang et al., 2024): important tokens by accumulated attention of all rows, tokenwise keys
/// and values.
using mikv =
    policies<keys<tokenwise, 4, 2>, values<tokenwise, 4, 2>, accumulated_attention, per_kv_head,
             all_probes, salient_share<60>, sink_tokens<0>, every_interval<160>>;

/// H2O (Zhang et al., NeurIPS 2023): heavy hitters by accumulated attention and recent tokens, half
/// each, stay in 16 bits; the others are evicted. Evicts once an interval, not with every token.
using h2o =
    policies<keys<channelwise, 16, 0>, values<tokenwise, 16, 0>, accumulated_attention, per_kv_head,
             all_probes, heavy_and_recent_share<40>, sink_tokens<0>, every_interval<160>>;

/// KIVI (Liu et al., ICML 2024) at 2 bits: keys channelwise in blocks of 32 tokens, values in
/// groups of 32 channels, the newest 128 tokens in 16 bits.
using kivi_2bit =
    policies<keys<channelwise_blocks, 2, 2>, values<groupwise<32>, 2, 2>, recency, per_kv_head,
             recent_probes, all_regular, sink_tokens<0>, blocks_behind_window<32, 128>>;

/// KIVI with the first 32 tokens in 16 bits, as Kitty (2025) and others compare against it.
using kivi_2bit_sinks = kivi_2bit::with<sink_tokens<32>>;

/// OTT (outlier tokens tracing, ACL 2025): KIVI's layouts at 2 bits with tokens of unusually short
/// keys in 16 bits, and the newest 32. Its blocks of keys have 128 tokens, ours 32. CPU only.
using ott =
    policies<keys<channelwise_blocks, 2, 2>, values<tokenwise, 2, 2>, recency, per_kv_head,
             recent_probes, all_regular, outlier_tokens<3, 35>, blocks_behind_window<128, 32>>;

/// ZipVL (He et al., 2024): the paper's quantizers, but as many salient tokens in each layer as
/// hold 97.5 % of its attention mass. `zipvl_evicting` drops the others instead of keeping 2 bits.
/// CPU only.
using zipvl = paper::with<mass_share<975>>;
using zipvl_evicting =
    policies<keys<channelwise, 4, 0>, values<compact_pairs<channel_separable_tokenwise>, 4, 0>,
             normalized_attention, per_kv_head, recent_and_random_probes, mass_share<975>,
             sink_tokens<0>, every_interval<160>>;

/// QuaRot's cache (Ashkboos et al., NeurIPS 2024): rotated channels, one pair a token, 4 bits. CPU
/// only.
using quarot_4bit =
    policies<keys<rotated<tokenwise>, 4, 4>, values<rotated<tokenwise>, 4, 4>, recency, per_kv_head,
             recent_probes, all_salient, sink_tokens<0>, every_interval<160>>;

/// Kitty (2025, arXiv 2511.18643): keys channelwise in pages of 128 tokens, of which the 12.5 % of
/// the channels with the largest mean magnitude have 4 bits and the others 2; values tokenwise at 2
/// bits, 32 sinks. `kitty_pro` gives 4 bits to 25 %. Kitty keeps the newest 128 values in 16 bits
/// and less than a page of keys; we keep the newest 128 of both. Attention decodes the keys. CPU
/// only.
using kitty =
    policies<coded_keys<boosted_channels<125>>, values<tokenwise, 2, 2>, recency, per_kv_head,
             recent_probes, all_regular, sink_tokens<32>, blocks_behind_window<128, 128>>;
using kitty_pro = kitty::with<coded_keys<boosted_channels<250>>>;

/// Oaken (2025, arXiv 2503.18599): 4 % outer, 90 % middle and 6 % inner values of keys and values
/// alike, in 5, 4 and 5 bits. Its thresholds come from calibration texts, ours from the tokens that
/// are compressed together, see magnitude_classes. Attention decodes. CPU only.
using oaken =
    policies<coded_keys<magnitude_classes<40, 60>>, coded_values<magnitude_classes<40, 60>>,
             recency, per_kv_head, recent_probes, all_regular, sink_tokens<0>, every_interval<160>>;

/// GEAR (2024, arXiv 2403.05527) at 2 bits: groups of 64 tokens of a key channel and of 64 channels
/// of a value, the residual in rank 4 for the prompt and rank 2 for blocks of 64 tokens after it,
/// and 2 % outliers exactly. `gear_l` is without outliers. Attention decodes. CPU only.
using gear_l =
    policies<coded_keys<with_low_rank<uniform_groups<parameter_axis::channel, 2, 64>, 4, 2>>,
             coded_values<with_low_rank<uniform_groups<parameter_axis::token, 2, 64>, 4, 2>>,
             recency, per_kv_head, recent_probes, all_regular, sink_tokens<0>,
             blocks_behind_window<64, 64>>;
using gear = gear_l::with<coded_keys<
    outliers_apart<parameter_axis::channel, 20, gear_l::key_quantizer_policy::granularity>>>::
    with<coded_values<
        outliers_apart<parameter_axis::token, 20, gear_l::value_quantizer_policy::granularity>>>;

/// Bits where attention feels their error: 4 for keys, 2 for values, and the first tokens, which
/// hold the largest keys of all, in 16. No scores are needed. Measured against `paper`: README.
using keys_4_values_2 =
    policies<keys<channelwise, 4, 4>, values<compact_pairs<channel_separable_tokenwise>, 2, 2>,
             recency, per_kv_head, recent_probes, all_salient, sink_tokens<4>, every_interval<160>>;

/// What to take if nothing speaks against it: README, "Which policy when".
using recommended = keys_4_values_2;

/// The same at 3 bits for keys, whose channels are rotated first. CPU only.
using rotated_keys_3_values_2 = keys_4_values_2::with<keys<rotated<channelwise>, 3, 3>>::with<
    values<compact_pairs<rotated<tokenwise>>, 2, 2>>;

/// One class at 4 bits with the paper's group layouts: what the salient tokens get, for every
/// token.
using uniform_4bit =
    policies<keys<channelwise, 4, 4>, values<compact_pairs<channel_separable_tokenwise>, 4, 4>,
             recency, per_kv_head, recent_probes, all_salient, sink_tokens<0>, every_interval<160>>;

}  // namespace zipcache::presets

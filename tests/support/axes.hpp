// The axes along which store and attend are tested, one at a time round the paper's preset: each
// instance is compile time.
#pragma once

#include <tuple>

#include <zipcache/policy/presets.hpp>

namespace zipcache_test::axes {

using zipcache::channel_separable_tokenwise;
using zipcache::channelwise;
using zipcache::channelwise_blocks;
using zipcache::compact_pairs;
using zipcache::groupwise;
using zipcache::keys;
using zipcache::tokenwise;
using zipcache::values;
using paper = zipcache::presets::paper;

using all_presets = std::tuple<paper, zipcache::presets::uncompressed, zipcache::presets::mikv,
                               zipcache::presets::h2o, zipcache::presets::kivi_2bit,
                               zipcache::presets::uniform_4bit, zipcache::presets::keys_4_values_2>;

/// Every number of bits on each side; the other side and the regular class stay the paper's.
using key_bits =
    std::tuple<paper::with<keys<channelwise, 1, 2>>, paper::with<keys<channelwise, 2, 1>>,
               paper::with<keys<channelwise, 3, 2>>, paper::with<keys<channelwise, 8, 3>>,
               paper::with<keys<channelwise, 16, 4>>>;
using value_bits =
    std::tuple<paper::with<values<compact_pairs<channel_separable_tokenwise>, 1, 2>>,
               paper::with<values<channel_separable_tokenwise, 2, 1>>,
               paper::with<values<compact_pairs<channel_separable_tokenwise>, 3, 2>>,
               paper::with<values<channel_separable_tokenwise, 8, 3>>,
               paper::with<values<compact_pairs<channel_separable_tokenwise>, 16, 4>>>;

/// Every group layout on each side.
using key_layouts =
    std::tuple<paper::with<keys<tokenwise, 4, 2>>, paper::with<keys<groupwise<16>, 4, 2>>,
               paper::with<keys<channelwise_blocks, 4, 2>>,
               paper::with<keys<channel_separable_tokenwise, 4, 2>>,
               paper::with<keys<compact_pairs<tokenwise>, 4, 2>>>;
using value_layouts =
    std::tuple<paper::with<values<channel_separable_tokenwise, 4, 2>>,
               paper::with<values<tokenwise, 4, 2>>, paper::with<values<groupwise<16>, 4, 2>>,
               paper::with<values<channelwise, 4, 2>>,
               paper::with<values<channelwise_blocks, 4, 2>>>;

/// Rotated channels on either side, with every kind of group layout. CPU only.
using zipcache::rotated;
using rotated_layouts =
    std::tuple<paper::with<keys<rotated<channelwise>, 4, 2>>,
               paper::with<keys<compact_pairs<rotated<tokenwise>>, 3, 16>>,
               paper::with<keys<rotated<channelwise_blocks>, 4, 2>>,
               paper::with<values<rotated<tokenwise>, 4, 2>>,
               paper::with<values<rotated<channel_separable_tokenwise>, 16, 2>>,
               paper::with<values<rotated<channelwise>, 4, 2>>, zipcache::presets::quarot_4bit,
               zipcache::presets::rotated_keys_3_values_2>;

/// Sides that are coded in blocks: every codec on either side, both classes, beside tiles and
/// alone. CPU only.
using zipcache::coded_keys;
using zipcache::coded_values;
using block_codecs =
    std::tuple<zipcache::presets::kitty, zipcache::presets::kitty_pro, zipcache::presets::oaken,
               zipcache::presets::gear, zipcache::presets::gear_l,
               paper::with<coded_keys<zipcache::boosted_channels<125>>>,
               paper::with<coded_values<zipcache::magnitude_classes<40, 60>>>,
               paper::with<coded_keys<rotated<zipcache::magnitude_classes<40, 60>>>>,
               paper::with<coded_keys<rotated<zipcache::token_scaled<
                   zipcache::uniform_groups<zipcache::parameter_axis::channel, 2, 64>>>>>,
               paper::with<coded_values<
                   rotated<zipcache::uniform_groups<zipcache::parameter_axis::token, 4, 32>>>>>;

}  // namespace zipcache_test::axes

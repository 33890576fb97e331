// Which values share one (step, min) pair: the group layouts of the method, as policies.
//
//   policy                              values that share             where the pair lies
//   tokenwise                           one token of one head         tile (with its token)
//   groupwise<n>                        n channels of one token       tile
//   channelwise                         one channel of a segment      segment
//   channelwise_blocks                  one channel of a 32-token tile tile
//   channel_separable_tokenwise (CST)   one token, after dividing each channel by c_j = sqrt(max_i
//   |x_ij|)
//                                                                     tile; the c_j in the segment,
//                                                                     shared by classes
//
// What attention may fold where follows from two facts alone: whether the pair varies along the
// channel or along the token, and whether channels carry a magnitude. A user's own layout states
// the same members.
#pragma once

#include <cstdint>
#include <string>

#include <zipcache/config.hpp>

namespace zipcache {

/// Along which axis a group's parameters vary. Parameters that vary by channel fold into the query
/// (keys) or into the output (values); those that vary by token fold into the score (keys) or into
/// the probability (values).
enum class parameter_axis { token, channel };

/// Whether the parameters belong to 32 tokens (and lie with their codes) or to the whole segment.
enum class parameter_home { tile, segment };

struct tokenwise {
  static constexpr parameter_axis axis = parameter_axis::token;
  static constexpr parameter_home home = parameter_home::tile;
  static constexpr bool has_channel_magnitudes = false;
  /// Channels that share a pair; 0 means all of the head's.
  static constexpr int32_t group_size = 0;
  static std::string name() { return "tokenwise"; }
};

template <int GroupSize>
struct groupwise {
  static_assert(GroupSize >= 16 && GroupSize % 16 == 0,
                "zipcache: a group of channels is a multiple of 16");
  static constexpr parameter_axis axis = parameter_axis::token;
  static constexpr parameter_home home = parameter_home::tile;
  static constexpr bool has_channel_magnitudes = false;
  static constexpr int32_t group_size = GroupSize;
  static std::string name() { return "groupwise" + std::to_string(GroupSize); }
};

struct channelwise {
  static constexpr parameter_axis axis = parameter_axis::channel;
  static constexpr parameter_home home = parameter_home::segment;
  static constexpr bool has_channel_magnitudes = false;
  static constexpr int32_t group_size = 0;
  static std::string name() { return "channelwise"; }
};

/// Channelwise in groups of 32 consecutive tokens of a class, as KIVI quantizes keys.
struct channelwise_blocks {
  static constexpr parameter_axis axis = parameter_axis::channel;
  static constexpr parameter_home home = parameter_home::tile;
  static constexpr bool has_channel_magnitudes = false;
  static constexpr int32_t group_size = 0;
  static std::string name() { return "channelwise_blocks"; }
};

struct channel_separable_tokenwise {
  static constexpr parameter_axis axis = parameter_axis::token;
  static constexpr parameter_home home = parameter_home::tile;
  static constexpr bool has_channel_magnitudes = true;
  static constexpr int32_t group_size = 0;
  static std::string name() { return "channel_separable"; }
};

/// Groups along the channel axis of one token: 1 unless the layout is groupwise. A head_dim that
/// the group size does not divide is refused when the cache is made.
template <class Granularity>
ZIPCACHE_HOST_DEVICE constexpr int32_t groups_per_token(int32_t head_dim) {
  return Granularity::group_size == 0 ? 1 : head_dim / Granularity::group_size;
}

/// Channels in one such group.
template <class Granularity>
ZIPCACHE_HOST_DEVICE constexpr int32_t channels_per_group(int32_t head_dim) {
  return Granularity::group_size == 0 ? head_dim : Granularity::group_size;
}

}  // namespace zipcache

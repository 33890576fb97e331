// A group layout written by a user: pairs of channels' halves, after dividing by channel
// magnitudes.
#include <zipcache/zipcache.hpp>

struct separable_groups {
  static constexpr zipcache::parameter_axis axis = zipcache::parameter_axis::token;
  static constexpr zipcache::parameter_home home = zipcache::parameter_home::tile;
  static constexpr bool has_channel_magnitudes = true;
  static constexpr int32_t group_size = 64;
  static std::string name() { return "separable_groups"; }
};

using policies = zipcache::presets::paper::with<zipcache::values<separable_groups, 4, 2>>::with<
    zipcache::keys<separable_groups, 3, 1>>;
static_assert(zipcache::group_layout<separable_groups>);

template class zipcache::kv_cache<float, policies>;

int main() { return policies::name().empty() ? 1 : 0; }

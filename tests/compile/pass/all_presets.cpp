// Every preset compiles whole in every element type, without run-time type information.
#include <zipcache/zipcache.hpp>

#if defined(__cpp_rtti)
#error "the tests of this folder are compiled with -fno-rtti"
#endif

namespace presets = zipcache::presets;

template class zipcache::kv_cache<zipcache::half>;
template class zipcache::kv_cache<zipcache::bfloat16, presets::uncompressed>;
template class zipcache::kv_cache<float, presets::mikv>;
template class zipcache::kv_cache<zipcache::half, presets::h2o>;
template class zipcache::kv_cache<zipcache::bfloat16, presets::kivi_2bit>;
template class zipcache::kv_cache<float, presets::uniform_4bit>;
template class zipcache::kv_cache<zipcache::half, presets::kivi_2bit_sinks>;
template class zipcache::kv_cache<zipcache::half, presets::ott>;
template class zipcache::kv_cache<zipcache::half, presets::zipvl>;
template class zipcache::kv_cache<float, presets::zipvl_evicting>;
template class zipcache::kv_cache<zipcache::bfloat16, presets::quarot_4bit>;
template class zipcache::kv_cache<zipcache::half, presets::keys_4_values_2>;
template class zipcache::kv_cache<zipcache::half, presets::kitty>;
template class zipcache::kv_cache<float, presets::kitty_pro>;
template class zipcache::kv_cache<zipcache::bfloat16, presets::oaken>;
template class zipcache::kv_cache<zipcache::half, presets::gear_l>;
template class zipcache::kv_cache<float, presets::gear>;
template class zipcache::kv_cache<float, presets::rotated_keys_3_values_2>;
template class zipcache::kv_cache<zipcache::half,
                                  zipcache::policy_table<presets::paper, presets::uncompressed>>;

int main() {}

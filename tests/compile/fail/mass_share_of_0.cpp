// expect: zipcache: a share of the attention mass is between 1 and 1000 per mille
#include <zipcache/zipcache.hpp>

using wrong = zipcache::presets::paper::with<zipcache::mass_share<0>>;

template class zipcache::kv_cache<float, wrong>;

int main() {}

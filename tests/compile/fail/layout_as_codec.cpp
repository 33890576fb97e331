// expect: zipcache: a block codec needs static constexpr int bits
#include <zipcache/zipcache.hpp>

// A group layout has bits of its classes: keys<tokenwise, 4, 4>.
template class zipcache::kv_cache<
    float, zipcache::presets::paper::with<zipcache::coded_keys<zipcache::tokenwise>>>;

int main() {}

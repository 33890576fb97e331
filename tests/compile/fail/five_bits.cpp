// expect: zipcache: bits of a class are 0 (evicted), 1, 2, 3, 4, 8 or 16
#include <zipcache/zipcache.hpp>

template class zipcache::kv_cache<
    float, zipcache::presets::paper::with<zipcache::keys<zipcache::channelwise, 5, 2>>>;

int main() {}

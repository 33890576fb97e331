// expect: zipcache: 0 bits evict a token, so
// expect: a class has 0 bits for both keys and values or for neither
#include <zipcache/zipcache.hpp>

template class zipcache::kv_cache<
    float, zipcache::presets::paper::with<zipcache::keys<zipcache::channelwise, 4, 0>>>;

int main() {}

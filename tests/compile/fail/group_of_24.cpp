// expect: zipcache: a group of channels is a multiple of 16
#include <zipcache/zipcache.hpp>

template class zipcache::kv_cache<
    float, zipcache::presets::paper::with<zipcache::values<zipcache::groupwise<24>, 4, 2>>>;

int main() {}

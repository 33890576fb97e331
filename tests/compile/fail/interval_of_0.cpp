// expect: zipcache: an interval has at least one token
#include <zipcache/zipcache.hpp>

template class zipcache::kv_cache<float,
                                  zipcache::presets::paper::with<zipcache::every_interval<0>>>;

int main() {}

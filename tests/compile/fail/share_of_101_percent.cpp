// expect: zipcache: a share is between 0 and 100 percent
#include <zipcache/zipcache.hpp>

template class zipcache::kv_cache<float,
                                  zipcache::presets::paper::with<zipcache::salient_share<101>>>;

int main() {}

// expect: zipcache: a number of sink tokens is not negative
#include <zipcache/zipcache.hpp>

template class zipcache::kv_cache<float, zipcache::presets::paper::with<zipcache::sink_tokens<-1>>>;

int main() {}

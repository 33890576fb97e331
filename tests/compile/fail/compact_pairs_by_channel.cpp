// expect: zipcache: compact_pairs takes layouts with one pair for a token
#include <zipcache/zipcache.hpp>

using wrong = zipcache::presets::paper::with<
    zipcache::keys<zipcache::compact_pairs<zipcache::channelwise>, 4, 2>>;

template class zipcache::kv_cache<float, wrong>;

int main() {}

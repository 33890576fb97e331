// expect: zipcache: compact_pairs are for codes of at most 4 bits
#include <zipcache/zipcache.hpp>

using wrong = zipcache::presets::paper::with<
    zipcache::values<zipcache::compact_pairs<zipcache::tokenwise>, 8, 2>>;

template class zipcache::kv_cache<float, wrong>;

int main() {}

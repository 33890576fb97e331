// expect: zipcache: outlier_tokens needs at least one token of an interval, and room for it
#include <zipcache/zipcache.hpp>

using wrong = zipcache::presets::paper::with<zipcache::outlier_tokens<3, 2>>;

template class zipcache::kv_cache<float, wrong>;

int main() {}

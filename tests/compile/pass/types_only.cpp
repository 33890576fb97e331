// fwd.hpp alone is enough to name a cache.
#include <zipcache/fwd.hpp>

using cache = zipcache::kv_cache<float, zipcache::presets::paper>;

void use(cache&);

int main() {}

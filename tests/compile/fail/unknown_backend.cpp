// expect: zipcache: for kv_cache on this backend include <zipcache/zipcache.hpp> (cpu_backend) or
// expect: <zipcache/zipcache.cuh> compiled with nvcc (cuda_backend)
#include <zipcache/zipcache.hpp>

struct other_backend {};

template class zipcache::kv_cache<float, zipcache::presets::paper, other_backend>;

int main() {}

// expect: zipcache: the first argument of kv_cache is float, zipcache::half or zipcache::bfloat16
#include <zipcache/zipcache.hpp>

template class zipcache::kv_cache<double>;

int main() {}

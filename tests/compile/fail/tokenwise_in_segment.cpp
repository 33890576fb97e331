// expect: zipcache: the value quantizer slot needs a policy like values<tokenwise, 4, 2>
#include <zipcache/zipcache.hpp>

// Parameters that vary by token lie with their tokens.
struct misplaced : zipcache::tokenwise {
  static constexpr zipcache::parameter_home home = zipcache::parameter_home::segment;
};

template class zipcache::kv_cache<
    float, zipcache::presets::paper::with<zipcache::values<misplaced, 4, 2>>>;

int main() {}

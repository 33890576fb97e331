// expect: zipcache: the saliency slot needs a metric with role, needs_probes, name() and
// expect: static float score(float sum, token_visibility)
#include <zipcache/zipcache.hpp>

struct double_metric {
  using role = zipcache::saliency_role;
  static constexpr bool needs_probes = true;
  static double score(float sum, zipcache::token_visibility) { return static_cast<double>(sum); }
  static std::string name() { return "double"; }
};

template class zipcache::kv_cache<float, zipcache::presets::paper::with<double_metric>>;

int main() {}

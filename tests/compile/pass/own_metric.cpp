// A metric written by a user fits into any set of policies.
#include <zipcache/zipcache.hpp>

struct squared_attention {
  using role = zipcache::saliency_role;
  static constexpr bool needs_probes = true;
  ZIPCACHE_HOST_DEVICE static float score(float sum, zipcache::token_visibility visible) {
    return visible.num_probes > 0 ? sum * sum / static_cast<float>(visible.num_probes) : 0.0f;
  }
  static std::string name() { return "squared"; }
};

using policies = zipcache::presets::paper::with<squared_attention>;
static_assert(zipcache::saliency_metric<squared_attention>);

template class zipcache::kv_cache<zipcache::half, policies>;

int main() { return policies::name().empty() ? 1 : 0; }

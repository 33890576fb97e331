// expect: zipcache: the saliency slot needs a metric with role
#include <zipcache/zipcache.hpp>

using paper = zipcache::presets::paper;
using wrong =
    zipcache::policies<paper::key_quantizer_policy, paper::value_quantizer_policy,
                       zipcache::salient_share<60>, paper::scope_policy, paper::probe_policy,
                       paper::budget_policy, paper::sink_policy_type, paper::schedule_policy>;

template class zipcache::kv_cache<float, wrong>;

int main() {}

// expect: zipcache: the value quantizer slot needs a policy like values<tokenwise, 4, 2>
#include <zipcache/zipcache.hpp>

using paper = zipcache::presets::paper;
using wrong =
    zipcache::policies<paper::key_quantizer_policy, paper::key_quantizer_policy,
                       paper::saliency_policy, paper::scope_policy, paper::probe_policy,
                       paper::budget_policy, paper::sink_policy_type, paper::schedule_policy>;

template class zipcache::kv_cache<float, wrong>;

int main() {}

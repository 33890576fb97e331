// The class a user holds, with its default arguments.
#pragma once

#include <zipcache/core/backend.hpp>
#include <zipcache/policy/presets.hpp>

namespace zipcache {

/// @tparam Element   float, half or bfloat16: the type of q, k, v and the output
/// @tparam Policies  a set of policies, or a policy_table of several
/// @tparam Backend   cpu_backend (kv_cache.hpp) or cuda_backend (kv_cache.cuh)
template <class Element, class Policies = presets::paper, class Backend = cpu_backend>
class kv_cache {
  static_assert(sizeof(Element) == 0,
                "zipcache: for kv_cache on this backend include <zipcache/zipcache.hpp> (cpu_backend) or "
                "<zipcache/zipcache.cuh> compiled with nvcc (cuda_backend)");
};

}  // namespace zipcache

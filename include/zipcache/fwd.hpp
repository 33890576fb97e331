// The class a user holds, with its one default argument.
#pragma once

#include <zipcache/policy/presets.hpp>

namespace zipcache {

/// @tparam Element   float, half or bfloat16: the type of q, k, v and the output
/// @tparam Policies  a set of policies, or a policy_table of several
template <class Element, class Policies = presets::paper>
class kv_cache;

}  // namespace zipcache

// A complete set of policies, one for each role, in data-flow order. `with<P>` replaces the policy
// whose role P fills: an ablation is one changed argument, whatever its position.
//   using ablated = presets::paper::with<accumulated_attention>;
#pragma once

#include <string>
#include <type_traits>

#include <zipcache/policy/concepts.hpp>

namespace zipcache {

template <class KeyQuantizer, class ValueQuantizer, class Saliency, class Scope, class Probe,
          class Budget, class Sinks, class Schedule>
struct policies {
  static_assert(key_quantizer<KeyQuantizer>,
                "zipcache: the key quantizer slot needs a policy like keys<channelwise, 4, 2>: "
                "role, granularity, bits<Class>, name()");
  static_assert(value_quantizer<ValueQuantizer>,
                "zipcache: the value quantizer slot needs a policy like values<tokenwise, 4, 2>: "
                "role, granularity, bits<Class>, name()");
  static_assert(saliency_metric<Saliency>,
                "zipcache: the saliency slot needs a metric with role, needs_probes, name() and "
                "static float score(float sum, token_visibility)");
  static_assert(
      saliency_scope<Scope>,
      "zipcache: the scope slot needs per_kv_head or per_layer: role, shared_by_heads, name()");
  static_assert(probe_strategy<Probe>,
                "zipcache: the probe slot needs a strategy with role, given_by_caller, name() and "
                "static std::vector<int64_t> rows(int64_t num_rows, const probe_options&)");
  static_assert(budget<Budget>,
                "zipcache: the budget slot needs a policy with role, default_ratio, uses_scores, "
                "name(), num_salient() and num_recent()");
  static_assert(sink_policy<Sinks>,
                "zipcache: the sink slot needs a policy like sink_tokens<4>: role, count, name()");
  static_assert(schedule<Schedule>,
                "zipcache: the schedule slot needs a policy like every_interval<160>: role, "
                "default_interval, default_recent, name(), sealed_by_prefill()");

  using key_quantizer_policy = KeyQuantizer;
  using value_quantizer_policy = ValueQuantizer;
  using saliency_policy = Saliency;
  using scope_policy = Scope;
  using probe_policy = Probe;
  using budget_policy = Budget;
  using sink_policy_type = Sinks;
  using schedule_policy = Schedule;

  template <token_class Class>
  static constexpr int key_bits = KeyQuantizer::template bits<Class>;
  template <token_class Class>
  static constexpr int value_bits = ValueQuantizer::template bits<Class>;
  template <token_class Class>
  static constexpr bool evicts = key_bits<Class> == 0;

  static_assert((key_bits<token_class::salient> == 0) == (value_bits<token_class::salient> == 0) &&
                    (key_bits<token_class::regular> == 0) ==
                        (value_bits<token_class::regular> == 0),
                "zipcache: 0 bits evict a token, so a class has 0 bits for both keys and values or "
                "for neither");

  /// Whether scores decide anything, and so whether probe queries are needed.
  static constexpr bool needs_probes = Budget::uses_scores && Saliency::needs_probes;

  /// The same policies with `New` in the slot whose role it fills.
  template <class New>
  struct replaced {
    template <class Old, class Role>
    using slot = std::conditional_t<fills_role<New, Role>, New, Old>;
    static_assert(
        fills_role<New, key_quantizer_role> || fills_role<New, value_quantizer_role> ||
            fills_role<New, saliency_role> || fills_role<New, scope_role> ||
            fills_role<New, probe_role> || fills_role<New, budget_role> ||
            fills_role<New, sink_role> || fills_role<New, schedule_role>,
        "zipcache: with<P> needs a policy that names its role, one of those in policy/roles.hpp");
    using type =
        policies<slot<KeyQuantizer, key_quantizer_role>, slot<ValueQuantizer, value_quantizer_role>,
                 slot<Saliency, saliency_role>, slot<Scope, scope_role>, slot<Probe, probe_role>,
                 slot<Budget, budget_role>, slot<Sinks, sink_role>, slot<Schedule, schedule_role>>;
  };
  template <class New>
  using with = typename replaced<New>::type;

  /// All slots in one line: test names, benchmark labels and result tables carry it, so that a row
  /// is its type.
  static std::string name() {
    return "keys_" + KeyQuantizer::name() + "/values_" + ValueQuantizer::name() + "/" +
           Saliency::name() + "/" + Scope::name() + "/" + Probe::name() + "/" + Budget::name() +
           "/" + Sinks::name() + "/" + Schedule::name();
  }
};

/// Several sets of policies in one cache; the options' layer table says which layer uses which.
template <class... Policies>
struct policy_table {
  static_assert(sizeof...(Policies) > 0,
                "zipcache: a policy_table has at least one set of policies");
};

}  // namespace zipcache

// What a policy of each role must offer: one named concept for each requirement, so that a wrong
// policy is told what it lacks in one sentence (policies.hpp asserts them slot by slot).
#pragma once

#include <concepts>
#include <cstdint>
#include <string>
#include <vector>

#include <zipcache/policy/quantizers.hpp>
#include <zipcache/policy/roles.hpp>
#include <zipcache/saliency/metric.hpp>
#include <zipcache/saliency/probe.hpp>
#include <zipcache/select/budget.hpp>
#include <zipcache/select/sinks.hpp>
#include <zipcache/stream/schedule.hpp>

namespace zipcache {

template <class P, class Role>
concept fills_role = std::same_as<typename P::role, Role>;

template <class P>
concept has_name = requires {
  { P::name() } -> std::same_as<std::string>;
};

template <class G>
concept has_parameter_axis = requires {
  { G::axis } -> std::convertible_to<parameter_axis>;
  { G::home } -> std::convertible_to<parameter_home>;
};
template <class G>
concept has_group_size = requires {
  { G::group_size } -> std::convertible_to<int32_t>;
  { G::has_channel_magnitudes } -> std::convertible_to<bool>;
};
/// Parameters by token lie with their tokens, and only those may be channel-separable or groupwise.
template <class G>
concept group_layout = has_name<G> && has_parameter_axis<G> && has_group_size<G> &&
    (G::axis == parameter_axis::channel ? G::group_size == 0 && !G::has_channel_magnitudes
                                        : G::home == parameter_home::tile);

template <class P>
concept has_class_bits = (group_layout<typename P::granularity> ||
                          (block_codec<typename P::granularity> &&
                           has_name<typename P::granularity>)) &&
                         requires {
  { P::template bits<token_class::salient> } -> std::convertible_to<int>;
  { P::template bits<token_class::regular> } -> std::convertible_to<int>;
};

template <class P>
concept scores_one_token = requires(float sum, token_visibility visible) {
  { P::score(sum, visible) } -> std::same_as<float>;
};
template <class P>
concept says_whether_it_needs_probes = requires {
  { P::needs_probes } -> std::convertible_to<bool>;
};
template <class P>
concept says_whether_heads_share = requires {
  { P::shared_by_heads } -> std::convertible_to<bool>;
};
template <class P>
concept lists_probe_rows = requires(int64_t num_rows, const probe_options& options) {
  { P::rows(num_rows, options) } -> std::same_as<std::vector<int64_t>>;
  { P::given_by_caller } -> std::convertible_to<bool>;
};
template <class P>
concept counts_salient_tokens = requires(int64_t num_tokens, const budget_options& options) {
  { P::num_salient(num_tokens, options) } -> std::same_as<int64_t>;
  { P::num_recent(num_tokens, options) } -> std::same_as<int64_t>;
  { P::default_ratio } -> std::convertible_to<double>;
  { P::uses_scores } -> std::convertible_to<bool>;
};
template <class P>
concept counts_sinks = requires {
  { P::count } -> std::convertible_to<int32_t>;
};
template <class P>
concept says_when_to_compress = requires(int64_t prompt_len, const schedule_options& options) {
  { P::sealed_by_prefill(prompt_len, options) } -> std::same_as<int64_t>;
  { P::default_interval } -> std::convertible_to<int64_t>;
  { P::default_recent } -> std::convertible_to<int64_t>;
};

template <class P>
concept key_quantizer = fills_role<P, key_quantizer_role> && has_class_bits<P> && has_name<P>;
template <class P>
concept value_quantizer = fills_role<P, value_quantizer_role> && has_class_bits<P> && has_name<P>;
template <class P>
concept saliency_metric = fills_role<P, saliency_role> && scores_one_token<P> &&
    says_whether_it_needs_probes<P> && has_name<P>;
template <class P>
concept saliency_scope = fills_role<P, scope_role> && says_whether_heads_share<P> && has_name<P>;
template <class P>
concept probe_strategy = fills_role<P, probe_role> && lists_probe_rows<P> && has_name<P>;
template <class P>
concept budget = fills_role<P, budget_role> && counts_salient_tokens<P> && has_name<P>;
template <class P>
concept sink_policy = fills_role<P, sink_role> && counts_sinks<P> && has_name<P>;
template <class P>
concept schedule = fills_role<P, schedule_role> && says_when_to_compress<P> && has_name<P>;

}  // namespace zipcache

// Runs of a cache: prompts whole and in chunks, tokens one by one and in pieces, and the axes over
// which the tests of kv_cache go.
#pragma once

#include <cstdint>
#include <span>
#include <tuple>
#include <vector>

#include "support/cache_snapshot.hpp"

namespace zipcache_test {

inline constexpr zipcache::cache_shape small_shape{
    .num_layers = 1, .num_qo_heads = 4, .num_kv_heads = 2, .head_dim = 32};

/// One point of the axes element type x policies.
template <class Element, class Policies>
struct axis {
  using element = Element;
  using policies = Policies;
  using cache = zipcache::kv_cache<Element, Policies>;
};

using mixed_table = zipcache::policy_table<zipcache::presets::paper, zipcache::presets::kivi_2bit,
                                           zipcache::presets::uncompressed>;

/// Every preset in one element type and every element type under the method itself: a change of
/// one axis at a time.
using cache_axes = std::tuple<
    axis<zipcache::half, zipcache::presets::paper>, axis<float, zipcache::presets::paper>,
    axis<zipcache::bfloat16, zipcache::presets::paper>,
    axis<zipcache::half, zipcache::presets::uncompressed>,
    axis<zipcache::half, zipcache::presets::mikv>, axis<float, zipcache::presets::h2o>,
    axis<zipcache::half, zipcache::presets::kivi_2bit>,
    axis<zipcache::half, zipcache::presets::zipvl>, axis<zipcache::half, zipcache::presets::ott>,
    axis<float, zipcache::presets::rotated_keys_3_values_2>,
    axis<zipcache::half, zipcache::presets::kitty>, axis<float, zipcache::presets::gear>,
    axis<zipcache::bfloat16, zipcache::presets::oaken>,
    axis<zipcache::bfloat16, zipcache::presets::uniform_4bit>, axis<zipcache::half, mixed_table>>;

/// Options under which a table uses all of its sets; others ignore what is set here.
template <class Policies>
zipcache::cache_options options_for(const zipcache::cache_shape& shape) {
  zipcache::cache_options options;
  options.seed = 7;
  if constexpr (std::is_same_v<Policies, mixed_table>) {
    for (int32_t layer = 0; layer < shape.num_layers; ++layer)
      options.layer_policy.push_back((layer + 1) % 3);
  }
  return options;
}

template <class Policies>
zipcache::cache_shape shape_for(zipcache::cache_shape shape = small_shape) {
  if constexpr (std::is_same_v<Policies, mixed_table>) shape.num_layers = 3;
  return shape;
}

/// What attention returned for some tokens.
template <class Element>
struct outputs {
  tensor<Element> out;
  std::vector<float> lse;

  outputs(const zipcache::cache_shape& shape, int64_t tokens)
      : out(shape.num_qo_heads, tokens, shape.head_dim),
        lse(static_cast<size_t>(tokens * shape.num_qo_heads)) {}
  bool operator==(const outputs& other) const {
    return same_bits(out.values, other.out.values) && same_bits(lse, other.lse);
  }
};

template <class Cache>
using element_of = typename Cache::element;

/// Prefills tokens [0, count) of `data` in every layer.
template <class Cache>
void prefill(Cache& cache, zipcache::sequence_id sequence,
             const token_data<element_of<Cache>>& data, int64_t count) {
  for (int32_t layer = 0; layer < cache.shape().num_layers; ++layer)
    cache.prefill(sequence, layer, data.q.part(0, count), data.k.part(0, count),
                  data.v.part(0, count));
}

/// The same in chunks that end at `cuts` and at `count`.
template <class Cache>
void prefill_in_chunks(Cache& cache, zipcache::sequence_id sequence,
                       const token_data<element_of<Cache>>& data, int64_t count,
                       std::span<const int64_t> cuts) {
  std::vector<int64_t> ends(cuts.begin(), cuts.end());
  ends.push_back(count);
  for (int32_t layer = 0; layer < cache.shape().num_layers; ++layer) {
    int64_t first = 0;
    for (const int64_t end : ends) {
      cache.prefill(sequence, layer, data.q.part(first, end - first),
                    data.k.part(first, end - first), data.v.part(first, end - first),
                    {.prompt_len = count});
      first = end;
    }
  }
}

/// Appends tokens [first, last) of `data` one by one, attends with each, in every layer. Returns
/// what the last layer gave.
template <class Cache>
outputs<element_of<Cache>> decode(Cache& cache, zipcache::sequence_id sequence,
                                  const token_data<element_of<Cache>>& data, int64_t first,
                                  int64_t last) {
  outputs<element_of<Cache>> result(cache.shape(), last - first);
  const auto heads = static_cast<size_t>(cache.shape().num_qo_heads);
  for (int64_t token = first; token < last; ++token) {
    for (int32_t layer = 0; layer < cache.shape().num_layers; ++layer) {
      cache.append(sequence, layer, data.k.part(token, 1), data.v.part(token, 1));
      cache.attend(
          sequence, layer, data.q.part(token, 1), result.out.part(token - first, 1),
          std::span(result.lse).subspan(static_cast<size_t>(token - first) * heads, heads));
    }
  }
  return result;
}

/// The same by append_and_attend in one call for each layer.
template <class Cache>
outputs<element_of<Cache>> decode_at_once(Cache& cache, zipcache::sequence_id sequence,
                                          const token_data<element_of<Cache>>& data, int64_t first,
                                          int64_t last) {
  outputs<element_of<Cache>> result(cache.shape(), last - first);
  for (int32_t layer = 0; layer < cache.shape().num_layers; ++layer)
    cache.append_and_attend(sequence, layer, data.q.part(first, last - first),
                            data.k.part(first, last - first), data.v.part(first, last - first),
                            result.out.view(), result.lse);
  return result;
}

/// Everything a later call could see of one sequence: its bytes now, and outputs and bytes after
/// `data`'s tokens from its length on were decoded by a fork, which is released again.
template <class Cache>
std::string behaviour(Cache& cache, zipcache::sequence_id sequence,
                      const token_data<element_of<Cache>>& data, int64_t steps) {
  std::string seen = snapshot(cache, sequence);
  const zipcache::sequence_id twin = cache.fork(sequence);
  const int64_t first = cache.length(sequence);
  const auto result = decode(cache, twin, data, first, first + steps);
  byte_string out;
  for (const auto x : result.out.values) out.add(bits_of(x));
  out.add(result.lse.data(), result.lse.size() * sizeof(float));
  seen += out.bytes() + snapshot(cache, twin);
  cache.release(twin);
  return seen;
}

}  // namespace zipcache_test

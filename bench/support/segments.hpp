// A sealed segment of one KV head for benchmarks, with 60 % of its tokens salient.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include <zipcache/policy/presets.hpp>
#include <zipcache/store/store.hpp>
#include <zipcache/stream/options.hpp>

#include "support/tensors.hpp"

namespace zipcache_bench {

template <class Policies>
struct benched_tokens {
  using budget = typename Policies::budget_policy;

  int64_t num_tokens;
  int32_t head_dim;
  int64_t num_salient;
  std::vector<zipcache::half> k, v;
  std::vector<int32_t> salient;
  zipcache::page_pool pool;

  benched_tokens(int64_t tokens, int32_t dim)
      : num_tokens(tokens),
        head_dim(dim),
        num_salient(budget::num_salient(tokens, {.salient_ratio = budget::default_ratio})),
        k(make_tensor<zipcache::half>(1, tokens, dim, 1)),
        v(make_tensor<zipcache::half>(1, tokens, dim, 2)),
        pool(zipcache::detail::natural_page_bytes<Policies>(zipcache::detail::resolve<Policies>({}),
                                                            dim),
             0) {
    // Spread evenly, as saliency spreads them.
    for (int64_t i = 0; i < num_salient; ++i)
      salient.push_back(static_cast<int32_t>(i * tokens / num_salient));
  }

  std::shared_ptr<const zipcache::segment<Policies>> seal() {
    return zipcache::store<Policies, zipcache::half, zipcache::half>(
        zipcache::cpu_backend{}, pool,
        zipcache::hnd<const zipcache::half>(k.data(), 1, num_tokens, head_dim),
        zipcache::hnd<const zipcache::half>(v.data(), 1, num_tokens, head_dim), salient,
        num_salient, 0);
  }

  /// Bytes of the tiles and the record, by the format's own functions.
  int64_t sealed_bytes() const {
    using sizes = zipcache::segment_shape<Policies>;
    return zipcache::ceil_div<int64_t>(num_salient, zipcache::tile_tokens) *
               sizes::salient_tile_bytes(head_dim) +
           zipcache::ceil_div<int64_t>(num_tokens - num_salient, zipcache::tile_tokens) *
               sizes::regular_tile_bytes(head_dim) +
           zipcache::segment_record<Policies>::bytes(head_dim);
  }
  int64_t bytes_in_16_bits() const { return int64_t{4} * head_dim * num_tokens; }
};

}  // namespace zipcache_bench

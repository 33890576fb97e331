// Saliency metrics: how a token's attention mass becomes its score (ZipCache, section 4.2), and
// over which heads. A metric is a struct with the role, a name and `score`; examples/ shows one
// written by a user.
#pragma once

#include <cstdint>
#include <string>

#include <zipcache/config.hpp>
#include <zipcache/policy/roles.hpp>

namespace zipcache {

/// Who can see a token: the number of probe rows at or after it, and the number of all query rows
/// at or after it.
struct token_visibility {
  int64_t num_probes;
  int64_t num_rows;
};

/// p~_i = sum_k A_ki / nnz(A_.i) over the probe rows (ZipCache, equation 8). 0 where no probe sees
/// the token.
struct normalized_attention {
  using role = saliency_role;
  static constexpr bool needs_probes = true;
  ZIPCACHE_HOST_DEVICE static float score(float sum, token_visibility visible) {
    return visible.num_probes > 0 ? sum / static_cast<float>(visible.num_probes) : 0.0f;
  }
  static std::string name() { return "normalized"; }
};

/// p_i = sum_k A_ki (H2O, MiKV). Favours early tokens, which more rows can see.
struct accumulated_attention {
  using role = saliency_role;
  static constexpr bool needs_probes = true;
  ZIPCACHE_HOST_DEVICE static float score(float sum, token_visibility) { return sum; }
  static std::string name() { return "accumulated"; }
};

/// sum_k A_ki / (l - i), as the published code divides even when only probe rows were summed.
struct normalized_by_length {
  using role = saliency_role;
  static constexpr bool needs_probes = true;
  ZIPCACHE_HOST_DEVICE static float score(float sum, token_visibility visible) {
    return visible.num_rows > 0 ? sum / static_cast<float>(visible.num_rows) : 0.0f;
  }
  static std::string name() { return "normalized_by_length"; }
};

/// The later, the more salient; no attention is looked at (the locality baseline of the paper's
/// table A).
struct recency {
  using role = saliency_role;
  static constexpr bool needs_probes = false;
  ZIPCACHE_HOST_DEVICE static float score(float, token_visibility visible) {
    return -static_cast<float>(visible.num_rows);
  }
  static std::string name() { return "recency"; }
};

/// Each KV head has its own salient tokens; its score sums over the query heads that share it.
struct per_kv_head {
  using role = scope_role;
  static constexpr bool shared_by_heads = false;
  static std::string name() { return "per_kv_head"; }
};

/// All KV heads of a layer share the salient tokens; scores are summed over the heads.
struct per_layer {
  using role = scope_role;
  static constexpr bool shared_by_heads = true;
  static std::string name() { return "per_layer"; }
};

}  // namespace zipcache

// A saliency metric of your own: a struct with a role, a name and a function from the attention
// mass that the probes gave a token to its score. This one divides by the token's age, so that an
// old token has to be looked at more.
//
//   keys_channelwise_4_2/values_channel_separable_4_2/aged/per_kv_head/... (the whole name)
//   normalized keeps token 3 of 8 in high bits, and aged token 6
#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include <zipcache/zipcache.hpp>

struct aged_attention {
  using role = zipcache::saliency_role;
  static constexpr bool needs_probes = true;
  ZIPCACHE_HOST_DEVICE static float score(float sum, zipcache::token_visibility visible) {
    if (visible.num_probes == 0) return 0.0f;
    const float mass = sum / static_cast<float>(visible.num_probes);
    return mass / (1.0f + static_cast<float>(visible.num_rows) / 4.0f);
  }
  static std::string name() { return "aged"; }
};

namespace {

constexpr int64_t kv_len = 8;
constexpr int32_t head_dim = 16;

/// The token that `Metric` finds most salient when one probe at the end looks at tokens 3 and 6.
template <class Metric>
int32_t most_salient() {
  std::vector<float> k(kv_len * head_dim, 0.0f), q(head_dim, 1.0f), scores(kv_len);
  std::fill_n(k.begin() + 3 * head_dim, head_dim, 0.55f);
  std::fill_n(k.begin() + 6 * head_dim, head_dim, 0.5f);
  const std::vector<int64_t> positions{kv_len - 1};
  const zipcache::probe_queries<float> probes{zipcache::hnd<const float>(q.data(), 1, 1, head_dim),
                                              positions};
  const zipcache::cpu_backend backend;
  zipcache::saliency<Metric, zipcache::per_kv_head, float, float>(
      backend, probes, zipcache::hnd<const float>(k.data(), 1, kv_len, head_dim), 0.25f, scores);
  int32_t salient = -1;
  zipcache::select(backend, scores, 1, {.num_tokens = kv_len, .num_salient = 1}, {&salient, 1});
  return salient;
}

}  // namespace

int main() {
  using policies = zipcache::presets::paper::with<aged_attention>;
  std::printf("%s\n", policies::name().c_str());
  const int32_t normalized = most_salient<zipcache::normalized_attention>();
  const int32_t aged = most_salient<aged_attention>();
  std::printf("normalized keeps token %d of 8 in high bits, and aged token %d\n", normalized, aged);
  const zipcache::kv_cache<float, policies> cache(
      {.num_qo_heads = 1, .num_kv_heads = 1, .head_dim = 16});
  return normalized == 3 && aged == 6 && cache.num_sequences() == 0 ? 0 : 1;
}

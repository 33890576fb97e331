// An ablation is one changed argument: policies::with<> replaces the policy whose role is named.
// The name of each set of policies is put together from its parts, so that a row of the table is
// its type (shortened here).
//
//   ratio  keys   values policies
//    4.52  0.203  0.182  keys_channelwise_4_2/values_channel_separable_4_2/normalized/...
//    4.28  0.431  0.182  keys_tokenwise_4_2/values_channel_separable_4_2/normalized/...
//    4.24  0.203  0.352  keys_channelwise_4_2/values_groupwise32_4_2/normalized/...
//    4.52  0.203  0.182  keys_channelwise_4_2/values_channel_separable_4_2/accumulated/...
//    3.63  0.202  0.181  .../sinks4/every160
//    2.79  0.334  0.541  keys_channelwise_blocks_2_2/values_groupwise32_2_2/.../blocks32_behind128
//    1.00  0.000  0.000  keys_channelwise_16_16/values_tokenwise_16_16/.../every32
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include <zipcache/zipcache.hpp>

namespace {

namespace zc = zipcache;
using paper = zc::presets::paper;

constexpr zc::cache_shape shape{.num_qo_heads = 2, .num_kv_heads = 1, .head_dim = 64};
constexpr int64_t length = 640;

/// Noise; every fifth channel is ten times larger, and every tenth token louder.
std::vector<float> make_tensor(int32_t num_heads, uint64_t seed) {
  std::vector<float> x;
  for (uint64_t i = 0; i < static_cast<uint64_t>(num_heads * length * shape.head_dim); ++i) {
    const float noise = static_cast<float>(zc::mix64(seed << 32 | i) >> 40) * 0x1p-23f - 1.0f;
    x.push_back(noise * (i % 64 % 5 == 0 ? 10.0f : 1.0f) * (i / 64 % 10 == 0 ? 2.0f : 1.0f));
  }
  return x;
}

/// Compresses the prompt; prints the relative error of keys and values, and the real ratio.
template <class Policies>
double show() {
  const std::vector<float> q = make_tensor(2, 1), k = make_tensor(1, 2), v = make_tensor(1, 3);
  zc::kv_cache<float, Policies> cache(shape);
  const zc::sequence_id sequence = cache.create();
  cache.prefill(sequence, 0, zc::hnd<const float>(q.data(), 2, length, 64),
                zc::hnd<const float>(k.data(), 1, length, 64),
                zc::hnd<const float>(v.data(), 1, length, 64));
  std::vector<float> key_values(k.size()), value_values(v.size());
  cache.dequantize(sequence, 0, zc::hnd(key_values.data(), 1, length, 64),
                   zc::hnd(value_values.data(), 1, length, 64));
  const auto relative_error = [](const std::vector<float>& x, const std::vector<float>& y) {
    double error = 0.0, norm = 0.0;
    for (size_t i = 0; i < x.size(); ++i) {
      error += static_cast<double>((x[i] - y[i]) * (x[i] - y[i]));
      norm += static_cast<double>(x[i] * x[i]);
    }
    return std::sqrt(error / norm);
  };
  const double ratio = cache.footprint().ratio();
  std::printf("%5.2f  %.3f  %.3f  %s\n", ratio, relative_error(k, key_values),
              relative_error(v, value_values), Policies::name().c_str());
  return ratio;
}

}  // namespace

int main() {
  std::printf("ratio  keys   values policies\n");
  const double base = show<paper>();
  show<paper::with<zc::keys<zc::tokenwise, 4, 2>>>();
  show<paper::with<zc::values<zc::groupwise<32>, 4, 2>>>();
  show<paper::with<zc::accumulated_attention>>();
  show<paper::with<zc::sink_tokens<4>>>();
  show<zc::presets::kivi_2bit>();
  const double plain = show<zc::presets::uncompressed>();
  return base > 4.0 && plain < 1.1 ? 0 : 1;
}

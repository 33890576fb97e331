// One stage by itself: quantize a tensor of values in which one channel is a hundred times larger
// than the others, under three group layouts, and look at what comes back.
//
//   layout               bits  pairs  mean error of ordinary channels
//   tokenwise               4     64  0.716
//   channelwise             4     32  0.031
//   channel_separable       4     64  0.098
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include <zipcache/zipcache.hpp>

namespace {

constexpr int32_t num_heads = 1;
constexpr int64_t num_tokens = 64;
constexpr int32_t head_dim = 32;
constexpr int32_t outlier = 7;

std::vector<float> make_tensor() {
  std::vector<float> x;
  for (uint64_t i = 0; i < num_tokens * head_dim; ++i) {
    const float noise = static_cast<float>(zipcache::mix64(i) >> 40) * 0x1p-23f - 1.0f;
    x.push_back(i % head_dim == outlier ? 100.0f * noise : noise);
  }
  return x;
}

/// Quantizes, dequantizes and returns the mean error of all channels but the outlier.
template <class Granularity, int Bits>
double show(const std::vector<float>& x) {
  using codes = zipcache::code_view<Granularity, Bits>;
  std::vector<uint8_t> code_bytes(x.size());
  std::vector<zipcache::affine_params<zipcache::half>> pairs(
      static_cast<size_t>(num_heads * codes::params_per_head(num_tokens, head_dim)));
  std::vector<zipcache::half> magnitudes(num_heads * head_dim);
  const codes view{num_heads,         num_tokens,   head_dim,
                   code_bytes.data(), pairs.data(), magnitudes.data()};
  const auto tensor = zipcache::hnd<const float>(x.data(), num_heads, num_tokens, head_dim);
  zipcache::quantize(zipcache::cpu_backend{}, tensor, view);

  std::vector<float> back(x.size());
  zipcache::dequantize(zipcache::cpu_backend{}, view,
                       zipcache::hnd(back.data(), num_heads, num_tokens, head_dim));
  double sum = 0.0;
  for (size_t i = 0; i < x.size(); ++i)
    if (i % head_dim != outlier) sum += static_cast<double>(std::fabs(back[i] - x[i]));
  const double mean = sum / static_cast<double>(num_tokens * (head_dim - 1));
  std::printf("%-20s %4d %6zu  %.3f\n", Granularity::name().c_str(), Bits, pairs.size(), mean);
  return mean;
}

}  // namespace

int main() {
  const std::vector<float> x = make_tensor();
  std::printf("layout               bits  pairs  mean error of ordinary channels\n");
  const double by_token = show<zipcache::tokenwise, 4>(x);
  const double by_channel = show<zipcache::channelwise, 4>(x);
  const double separable = show<zipcache::channel_separable_tokenwise, 4>(x);
  return by_channel < separable && separable < by_token ? 0 : 1;
}

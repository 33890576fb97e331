// The cache as an engine uses it: a prompt is compressed, then every new token is appended and
// attends to all that is there, directly on the packed codes. The new tokens wait in 16 bits until
// there are 160 of them; the 161st starts the next window.
//
//   960 tokens of prompt and 161 new ones: 1121 tokens
//   compressed 3.97 times (real bytes; the paper's formula says 4.76)
//   attention is within 0.015 of attention in 16 bits; outputs reach 0.059
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <vector>

#include <zipcache/zipcache.hpp>

namespace {

constexpr zipcache::cache_shape shape{
    .num_layers = 1, .num_qo_heads = 8, .num_kv_heads = 2, .head_dim = 64};
constexpr int64_t prompt_len = 960, num_new = 161, length = prompt_len + num_new;

/// [num_tokens, num_heads, head_dim], the order in which projections deliver it.
std::vector<float> make_tensor(int32_t num_heads, uint64_t seed) {
  std::vector<float> x(static_cast<size_t>(length * num_heads * shape.head_dim));
  for (size_t i = 0; i < x.size(); ++i)
    x[i] = static_cast<float>(zipcache::mix64(seed << 32 | i) >> 40) * 0x1p-23f - 1.0f;
  return x;
}

/// Brings the prompt, then the new tokens one by one; returns the last token's output.
template <class Policies>
std::vector<float> run(zipcache::footprint& bytes) {
  const std::vector<float> q = make_tensor(shape.num_qo_heads, 1);
  const std::vector<float> k = make_tensor(shape.num_kv_heads, 2);
  const std::vector<float> v = make_tensor(shape.num_kv_heads, 3);
  const auto q_view =
      zipcache::nhd<const float>(q.data(), length, shape.num_qo_heads, shape.head_dim);
  const auto k_view =
      zipcache::nhd<const float>(k.data(), length, shape.num_kv_heads, shape.head_dim);
  const auto v_view =
      zipcache::nhd<const float>(v.data(), length, shape.num_kv_heads, shape.head_dim);

  zipcache::kv_cache<float, Policies> cache(shape);
  const zipcache::sequence_id sequence = cache.create();
  cache.prefill(sequence, 0, q_view.tokens(0, prompt_len), k_view.tokens(0, prompt_len),
                v_view.tokens(0, prompt_len));
  std::vector<float> out(static_cast<size_t>(shape.num_qo_heads * shape.head_dim));
  const auto out_view = zipcache::nhd(out.data(), 1, shape.num_qo_heads, shape.head_dim);
  for (int64_t token = prompt_len; token < length; ++token) {
    cache.append(sequence, 0, k_view.tokens(token, 1), v_view.tokens(token, 1));
    cache.attend(sequence, 0, q_view.tokens(token, 1), out_view);
  }
  bytes = cache.footprint();
  return out;
}

}  // namespace

int main() {
  zipcache::footprint compressed, plain;
  const std::vector<float> out = run<zipcache::presets::paper>(compressed);
  const std::vector<float> exact = run<zipcache::presets::uncompressed>(plain);
  float error = 0.0f, largest = 0.0f;
  for (size_t i = 0; i < out.size(); ++i) {
    error = std::max(error, std::fabs(out[i] - exact[i]));
    largest = std::max(largest, std::fabs(exact[i]));
  }
  const double paper = zipcache::paper_ratio<zipcache::presets::paper>(
      {1, shape.num_kv_heads * shape.head_dim, static_cast<double>(length)}, 0.6);
  std::printf("%d tokens of prompt and %d new ones: %d tokens\n", static_cast<int>(prompt_len),
              static_cast<int>(num_new), static_cast<int>(length));
  std::printf("compressed %.2f times (real bytes; the paper's formula says %.2f)\n",
              compressed.ratio(), paper);
  std::printf("attention is within %.3f of attention in 16 bits; outputs reach %.3f\n",
              static_cast<double>(error), static_cast<double>(largest));
  return compressed.ratio() > 3.9 && error < largest / 2 ? 0 : 1;
}

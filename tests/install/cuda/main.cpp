// The part of the consumer that the host's compiler compiles: the same tokens in a cache on the CPU
// and, where there is a GPU, in one in device memory. Both libraries are one.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include <zipcache/version.hpp>
#include <zipcache/zipcache.hpp>

#include "device_part.hpp"

using zipcache::half;

namespace {

constexpr zipcache::cache_shape shape{
    .num_layers = 1, .num_qo_heads = 4, .num_kv_heads = 2, .head_dim = 64};
constexpr int64_t num_tokens = 100;

std::vector<half> make_tensor(int32_t num_heads, uint64_t seed) {
  std::vector<half> x(static_cast<size_t>(num_tokens * num_heads * shape.head_dim));
  for (size_t i = 0; i < x.size(); ++i) {
    x[i] = zipcache::from_float<half>(
        static_cast<float>(zipcache::mix64(seed << 32 | i) >> 40) * 0x1p-23f - 1.0f);
  }
  return x;
}

}  // namespace

int main() {
  char version[32];
  std::snprintf(version, sizeof version, "%d.%d.%d", ZIPCACHE_VERSION_MAJOR, ZIPCACHE_VERSION_MINOR,
                ZIPCACHE_VERSION_PATCH);
  std::printf("zipcache %s\n", version);
  if (std::strcmp(version, EXPECTED_VERSION) != 0) return 1;

  const auto q = make_tensor(shape.num_qo_heads, 1);
  const auto k = make_tensor(shape.num_kv_heads, 2);
  const auto v = make_tensor(shape.num_kv_heads, 3);
  const auto q_view = zipcache::nhd(q.data(), num_tokens, shape.num_qo_heads, shape.head_dim);
  const auto k_view = zipcache::nhd(k.data(), num_tokens, shape.num_kv_heads, shape.head_dim);
  const auto v_view = zipcache::nhd(v.data(), num_tokens, shape.num_kv_heads, shape.head_dim);
  zipcache::kv_cache<half> cache(shape);
  const zipcache::sequence_id sequence = cache.create();
  std::vector<half> out(q.size());
  cache.append_and_attend(
      sequence, 0, q_view, k_view, v_view,
      zipcache::nhd(out.data(), num_tokens, shape.num_qo_heads, shape.head_dim));
  if (!has_gpu()) {
    std::puts("no GPU: only the CPU's part was run");
    return 0;
  }
  const std::vector<float> on_gpu = attend_on_gpu(shape, q, k, v, num_tokens);
  // All is in 16 bits yet, so the backends differ by rounding alone; outputs are below 1.
  float difference = 0.0f;
  for (size_t i = 0; i < out.size(); ++i)
    difference = std::fmax(difference, std::fabs(zipcache::to_float(out[i]) - on_gpu[i]));
  std::printf("CPU and GPU differ by %g\n", static_cast<double>(difference));
  return difference < 0x1p-10f ? 0 : 1;  // a unit in the last place of half
}

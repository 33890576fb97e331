// Quantizing whole tensors on both backends: the same codes, pairs, magnitudes and values.
#include <cstring>
#include <vector>

#include <zipcache/quantize/quantize.cuh>

#include "support/catch.hpp"
#include "support/device.cuh"
#include "support/generators.hpp"

using namespace zipcache_test;
using namespace zipcache;
using f16 = zipcache::half;

namespace {

template <class T>
bool same_bytes(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

template <class Granularity, int Bits, class Storage>
void check_quantize(int32_t num_heads, int64_t num_tokens, int32_t head_dim, content what) {
  INFO(Granularity::name() << ", " << Bits << " bits, num_tokens " << num_tokens << ", head_dim "
                           << head_dim << ", " << name_of(what));
  using view = code_view<Granularity, Bits, Storage>;
  const auto values = make_tensor<Storage>(what, num_heads, num_tokens, head_dim, 3);
  const auto heads = static_cast<size_t>(num_heads);
  std::vector<uint8_t> codes(values.size());
  std::vector<affine_params<Storage>> params(
      heads * static_cast<size_t>(view::params_per_head(num_tokens, head_dim)));
  std::vector<Storage> magnitudes(heads * static_cast<size_t>(head_dim));
  quantize(cpu_backend{}, hnd<const Storage>(values.data(), num_heads, num_tokens, head_dim),
           view{num_heads, num_tokens, head_dim, codes.data(), params.data(), magnitudes.data()});
  std::vector<float> back(values.size());
  dequantize(cpu_backend{},
             view{num_heads, num_tokens, head_dim, codes.data(), params.data(), magnitudes.data()},
             hnd(back.data(), num_heads, num_tokens, head_dim));

  const auto device_values = upload(values);
  const auto device_codes = poisoned<uint8_t>(codes.size());
  const auto device_params = poisoned<affine_params<Storage>>(params.size());
  const auto device_magnitudes = poisoned<Storage>(magnitudes.size());
  const auto device_back = poisoned<float>(back.size());
  const view device_view{num_heads,           num_tokens,           head_dim,
                         device_codes.data(), device_params.data(), device_magnitudes.data()};
  quantize(cuda_backend{},
           hnd<const Storage>(device_values.data(), num_heads, num_tokens, head_dim), device_view);
  dequantize(cuda_backend{}, device_view, hnd(device_back.data(), num_heads, num_tokens, head_dim));
  CHECK(same_bytes(download(device_codes), codes));
  CHECK(same_bytes(download(device_params), params));
  if (Granularity::has_channel_magnitudes)
    CHECK(same_bytes(download(device_magnitudes), magnitudes));
  CHECK(same_bytes(download(device_back), back));
}

}  // namespace

TEMPLATE_TEST_CASE("quantize: both backends give the same codes under every group layout",
                   "[equality][quantize]", tokenwise, groupwise<16>, channelwise,
                   channelwise_blocks, channel_separable_tokenwise) {
  for (const int64_t num_tokens : {1, 31, 33, 300})
    check_quantize<TestType, 4, f16>(2, num_tokens, 64, content::gaussian);
  for (const int32_t head_dim : {16, 80, 256})
    check_quantize<TestType, 2, bfloat16>(2, 40, head_dim, content::outlier_channels);
  for (const content what : all_contents) {
    check_quantize<TestType, 8, f16>(1, 70, 32, what);
    check_quantize<TestType, 1, bfloat16>(1, 70, 32, what);
    check_quantize<TestType, 3, f16>(1, 70, 32, what);
  }
}

TEST_CASE("quantize: values that are not finite take no part on either backend",
          "[equality][quantize]") {
  std::vector<f16> values = make_tensor<f16>(content::gaussian, 1, 64, 32, 5);
  for (size_t i = 0; i < values.size(); i += 5) values[i].bits = static_cast<uint16_t>(0x7c00u);
  for (size_t i = 1; i < values.size(); i += 7) values[i].bits = static_cast<uint16_t>(0xfe01u);
  for (size_t i = 2; i < values.size(); i += 11) values[i].bits = static_cast<uint16_t>(0xfc00u);
  using view = code_view<channelwise, 4, f16>;
  std::vector<uint8_t> codes(values.size());
  std::vector<affine_params<f16>> params(32);
  quantize(cpu_backend{}, hnd<const f16>(values.data(), 1, 64, 32),
           view{1, 64, 32, codes.data(), params.data(), nullptr});
  const auto device_values = upload(values);
  const auto device_codes = poisoned<uint8_t>(codes.size());
  const auto device_params = poisoned<affine_params<f16>>(params.size());
  quantize(cuda_backend{}, hnd<const f16>(device_values.data(), 1, 64, 32),
           view{1, 64, 32, device_codes.data(), device_params.data(), nullptr});
  CHECK(same_bytes(download(device_codes), codes));
  CHECK(same_bytes(download(device_params), params));
}

TEST_CASE("quantize: wrong arguments are refused before anything is launched",
          "[equality][quantize]") {
  const auto values = upload(make_tensor<f16>(content::gaussian, 1, 8, 32, 1));
  const auto codes = poisoned<uint8_t>(8 * 32);
  const auto params = poisoned<affine_params<f16>>(8);
  std::vector<f16> host(8 * 32);
  using view = code_view<tokenwise, 4, f16>;
  const view good{1, 8, 32, codes.data(), params.data(), nullptr};
  const auto refused = [&](const f16* from, int64_t num_tokens, int32_t head_dim, view out) {
    CHECK_THROWS_AS(quantize(cuda_backend{}, hnd<const f16>(from, 1, num_tokens, head_dim), out),
                    argument_error);
  };
  refused(host.data(), 8, 32, good);
  refused(nullptr, 8, 32, good);
  refused(values.data(), 7, 32, good);
  refused(values.data(), 8, 40, good);
  refused(values.data(), 8, 32, {1, 8, 32, nullptr, params.data(), nullptr});
  refused(values.data(), 8, 32, {1, 8, 32, codes.data(), nullptr, nullptr});
  CHECK(download(codes)[0] == 0xa5);
}

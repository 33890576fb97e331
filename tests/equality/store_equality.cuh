// One comparison that all tests of store share: the same prompt sealed on both backends.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include <zipcache/policy/presets.hpp>
#include <zipcache/store/dequantize.cuh>
#include <zipcache/store/store.cuh>

#include "support/catch.hpp"
#include "support/device_prompt.cuh"
#include "support/sealed_tokens.hpp"

namespace zipcache_test {

/// Shape with as many salient tokens as the policies' budget gives.
template <class Policies>
token_shape prompt_shape(int64_t num_tokens, int32_t head_dim, content what = content::gaussian) {
  token_shape shape;
  shape.num_kv_heads = 2;
  shape.num_tokens = num_tokens;
  shape.head_dim = head_dim;
  shape.num_salient =
      Policies::budget_policy::num_salient(num_tokens, {Policies::budget_policy::default_ratio, 0});
  shape.keys = what;
  shape.values = what;
  return shape;
}

/// Bitmaps as the caller of store gives them; bits behind the last token are set, and must not
/// matter.
template <class Policies>
std::vector<uint32_t> dirty_bitmap(const zipcache::segment<Policies>& sealed) {
  std::vector<uint32_t> bitmap = sealed.salient_bitmap;
  const int64_t words = sealed.shape.bitmap_words();
  if (sealed.shape.num_tokens % 32 != 0) {
    for (int32_t head = 0; head < sealed.shape.num_kv_heads; ++head)
      bitmap[static_cast<size_t>((head + 1) * words - 1)] |= ~0u << (sealed.shape.num_tokens % 32);
  }
  return bitmap;
}

template <class Policies, class Storage>
void check_store(const token_shape& shape, uint64_t seed = 1) {
  INFO("num_tokens " << shape.num_tokens << ", num_salient " << shape.num_salient << ", head_dim "
                     << shape.head_dim << ", " << name_of(shape.keys));
  const sealed_tokens<Policies, Storage> cpu(shape, seed);
  // The second of three sequences.
  device_prompt<Policies, Storage> device(cpu.sealed->shape, 3, cpu.pool->page_bytes());
  const auto k = upload(cpu.k);
  const auto v = upload(cpu.v);
  const auto bitmap = upload(dirty_bitmap(*cpu.sealed));
  const auto view = [&](const device_array<Storage>& x) {
    return zipcache::tensor_view<const Storage>(
        zipcache::hnd(x.data(), shape.num_kv_heads, shape.num_tokens, shape.head_dim));
  };
  const test_workspace workspace(
      zipcache::store_workspace_bytes(device.layer, 1, shape.num_tokens));
  zipcache::store(zipcache::cuda_backend{}, device.layer, 1, view(k), view(v), bitmap.data(),
                  shape.num_salient, workspace);
  CHECK(first_difference(device, 1, *cpu.sealed) == "");

  const size_t size = static_cast<size_t>(shape.num_kv_heads * shape.num_tokens * shape.head_dim);
  const auto k_out = poisoned<float>(size);
  const auto v_out = poisoned<float>(size);
  const auto out_view = [&](const device_array<float>& x) {
    return zipcache::hnd(x.data(), shape.num_kv_heads, shape.num_tokens, shape.head_dim);
  };
  zipcache::dequantize(zipcache::cuda_backend{}, device.layer, 1, out_view(k_out), out_view(v_out));
  const auto k_values = download(k_out);
  const auto v_values = download(v_out);
  const size_t row_bytes = static_cast<size_t>(shape.head_dim) * sizeof(float);
  bool same = true;
  for (int32_t head = 0; head < shape.num_kv_heads; ++head) {
    const auto compare = [&](int64_t token, const float* k_row, const float* v_row) {
      const size_t first = static_cast<size_t>((head * shape.num_tokens + token) * shape.head_dim);
      same = same && std::memcmp(k_values.data() + first, k_row, row_bytes) == 0 &&
             std::memcmp(v_values.data() + first, v_row, row_bytes) == 0;
    };
    zipcache::dequantize_head<Policies, Storage>(*cpu.sealed, head, compare);
  }
  CHECK(same);
}

}  // namespace zipcache_test

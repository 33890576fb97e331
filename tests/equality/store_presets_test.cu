// Presets, element types, head dimensions, lengths and contents, one axis at a time.
#include "store_equality.cuh"

using namespace zipcache_test;
using zipcache::bfloat16;
using paper = zipcache::presets::paper;
using f16 = zipcache::half;

TEST_CASE("store: both backends write the same bytes under the paper's policies, at any length",
          "[equality][store]") {
  for (const int64_t num_tokens : {0, 1, 31, 32, 33, 159, 160, 161, 1000, 4097})
    check_store<paper, f16>(prompt_shape<paper>(num_tokens, 128));
}

TEST_CASE("store: both backends write the same bytes at any head dimension", "[equality][store]") {
  for (const int32_t head_dim : {16, 48, 64, 80, 96, 112, 256})
    check_store<paper, f16>(prompt_shape<paper>(333, head_dim));
}

TEST_CASE("store: both backends write the same bytes for any content", "[equality][store]") {
  for (const content what : all_contents) {
    check_store<paper, f16>(prompt_shape<paper>(161, 64, what), 3);
    check_store<paper, bfloat16>(prompt_shape<paper>(161, 64, what), 4);
  }
}

TEST_CASE("store: both backends write the same bytes whatever the share of salient tokens",
          "[equality][store]") {
  for (const int64_t num_salient : {0, 1, 31, 32, 33, 160, 199, 200}) {
    token_shape shape = prompt_shape<paper>(200, 64);
    shape.num_salient = num_salient;
    check_store<paper, f16>(shape);
  }
}

TEST_CASE("store: both backends write the same bytes whatever the size of a page",
          "[equality][store]") {
  for (const int64_t tiles : {1, 2, 5, 16}) {
    token_shape shape = prompt_shape<paper>(1000, 32);
    shape.tiles_in_page = tiles;
    check_store<paper, f16>(shape);
  }
}

TEMPLATE_TEST_CASE("store: both backends write the same bytes under every preset",
                   "[equality][store]", zipcache::presets::mikv, zipcache::presets::h2o,
                   zipcache::presets::kivi_2bit, zipcache::presets::uniform_4bit,
                   zipcache::presets::uncompressed, zipcache::presets::keys_4_values_2) {
  for (const int64_t num_tokens : {1, 33, 161, 1000})
    check_store<TestType, f16>(prompt_shape<TestType>(num_tokens, 128));
  check_store<TestType, f16>(prompt_shape<TestType>(161, 96, content::extremes));
  check_store<TestType, bfloat16>(prompt_shape<TestType>(161, 96, content::token_norms));
}

TEST_CASE("store: several sequences in one call get what each gets alone", "[equality][store]") {
  const token_shape shape = prompt_shape<paper>(300, 64);
  std::vector<f16> k_values, v_values;
  std::vector<uint32_t> bitmap;
  std::vector<sealed_tokens<paper, f16>> cpu;
  for (uint64_t seed = 1; seed <= 2; ++seed) {
    cpu.emplace_back(shape, seed);
    k_values.insert(k_values.end(), cpu.back().k.begin(), cpu.back().k.end());
    v_values.insert(v_values.end(), cpu.back().v.begin(), cpu.back().v.end());
    const auto& words = cpu.back().sealed->salient_bitmap;
    bitmap.insert(bitmap.end(), words.begin(), words.end());
  }
  device_prompt<paper, f16> device(cpu[0].sealed->shape, 3, cpu[0].pool->page_bytes());
  const auto k = upload(k_values);
  const auto v = upload(v_values);
  const auto salient = upload(bitmap);
  const auto view = [&](const device_array<f16>& x) {
    return zipcache::tensor_view<const f16>(
        zipcache::hnd(x.data(), shape.num_kv_heads, shape.num_tokens, shape.head_dim));
  };
  const int64_t stride = shape.num_kv_heads * shape.num_tokens * shape.head_dim;
  const test_workspace workspace(
      zipcache::store_workspace_bytes(device.layer, 2, shape.num_tokens));
  zipcache::store(zipcache::cuda_backend{}, device.layer, zipcache::sequence_batch{1, 2}, view(k),
                  view(v), stride, stride, salient.data(), shape.num_salient, workspace);
  CHECK(first_difference(device, 1, *cpu[0].sealed) == "");
  CHECK(first_difference(device, 2, *cpu[1].sealed) == "");
}

TEST_CASE("store: tokens before heads, and slices of larger tensors, are read in place",
          "[equality][store]") {
  const token_shape shape = prompt_shape<paper>(100, 64);
  const sealed_tokens<paper, f16> cpu(shape, 5);
  // [tokens + 7, heads, head_dim], the prompt behind seven other tokens.
  const auto transpose = [&](const std::vector<f16>& x) {
    std::vector<f16> nhd(static_cast<size_t>((shape.num_tokens + 7) * 2 * 64));
    for (int32_t head = 0; head < 2; ++head)
      for (int64_t token = 0; token < shape.num_tokens; ++token)
        std::copy_n(x.begin() + (head * shape.num_tokens + token) * 64, 64,
                    nhd.begin() + ((token + 7) * 2 + head) * 64);
    return upload(nhd);
  };
  const auto k = transpose(cpu.k);
  const auto v = transpose(cpu.v);
  const auto view = [&](const device_array<f16>& x) {
    return zipcache::tensor_view<const f16>(zipcache::nhd(x.data(), shape.num_tokens + 7, 2, 64))
        .tokens(7, shape.num_tokens);
  };
  device_prompt<paper, f16> device(cpu.sealed->shape, 2, cpu.pool->page_bytes());
  const auto bitmap = upload(cpu.sealed->salient_bitmap);
  const test_workspace workspace(
      zipcache::store_workspace_bytes(device.layer, 1, shape.num_tokens));
  zipcache::store(zipcache::cuda_backend{}, device.layer, 1, view(k), view(v), bitmap.data(),
                  shape.num_salient, workspace);
  CHECK(first_difference(device, 1, *cpu.sealed) == "");
}

TEST_CASE("store: wrong arguments are refused before anything is launched", "[equality][store]") {
  const token_shape shape = prompt_shape<paper>(64, 64);
  const sealed_tokens<paper, f16> cpu(shape);
  device_prompt<paper, f16> device(cpu.sealed->shape, 1, cpu.pool->page_bytes());
  const auto memory = upload(cpu.k);
  const auto bitmap = upload(cpu.sealed->salient_bitmap);
  const size_t bytes = zipcache::store_workspace_bytes(device.layer, 1, shape.num_tokens);
  const test_workspace workspace(bytes);
  const zipcache::tensor_view<const f16> good = zipcache::hnd(memory.data(), 2, 64, 64);
  const auto run = [&](const auto& layer, int32_t sequence, zipcache::tensor_view<const f16> k,
                       zipcache::tensor_view<const f16> v, const uint32_t* salient,
                       int64_t num_salient, zipcache::device_workspace given) {
    zipcache::store(zipcache::cuda_backend{}, layer, sequence, k, v, salient, num_salient, given);
  };
  const auto refused = [&](const auto&... arguments) {
    CHECK_THROWS_AS(run(arguments...), zipcache::argument_error);
  };
  const zipcache::device_workspace given = workspace;
  refused(device.layer, 1, good, good, bitmap.data(), 38, given);
  refused(device.layer, -1, good, good, bitmap.data(), 38, given);
  refused(device.layer, 0, good, good, bitmap.data(), 65, given);
  refused(device.layer, 0, good, good, bitmap.data(), -1, given);
  refused(device.layer, 0, good, good, nullptr, 38, given);
  refused(device.layer, 0, good, good, cpu.sealed->salient_bitmap.data(), 38, given);
  refused(device.layer, 0, good, good, bitmap.data(), 38,
          zipcache::device_workspace{given.data, bytes - 1});
  refused(device.layer, 0, good, good, bitmap.data(), 38, zipcache::device_workspace{});
  auto changed = good;
  changed.data = cpu.k.data();
  refused(device.layer, 0, changed, good, bitmap.data(), 38, given);
  refused(device.layer, 0, good, changed, bitmap.data(), 38, given);
  changed = good;
  changed.data = memory.data() + 1;
  refused(device.layer, 0, changed, good, bitmap.data(), 38, given);
  changed = good;
  changed.num_tokens = 63;
  refused(device.layer, 0, good, changed, bitmap.data(), 38, given);
  changed = good;
  changed.head_dim = 48;
  refused(device.layer, 0, changed, good, bitmap.data(), 38, given);
  auto layer = device.layer;
  layer.max_pages = 0;
  refused(layer, 0, good, good, bitmap.data(), 38, given);
  layer = device.layer;
  layer.bitmap_words = 1;
  refused(layer, 0, good, good, bitmap.data(), 38, given);
  layer = device.layer;
  layer.head_dim = 272;
  refused(layer, 0, good, good, bitmap.data(), 38, given);
  // Nothing was written.
  CHECK(download(device.counts)[0].prompt_tokens == 0);
  for (const auto& entry : download(device.table)) CHECK(entry.salient_tokens == 0xa5a5);
}

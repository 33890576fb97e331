// The cache as an engine drives it. append: one interval of tokens, each appended and attended, and
// the flush that ends it; bytes are those of the tokens in 16 bits. decode: one token over a long
// cache; extend: an interval of tokens at once over it (bytes are all that the cache holds).
// prefill: a prompt is scored, selected and stored.
#include <string>
#include <vector>

#include <benchmark/benchmark.h>

#include <zipcache/kv_cache.hpp>

#include "support/read_bandwidth.hpp"
#include "support/tensors.hpp"

using namespace zipcache;

namespace {

constexpr int32_t num_kv_heads = 2, group = 4, num_qo_heads = num_kv_heads * group;

/// Tensors of `count` tokens.
struct tokens {
  int64_t count;
  int32_t dim;
  std::vector<half> q, k, v, out;

  tokens(int64_t n, int32_t head_dim)
      : count(n),
        dim(head_dim),
        q(zipcache_bench::make_tensor<half>(num_qo_heads, n, head_dim, 1)),
        k(zipcache_bench::make_tensor<half>(num_kv_heads, n, head_dim, 2)),
        v(zipcache_bench::make_tensor<half>(num_kv_heads, n, head_dim, 3)),
        out(q.size()) {}
  tensor_view<const half> q_view() const { return hnd(q.data(), num_qo_heads, count, dim); }
  tensor_view<const half> k_view() const { return hnd(k.data(), num_kv_heads, count, dim); }
  tensor_view<const half> v_view() const { return hnd(v.data(), num_kv_heads, count, dim); }
  tensor_view<half> out_view() { return hnd(out.data(), num_qo_heads, count, dim); }
};

template <class Policies>
void append_interval(benchmark::State& state) {
  const int32_t dim = static_cast<int32_t>(state.range(0));
  constexpr int64_t interval = Policies::schedule_policy::default_interval;
  tokens interval_tokens(interval, dim), first(1, dim);
  const cache_shape shape{
      .num_qo_heads = num_qo_heads, .num_kv_heads = num_kv_heads, .head_dim = dim};
  for (auto _ : state) {
    kv_cache<half, Policies> cache(shape);
    const sequence_id sequence = cache.create();
    for (int64_t token = 0; token < interval; ++token) {
      cache.append(sequence, 0, interval_tokens.k_view().tokens(token, 1),
                   interval_tokens.v_view().tokens(token, 1));
      cache.attend(sequence, 0, interval_tokens.q_view().tokens(token, 1), first.out_view());
    }
    // The next token flushes.
    cache.append(sequence, 0, first.k_view(), first.v_view());
    benchmark::DoNotOptimize(cache.length(sequence));
  }
  state.SetItemsProcessed(state.iterations() * interval);
  zipcache_bench::count_bytes(state, interval * num_kv_heads * dim * 4);
}

template <class Policies>
void decode(benchmark::State& state) {
  const int64_t kv_len = state.range(0);
  const int32_t dim = static_cast<int32_t>(state.range(1));
  const cache_shape shape{
      .num_qo_heads = num_qo_heads, .num_kv_heads = num_kv_heads, .head_dim = dim};
  kv_cache<half, Policies> cache(shape);
  const sequence_id sequence = cache.create();
  {
    const tokens prompt(kv_len, dim);
    cache.prefill(sequence, 0, prompt.q_view(), prompt.k_view(), prompt.v_view());
  }
  tokens token(1, dim);
  cache.append(sequence, 0, token.k_view(), token.v_view());
  for (auto _ : state) {
    cache.attend(sequence, 0, token.q_view(), token.out_view());
    benchmark::DoNotOptimize(token.out.data());
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(state.iterations());
  zipcache_bench::count_bytes(state, cache.footprint().total_bytes());
  state.counters["ratio"] = cache.footprint().ratio();
}

template <class Policies>
void extend(benchmark::State& state) {
  const int64_t kv_len = state.range(0);
  const int32_t dim = static_cast<int32_t>(state.range(1));
  const cache_shape shape{
      .num_qo_heads = num_qo_heads, .num_kv_heads = num_kv_heads, .head_dim = dim};
  kv_cache<half, Policies> cache(shape);
  const sequence_id sequence = cache.create();
  {
    const tokens prompt(kv_len, dim);
    cache.prefill(sequence, 0, prompt.q_view(), prompt.k_view(), prompt.v_view());
  }
  tokens more(160, dim);
  for (auto _ : state) {
    const sequence_id copy = cache.fork(sequence);
    cache.append_and_attend(copy, 0, more.q_view(), more.k_view(), more.v_view(), more.out_view());
    cache.release(copy);
    benchmark::DoNotOptimize(more.out.data());
  }
  state.SetItemsProcessed(state.iterations() * more.count);
  zipcache_bench::count_bytes(state, cache.footprint().total_bytes());
}

template <class Policies>
void prefill(benchmark::State& state) {
  const int64_t kv_len = state.range(0);
  const int32_t dim = static_cast<int32_t>(state.range(1));
  const cache_shape shape{
      .num_qo_heads = num_qo_heads, .num_kv_heads = num_kv_heads, .head_dim = dim};
  kv_cache<half, Policies> cache(shape);
  const tokens prompt(kv_len, dim);
  const std::vector<float> lse(static_cast<size_t>(kv_len * num_qo_heads), 8.0f);
  for (auto _ : state) {
    const sequence_id sequence = cache.create();
    cache.prefill(sequence, 0, prompt.q_view(), prompt.k_view(), prompt.v_view(), {.lse = lse});
    benchmark::DoNotOptimize(cache.length(sequence));
    cache.release(sequence);
  }
  state.SetItemsProcessed(state.iterations() * kv_len);
  zipcache_bench::count_bytes(state, kv_len * num_kv_heads * dim * 4);
}

template <class Policies>
void add(const std::string& preset) {
  benchmark::RegisterBenchmark(("kv_cache/cpu/append_and_flush/" + preset).c_str(),
                               append_interval<Policies>)
      ->ArgNames({"head_dim"})
      ->Arg(128)
      ->Unit(benchmark::kMillisecond);
  const auto add_long = [&](const std::string& name, void (*run)(benchmark::State&)) {
    benchmark::RegisterBenchmark(("kv_cache/cpu/" + name + "/" + preset).c_str(), run)
        ->ArgNames({"kv_len", "head_dim"})
        ->Args({4096, 128})
        ->Unit(benchmark::kMillisecond);
  };
  add_long("decode", decode<Policies>);
  add_long("extend", extend<Policies>);
  add_long("prefill", prefill<Policies>);
}

const bool added = [] {
  add<presets::paper>("paper");
  add<presets::kivi_2bit>("kivi_2bit");
  add<presets::uncompressed>("uncompressed");
  return true;
}();

}  // namespace

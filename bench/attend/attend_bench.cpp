// One decode step over sealed segments: bytes are those of the tiles and records, which is what
// attention must read. `attend/cpu/<preset>` is one KV head on one thread; `attend/cpu/layer/...`
// is a layer of 32 query heads and 8 KV heads on two threads, by every instruction set of this
// processor.
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>

#include <zipcache/attend/attend.hpp>
#include <zipcache/detail/thread_pool.hpp>

#include "support/read_bandwidth.hpp"
#include "support/segments.hpp"
#include "support/step_timing.hpp"

using namespace zipcache;

namespace {

constexpr int32_t group = 4;

/// KV heads of a layer, each a segment of its own, and the query row of each of their query heads.
template <class Policies>
struct layer {
  int32_t dim;
  std::vector<std::unique_ptr<zipcache_bench::benched_tokens<Policies>>> tokens;
  std::vector<std::shared_ptr<const segment<Policies>>> sealed;
  std::vector<half> q, out;
  std::vector<float> lse;

  layer(int32_t num_kv_heads, int64_t kv_len, int32_t head_dim)
      : dim(head_dim),
        q(zipcache_bench::make_tensor<half>(num_kv_heads * group, 1, head_dim, 3)),
        out(q.size()),
        lse(static_cast<size_t>(num_kv_heads * group)) {
    for (int32_t head = 0; head < num_kv_heads; ++head) {
      tokens.push_back(
          std::make_unique<zipcache_bench::benched_tokens<Policies>>(kv_len, head_dim));
      sealed.push_back(tokens.back()->seal());
    }
  }
  int64_t bytes() const {
    return tokens.front()->sealed_bytes() * static_cast<int64_t>(tokens.size());
  }

  void attend_head(int32_t head) {
    static thread_local attend_rows rows;
    const int32_t num_qo_heads = static_cast<int32_t>(sealed.size()) * group;
    load_queries(hnd<const half>(q.data(), num_qo_heads, 1, dim), head, group,
                 1.0f / std::sqrt(static_cast<float>(dim)), rows);
    attend<Policies, half>(cpu_backend{}, *sealed[static_cast<size_t>(head)], 0, rows);
    store_output(rows, head, group, hnd(out.data(), num_qo_heads, 1, dim), lse.data(),
                 num_qo_heads);
  }
  void attend_all(int32_t num_threads) {
    detail::parallel_for(num_threads, static_cast<int64_t>(sealed.size()),
                         [&](int64_t head) { attend_head(static_cast<int32_t>(head)); });
  }
};

template <class Policies>
void time(benchmark::State& state, layer<Policies>& benched, int32_t num_threads) {
  zipcache_bench::time_steps(state, [&] {
    benched.attend_all(num_threads);
    benchmark::DoNotOptimize(benched.out.data());
  });
  if (!is_finite(benched.lse[0])) state.SkipWithError("attention gave no finite log-sum-exp");
  state.SetItemsProcessed(state.iterations() * state.range(0));
  zipcache_bench::count_bytes(state, benched.bytes());
}

template <class Policies>
void one_head(benchmark::State& state) {
  layer<Policies> benched(1, state.range(0), static_cast<int32_t>(state.range(1)));
  time(state, benched, 1);
}

template <class Policies>
void whole_layer(benchmark::State& state, detail::cpu_level level) {
  layer<Policies> benched(8, state.range(0), static_cast<int32_t>(state.range(1)));
  const detail::cpu_level before = detail::active_cpu().exchange(level);
  time(state, benched, 2);
  detail::active_cpu() = before;
}

template <class Policies>
void add(const std::string& preset) {
  benchmark::RegisterBenchmark(("attend/cpu/" + preset).c_str(), one_head<Policies>)
      ->ArgNames({"kv_len", "head_dim"})
      ->Args({4096, 128})
      ->Args({4096, 64});
}

template <class Policies>
void add_layer(const std::string& preset) {
  for (const auto level : detail::every_cpu_level) {
    if (level > detail::supported_cpu()) continue;
    benchmark::RegisterBenchmark(
        ("attend/cpu/layer/" + preset + "/" + detail::name_of(level)).c_str(),
        whole_layer<Policies>, level)
        ->ArgNames({"kv_len", "head_dim"})
        ->Args({4096, 128})
        ->Args({32768, 128})
        ->Unit(benchmark::kMillisecond)
        ->UseRealTime();
  }
}

const bool added = [] {
  add<presets::paper>("paper");
  add<presets::mikv>("mikv");
  add<presets::h2o>("h2o");
  add<presets::kivi_2bit>("kivi_2bit");
  add<presets::uniform_4bit>("uniform_4bit");
  add<presets::keys_4_values_2>("keys_4_values_2");
  add<presets::uncompressed>("uncompressed");
  add_layer<presets::paper>("paper");
  add_layer<presets::uniform_4bit>("uniform_4bit");
  add_layer<presets::keys_4_values_2>("keys_4_values_2");
  return true;
}();

}  // namespace

// Saliency of a prompt by the default probes: bytes are those of the keys, once for each pass.
#include <cmath>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>

#include <zipcache/saliency/probe.hpp>
#include <zipcache/saliency/saliency.hpp>

#include "support/read_bandwidth.hpp"
#include "support/tensors.hpp"

using namespace zipcache;

namespace {

template <class Probe, bool LseIsKnown>
void run(benchmark::State& state) {
  constexpr int32_t group = 4;
  const int64_t kv_len = state.range(0);
  const int32_t dim = static_cast<int32_t>(state.range(1));
  const std::vector<int64_t> positions = Probe::rows(kv_len, {});
  const int64_t num_probes = static_cast<int64_t>(positions.size());
  const auto k = zipcache_bench::make_tensor<half>(1, kv_len, dim, 1);
  const auto q = zipcache_bench::make_tensor<half>(group, num_probes, dim, 2);
  const std::vector<float> lse(LseIsKnown ? static_cast<size_t>(group * num_probes) : 0, 8.0f);
  std::vector<float> scores(static_cast<size_t>(kv_len));
  const probe_queries<half> probes{hnd<const half>(q.data(), group, num_probes, dim), positions,
                                   lse};
  for (auto _ : state) {
    saliency<normalized_attention, per_kv_head, half, half>(
        cpu_backend{}, probes, hnd<const half>(k.data(), 1, kv_len, dim),
        1.0f / std::sqrt(static_cast<float>(dim)), scores);
    benchmark::DoNotOptimize(scores.data());
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(state.iterations() * kv_len);
  zipcache_bench::count_bytes(state,
                              static_cast<int64_t>(k.size() * sizeof(half)) * (LseIsKnown ? 1 : 2));
}

template <class Probe, bool LseIsKnown>
void add() {
  const std::string name =
      "saliency/cpu/" + Probe::name() + (LseIsKnown ? "/one_pass" : "/two_passes");
  benchmark::RegisterBenchmark(name.c_str(), run<Probe, LseIsKnown>)
      ->ArgNames({"kv_len", "head_dim"})
      ->Args({1024, 128})
      ->Unit(benchmark::kMillisecond);
}

const bool added = [] {
  add<recent_and_random_probes, true>();
  add<recent_and_random_probes, false>();
  add<all_probes, false>();
  return true;
}();

}  // namespace

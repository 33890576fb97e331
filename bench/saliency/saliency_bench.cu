// Saliency of a whole prompt on the GPU: 32 query heads on 8 KV heads, head_dim 128, the last 5 %
// and a random 5 % of the rows as probes. The time to compare with is that of causal prefill
// attention of the same shape; the arithmetic is counted over what the probes see.
#include <string>
#include <vector>

#include <benchmark/benchmark.h>

#include <zipcache/saliency/probe.hpp>
#include <zipcache/saliency/saliency.cuh>

#include "support/device_timing.cuh"

using namespace zipcache;
using namespace zipcache_bench;
using f16 = zipcache::half;

namespace {

constexpr int32_t num_qo_heads = 32;
constexpr int32_t num_kv_heads = 8;
constexpr int32_t head_dim = 128;
constexpr int num_sets = 2;  // of 64 MiB of keys each, more than any L2 cache

struct prompt {
  device_array<f16> q, k;
  device_array<float> scores;
  device_array<std::byte> memory;
};

void run(benchmark::State& state, bool with_lse) {
  if (!has_device(state)) return;
  const auto num_sequences = static_cast<int32_t>(state.range(0));
  const int64_t kv_len = state.range(1);
  const std::vector<int64_t> rows = recent_and_random_probes::rows(kv_len, {});
  const auto num_probes = static_cast<int64_t>(rows.size());
  const device_array<int64_t> positions = to_device(rows);
  const device_array<float> lse = to_device(
      std::vector<float>(static_cast<size_t>(num_sequences * num_qo_heads * num_probes), 8.0f));
  const saliency_batch batch{.num_sequences = num_sequences,
                             .q_stride = num_qo_heads * num_probes * head_dim,
                             .k_stride = num_kv_heads * kv_len * head_dim};
  const auto queries = [&](const prompt& p) {
    return device_probe_queries<f16>{hnd<const f16>(p.q.data(), num_qo_heads, num_probes, head_dim),
                                     positions.data(), with_lse ? lse.data() : nullptr};
  };
  const auto keys = [&](const prompt& p) {
    return hnd<const f16>(p.k.data(), num_kv_heads, kv_len, head_dim);
  };
  std::vector<prompt> sets;
  for (uint64_t seed = 0; seed < num_sets; ++seed) {
    prompt p{make_device_tensor<f16>(num_sequences * batch.q_stride, head_dim, 2 * seed),
             make_device_tensor<f16>(num_sequences * batch.k_stride, head_dim, 2 * seed + 1),
             device_array<float>(static_cast<size_t>(num_sequences * num_kv_heads * kv_len)),
             {}};
    p.memory = device_array<std::byte>(
        saliency_workspace_bytes<normalized_attention, per_kv_head>(queries(p), keys(p), batch));
    sets.push_back(std::move(p));
  }
  timed_graph graph(4, [&](cudaStream_t stream, int i) {
    const prompt& p = sets[static_cast<size_t>(i % num_sets)];
    saliency<normalized_attention, per_kv_head>(cuda_backend{stream}, queries(p), keys(p), 0.088f,
                                                p.scores.data(), {p.memory.data(), p.memory.size()},
                                                batch);
  });
  run_graph(state, graph);
  double seen = 0.0;
  for (const int64_t row : rows) seen += static_cast<double>(row + 1);
  const double products = seen * num_sequences * num_qo_heads * head_dim * (with_lse ? 2.0 : 4.0);
  state.counters["flop_per_second"] = benchmark::Counter(
      products * static_cast<double>(state.iterations()), benchmark::Counter::kIsRate);
}

void add(const std::string& name, bool with_lse) {
  benchmark::RegisterBenchmark(("saliency/cuda/" + name).c_str(),
                               [with_lse](benchmark::State& state) { run(state, with_lse); })
      ->ArgNames({"batch", "seq_len"})
      ->Args({8, 4096})
      ->Args({1, 4096})
      ->Args({1, 32768})
      ->UseManualTime()
      ->Unit(benchmark::kMicrosecond);
}

const bool added = [] {
  add("normalized_with_lse", true);
  add("normalized_without_lse", false);
  return true;
}();

}  // namespace

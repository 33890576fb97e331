// Selection of 60 % of the tokens on the GPU: bytes are those of the scores, of the list and of the
// bitmap.
#include <vector>

#include <benchmark/benchmark.h>

#include <zipcache/select/select.cuh>

#include "support/device_timing.cuh"

using namespace zipcache;
using namespace zipcache_bench;

namespace {

struct scored_heads {
  device_array<float> scores;
  device_array<int32_t> salient;
  device_array<uint32_t> bitmap;
};

void run(benchmark::State& state) {
  if (!has_device(state)) return;
  const auto num_heads = static_cast<int32_t>(state.range(0));
  const int64_t num_tokens = state.range(1);
  const selection_size size{num_tokens, num_tokens * 6 / 10, 0};
  const int64_t words = ceil_div<int64_t>(num_tokens, 32);
  const int64_t bytes = num_heads * (num_tokens * 4 + size.num_salient * 4 + words * 4);
  // More than any L2 cache in turn.
  const int num_sets = static_cast<int>(least<int64_t>(64, 1 + (int64_t{128} << 20) / bytes));
  std::vector<scored_heads> sets;
  for (int i = 0; i < num_sets; ++i) {
    sets.push_back(
        {make_device_tensor<float>(num_heads * num_tokens, 128, static_cast<uint64_t>(i)),
         device_array<int32_t>(static_cast<size_t>(num_heads * size.num_salient)),
         device_array<uint32_t>(static_cast<size_t>(num_heads * words))});
  }
  timed_graph graph(num_sets, [&](cudaStream_t stream, int i) {
    const scored_heads& set = sets[static_cast<size_t>(i)];
    select(cuda_backend{stream}, set.scores.data(), num_heads, size, set.salient.data(),
           set.bitmap.data());
  });
  run_graph(state, graph);
  count_device_bytes(state, bytes);
}

BENCHMARK(run)
    ->Name("select/cuda/share60")
    ->ArgNames({"heads", "seq_len"})
    ->Args({8, 160})
    ->Args({8, 4096})
    ->Args({64, 4096})
    ->Args({64, 32768})
    ->Args({8, 131072})
    ->UseManualTime()
    ->Unit(benchmark::kMicrosecond);

}  // namespace

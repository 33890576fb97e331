// Selection: bytes are those of the scores that are read and of the tokens that are written.
#include <vector>

#include <benchmark/benchmark.h>

#include <zipcache/select/select.hpp>

#include "support/read_bandwidth.hpp"
#include "support/tensors.hpp"

using namespace zipcache;

namespace {

void run(benchmark::State& state) {
  constexpr int32_t heads = 8;
  const int64_t tokens = state.range(0);
  const int64_t count = tokens * 6 / 10;
  const auto scores = zipcache_bench::make_tensor<float>(heads, tokens, 1, 1);
  std::vector<int32_t> salient(static_cast<size_t>(heads * count));
  for (auto _ : state) {
    select(cpu_backend{}, scores, heads, {tokens, count}, salient);
    benchmark::DoNotOptimize(salient.data());
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(state.iterations() * heads * tokens);
  zipcache_bench::count_bytes(state, 4 * static_cast<int64_t>(scores.size() + salient.size()));
}

const bool added = [] {
  benchmark::RegisterBenchmark("select/cpu/share60", run)
      ->ArgNames({"seq_len"})
      ->Arg(160)
      ->Arg(4096)
      ->Arg(32768);
  return true;
}();

}  // namespace

// One decode step of one KV head over a sealed segment: bytes are those of its tiles and record,
// which is what attention must read.
#include <cmath>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>

#include <zipcache/attend/attend.hpp>

#include "support/read_bandwidth.hpp"
#include "support/segments.hpp"

using namespace zipcache;

namespace {

template <class Policies>
void run(benchmark::State& state) {
  constexpr int32_t group = 4;
  const int32_t dim = static_cast<int32_t>(state.range(1));
  zipcache_bench::benched_tokens<Policies> tokens(state.range(0), dim);
  const auto sealed = tokens.seal();
  const auto q = zipcache_bench::make_tensor<half>(group, 1, dim, 3);
  std::vector<half> out(static_cast<size_t>(group * dim));
  std::vector<float> lse(group);
  attend_rows rows;
  for (auto _ : state) {
    load_queries(hnd<const half>(q.data(), group, 1, dim), 0, group,
                 1.0f / std::sqrt(static_cast<float>(dim)), rows);
    attend<Policies, half>(cpu_backend{}, *sealed, 0, rows);
    store_output(rows, 0, group, hnd(out.data(), group, 1, dim), lse.data(), group);
    benchmark::DoNotOptimize(out.data());
    benchmark::ClobberMemory();
  }
  if (!is_finite(lse[0])) state.SkipWithError("attention gave no finite log-sum-exp");
  state.SetItemsProcessed(state.iterations() * tokens.num_tokens);
  zipcache_bench::count_bytes(state, tokens.sealed_bytes());
}

template <class Policies>
void add(const std::string& preset) {
  benchmark::RegisterBenchmark(("attend/cpu/" + preset).c_str(), run<Policies>)
      ->ArgNames({"kv_len", "head_dim"})
      ->Args({4096, 128})
      ->Args({4096, 64});
}

const bool added = [] {
  add<presets::paper>("paper");
  add<presets::mikv>("mikv");
  add<presets::h2o>("h2o");
  add<presets::kivi_2bit>("kivi_2bit");
  add<presets::uniform_4bit>("uniform_4bit");
  add<presets::uncompressed>("uncompressed");
  return true;
}();

}  // namespace

// Sealing a segment: bytes are those of the 16-bit keys and values, read twice, and of the tiles
// and the record that are written.
#include <string>

#include <benchmark/benchmark.h>

#include <zipcache/store/store.hpp>

#include "support/read_bandwidth.hpp"
#include "support/segments.hpp"

using namespace zipcache;

namespace {

template <class Policies>
void run(benchmark::State& state) {
  zipcache_bench::benched_tokens<Policies> tokens(state.range(0),
                                                  static_cast<int32_t>(state.range(1)));
  for (auto _ : state) benchmark::DoNotOptimize(tokens.seal());
  state.SetItemsProcessed(state.iterations() * tokens.num_tokens);
  zipcache_bench::count_bytes(state, 2 * tokens.bytes_in_16_bits() + tokens.sealed_bytes());
}

template <class Policies>
void add(const std::string& preset) {
  benchmark::RegisterBenchmark(("store/cpu/" + preset).c_str(), run<Policies>)
      ->ArgNames({"seq_len", "head_dim"})
      ->Args({160, 128})
      ->Args({4096, 128});
}

const bool added = [] {
  add<presets::paper>("paper");
  add<presets::kivi_2bit>("kivi_2bit");
  add<presets::uncompressed>("uncompressed");
  return true;
}();

}  // namespace

// The quantize stage by itself: bytes are those of the 16-bit tensor that is read twice, once for
// the ranges and once for the codes, and of the codes and pairs that are written.
#include <string>
#include <vector>

#include <benchmark/benchmark.h>

#include <zipcache/quantize/quantize.hpp>

#include "support/read_bandwidth.hpp"
#include "support/tensors.hpp"

using namespace zipcache;

namespace {

template <class Granularity, int Bits>
void run(benchmark::State& state) {
  constexpr int32_t heads = 1;
  const int64_t tokens = state.range(0);
  const int32_t dim = static_cast<int32_t>(state.range(1));
  const auto x = zipcache_bench::make_tensor<half>(heads, tokens, dim, 1);
  std::vector<uint8_t> codes(x.size());
  using view_type = code_view<Granularity, Bits>;
  std::vector<affine_params<half>> params(
      static_cast<size_t>(heads * view_type::params_per_head(tokens, dim)));
  std::vector<half> magnitudes(static_cast<size_t>(heads * dim));
  const view_type view{heads, tokens, dim, codes.data(), params.data(), magnitudes.data()};
  for (auto _ : state) {
    quantize(cpu_backend{}, hnd<const half>(x.data(), heads, tokens, dim), view);
    benchmark::DoNotOptimize(codes.data());
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(state.iterations() * heads * tokens);
  zipcache_bench::count_bytes(state,
                              static_cast<int64_t>(2 * x.size() * sizeof(half) + codes.size() +
                                                   params.size() * sizeof(params[0])));
}

template <class Granularity, int Bits>
void add() {
  const std::string name =
      "quantize/cpu/" + Granularity::name() + "_" + std::to_string(Bits) + "bit";
  benchmark::RegisterBenchmark(name.c_str(), run<Granularity, Bits>)
      ->ArgNames({"seq_len", "head_dim"})
      ->Args({4096, 128});
}

const bool added = [] {
  add<channelwise, 4>();
  add<channelwise, 2>();
  add<channel_separable_tokenwise, 4>();
  add<tokenwise, 4>();
  add<groupwise<32>, 4>();
  return true;
}();

}  // namespace

// Compressing prompts on the GPU, keys and values together, all statistics included. Bytes are what
// must be moved: keys and values in 16 bits read once, pages, records and bitmaps written once; the
// percentage is of a copy of as many bytes.
#include <string>
#include <vector>

#include <benchmark/benchmark.h>

#include <zipcache/policy/presets.hpp>
#include <zipcache/store/store.cuh>
#include <zipcache/stream/options.hpp>

#include "support/device_timing.cuh"

using namespace zipcache;
using namespace zipcache_bench;
using f16 = zipcache::half;

namespace {

constexpr int32_t num_kv_heads = 8;
constexpr int32_t head_dim = 128;

/// Prompts of several sequences, and a layer that has room for them.
template <class Policies>
struct stored_prompts {
  using budget = typename Policies::budget_policy;
  segment_shape<Policies> shape;
  int32_t num_sequences;
  int64_t page_bytes;
  int64_t num_pages;  ///< of each head
  device_array<f16> k, v;
  device_array<uint32_t> salient, bitmaps;
  device_array<std::byte> pages, page_pairs, records, memory;
  device_array<page_entry> table;
  device_array<sequence_counts> counts;
  device_layer<Policies, f16> layer{};

  stored_prompts(int32_t sequences, int64_t num_tokens, uint64_t seed)
      : shape{num_kv_heads, head_dim, num_tokens,
              budget::num_salient(num_tokens, {budget::default_ratio, 0})},
        num_sequences(sequences),
        page_bytes(detail::natural_page_bytes<Policies>(detail::resolve<Policies>({}), head_dim)),
        num_pages(shape.plan(page_bytes).num_pages),
        k(make_device_tensor<f16>(values(), head_dim, 2 * seed)),
        v(make_device_tensor<f16>(values(), head_dim, 2 * seed + 1)) {
    const int64_t rows = int64_t{num_sequences} * num_kv_heads;
    std::vector<uint32_t> bits(static_cast<size_t>(rows * shape.bitmap_words()));
    for (int64_t row = 0; row < rows; ++row) {
      // Spread evenly, as saliency spreads them.
      for (int64_t i = 0; i < shape.num_salient; ++i) {
        const int64_t token = i * num_tokens / shape.num_salient;
        bits[static_cast<size_t>(row * shape.bitmap_words() + token / 32)] |= 1u << (token % 32);
      }
    }
    salient = to_device(bits);
    bitmaps = device_array<uint32_t>(bits.size());
    records = device_array<std::byte>(
        static_cast<size_t>(rows * segment_record<Policies>::bytes(head_dim)));
    std::vector<page_entry> entries;
    for (int64_t page = 0; page < rows * num_pages; ++page)
      entries.push_back({static_cast<uint32_t>(page), 0, 0});
    table = to_device(entries);
    counts = to_device(std::vector<sequence_counts>(static_cast<size_t>(num_sequences)));
    layer.num_qo_heads = num_kv_heads;
    layer.num_kv_heads = num_kv_heads;
    layer.head_dim = head_dim;
    layer.max_sequences = num_sequences;
    layer.set_page_bytes(page_bytes);
    pages = device_array<std::byte>(static_cast<size_t>(rows * num_pages * layer.page_code_bytes));
    page_pairs =
        device_array<std::byte>(static_cast<size_t>(rows * num_pages * layer.page_pair_bytes));
    layer.pages = pages.data();
    layer.page_pairs = page_pairs.data();
    layer.table = table.data();
    layer.max_pages = static_cast<int32_t>(num_pages);
    layer.records = records.data();
    layer.max_segments = 1;
    layer.bitmaps = bitmaps.data();
    layer.bitmap_words = static_cast<int32_t>(shape.bitmap_words());
    layer.counts = counts.data();
    memory = device_array<std::byte>(store_workspace_bytes(layer, num_sequences, num_tokens));
  }

  int64_t values() const { return num_sequences * sequence_values(); }
  int64_t sequence_values() const { return num_kv_heads * shape.num_tokens * head_dim; }
  tensor_view<const f16> view(const device_array<f16>& x, int64_t sequence) const {
    return hnd<const f16>(x.data() + sequence * sequence_values(), num_kv_heads, shape.num_tokens,
                          head_dim);
  }
  device_workspace workspace() const { return {memory.data(), memory.size()}; }

  /// By the format's own functions.
  int64_t moved_bytes() const {
    const int64_t rows = int64_t{num_sequences} * num_kv_heads;
    const int64_t tiles = ceil_div<int64_t>(shape.num_salient, tile_tokens) *
                              segment_shape<Policies>::salient_tile_bytes(head_dim) +
                          ceil_div<int64_t>(shape.num_tokens - shape.num_salient, tile_tokens) *
                              segment_shape<Policies>::regular_tile_bytes(head_dim);
    return 4 * values() + rows * (tiles + segment_record<Policies>::bytes(head_dim) +
                                  8 * shape.bitmap_words() + 8 * num_pages);
  }
};

template <class Policies>
void run(benchmark::State& state, bool at_once) {
  if (!has_device(state)) return;
  const auto num_sequences = static_cast<int32_t>(state.range(0));
  constexpr int num_sets = 2;
  std::vector<stored_prompts<Policies>> sets;
  for (uint64_t seed = 0; seed < num_sets; ++seed)
    sets.emplace_back(num_sequences, state.range(1), seed);
  timed_graph graph(4, [&](cudaStream_t stream, int i) {
    const stored_prompts<Policies>& set = sets[static_cast<size_t>(i % num_sets)];
    const cuda_backend backend{stream};
    if (at_once) {
      store(backend, set.layer, sequence_batch{0, num_sequences}, set.view(set.k, 0),
            set.view(set.v, 0), set.sequence_values(), set.sequence_values(), set.salient.data(),
            set.shape.num_salient, set.workspace());
      return;
    }
    for (int32_t sequence = 0; sequence < num_sequences; ++sequence) {
      store(backend, set.layer, sequence, set.view(set.k, sequence), set.view(set.v, sequence),
            set.salient.data() + sequence * num_kv_heads * set.shape.bitmap_words(),
            set.shape.num_salient, set.workspace());
    }
  });
  run_graph(state, graph);
  count_device_bytes(state, sets[0].moved_bytes());
}

template <class Policies>
void add(const std::string& name, bool at_once) {
  benchmark::RegisterBenchmark(
      ("store/cuda/" + name).c_str(),
      [at_once](benchmark::State& state) { run<Policies>(state, at_once); })
      ->ArgNames({"batch", "seq_len"})
      ->Args({8, 4096})
      ->Args({8, 32768})
      ->Args({1, 32768})
      ->Args({1, 131072})
      ->UseManualTime()
      ->Unit(benchmark::kMicrosecond);
}

const bool added = [] {
  add<presets::paper>("paper", true);
  add<presets::paper>("paper_one_by_one", false);
  add<presets::mikv>("mikv", true);
  add<presets::kivi_2bit>("kivi_2bit", true);
  return true;
}();

}  // namespace

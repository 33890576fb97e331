// Decode attention on the GPU over compressed prompts, one launch for a batch. Bytes are those that
// a step must read: pages, records and page tables; the percentage is of a copy's bandwidth, as
// everywhere. `step` is a whole decode step of one layer, append and attend, averaged over
// intervals, so that flushes are paid in it.
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>

#define ZIPCACHE_HEAD_DIMS 64, 128, 256
#include <zipcache/zipcache.cuh>

#include "support/device_timing.cuh"

using namespace zipcache;
using namespace zipcache_bench;
using f16 = zipcache::half;

// Grid: one block. Does nothing: what a launch of its own costs a step, whatever it does.
static __global__ void empty_kernel() {}

namespace {

constexpr int32_t num_kv_heads = 8;

/// Sequences with compressed prompts of the given lengths, and what attention over them needs.
template <class Policies>
class compressed_batch {
 public:
  compressed_batch(const std::vector<int64_t>& lengths, int32_t group, int32_t head_dim,
                   double salient_ratio, int64_t room, uint64_t seed, int32_t num_layers = 1)
      : shape_{num_layers, num_kv_heads * group, num_kv_heads, head_dim},
        longest_(*std::max_element(lengths.begin(), lengths.end())),
        cache_(shape_, {static_cast<int32_t>(lengths.size()), longest_ + room},
               {.salient_ratio = salient_ratio, .max_probes = 32, .seed = seed}),
        q_(make_device_tensor<f16>(
            static_cast<int64_t>(lengths.size()) * shape_.num_qo_heads * head_dim, head_dim, seed)),
        k_(make_device_tensor<f16>(static_cast<int64_t>(lengths.size()) * num_kv_heads * head_dim,
                                   head_dim, seed + 1)),
        out_(q_.size()),
        lengths_(lengths) {
    const auto keys =
        make_device_tensor<f16>(longest_ * num_kv_heads * head_dim, head_dim, seed + 2);
    const auto values =
        make_device_tensor<f16>(longest_ * num_kv_heads * head_dim, head_dim, seed + 3);
    for (const int64_t length : lengths) {
      sequences_.push_back(cache_.create());
      // One query row serves as all of them: only probes are read.
      const tensor_view<const f16> queries{
          q_.data(), shape_.num_qo_heads, length, head_dim, head_dim, 0};
      for (int32_t layer = 0; layer < num_layers; ++layer) {
        cache_.prefill(sequences_.back(), layer, queries,
                       nhd<const f16>(keys.data(), length, num_kv_heads, head_dim),
                       nhd<const f16>(values.data(), length, num_kv_heads, head_dim));
      }
      cache_.reserve(sequences_.back(), length + room);
    }
    batch_ = std::make_unique<sequence_list>(cache_.make_batch(sequences_));
    attend_memory_ =
        device_array<std::byte>(attend_workspace_bytes(cache_.layer(0), batch_->size()));
    append_memory_ = device_array<std::byte>(append_workspace_bytes(cache_.layer(0)));
    check_cuda("cudaMemset", cudaMemset(attend_memory_.data(), 0, attend_memory_.size()));
    check_cuda("cudaMemset", cudaMemset(append_memory_.data(), 0, append_memory_.size()));
    cache_.check();
  }

  void attend(cudaStream_t stream, int32_t layer = 0) const {
    attend_batch<f16> given;
    given.num_items = batch_->size();
    given.sequences = batch_->device_indices();
    given.q = q_.data();
    given.out = out_.data();
    zipcache::attend(cuda_backend{stream}, cache_.layer(layer), given, attend_memory_.data(),
                     attend_memory_.size());
  }
  void append(cudaStream_t stream, int32_t layer = 0) const {
    const append_batch<f16> given{batch_->size(), batch_->device_indices(), k_.data(), k_.data()};
    zipcache::append(cuda_backend{stream}, cache_.layer(layer), given, append_memory_.data(),
                     append_memory_.size());
  }

  /// Bytes that one step of attention reads of what was compressed, by the format's own functions.
  int64_t read_bytes(double salient_ratio) const {
    int64_t bytes = 0;
    for (const int64_t length : lengths_) {
      const int64_t salient = Policies::budget_policy::num_salient(length, {salient_ratio, 0});
      bytes += num_kv_heads * (ceil_div<int64_t>(salient, tile_tokens) *
                                   segment_shape<Policies>::salient_tile_bytes(shape_.head_dim) +
                               ceil_div<int64_t>(length - salient, tile_tokens) *
                                   segment_shape<Policies>::regular_tile_bytes(shape_.head_dim) +
                               segment_record<Policies>::bytes(shape_.head_dim));
    }
    return bytes;
  }
  double uncompressed_bytes() const {
    double tokens = 0;
    for (const int64_t length : lengths_) tokens += static_cast<double>(length);
    return tokens * num_kv_heads * shape_.head_dim * 4;
  }

 private:
  cache_shape shape_;
  int64_t longest_;
  kv_cache<f16, Policies, cuda_backend> cache_;
  device_array<f16> q_, k_, out_;
  std::vector<int64_t> lengths_;
  std::vector<sequence_id> sequences_;
  std::unique_ptr<sequence_list> batch_;
  device_array<std::byte> attend_memory_, append_memory_;
};

/// Enough sets of sequences to outgrow the caches several times.
template <class Policies>
std::vector<std::unique_ptr<compressed_batch<Policies>>> make_sets(
    const std::vector<int64_t>& lengths, int32_t group, int32_t head_dim, double salient_ratio,
    int64_t room) {
  std::vector<std::unique_ptr<compressed_batch<Policies>>> sets;
  int64_t bytes = 0;
  do {
    sets.push_back(std::make_unique<compressed_batch<Policies>>(
        lengths, group, head_dim, salient_ratio, room, 10 * sets.size() + 1));
    bytes += sets.back()->read_bytes(salient_ratio);
  } while (bytes < int64_t{250} << 20 && sets.size() < 12);
  return sets;
}

template <class Policies>
void attend_lengths(benchmark::State& state, const std::vector<int64_t>& lengths, int32_t group,
                    int32_t head_dim, double salient_ratio) {
  if (!has_device(state)) return;
  const auto sets = make_sets<Policies>(lengths, group, head_dim, salient_ratio, 0);
  timed_graph graph(static_cast<int>(2 * sets.size()), [&](cudaStream_t stream, int i) {
    sets[static_cast<size_t>(i) % sets.size()]->attend(stream);
  });
  run_graph(state, graph);
  count_device_bytes(state, sets[0]->read_bytes(salient_ratio));
  state.counters["uncompressed_over_read"] =
      sets[0]->uncompressed_bytes() / static_cast<double>(sets[0]->read_bytes(salient_ratio));
}

void attend_paper(benchmark::State& state, int32_t group, int32_t head_dim, double salient_ratio) {
  attend_lengths<presets::paper>(
      state, std::vector<int64_t>(static_cast<size_t>(state.range(0)), state.range(1)), group,
      head_dim, salient_ratio);
}

void attend_keys_4_values_2(benchmark::State& state) {
  attend_lengths<presets::keys_4_values_2>(
      state, std::vector<int64_t>(static_cast<size_t>(state.range(0)), state.range(1)), 4, 128,
      1.0);
}

/// Lengths from 100 to 131072 in one batch.
void attend_ragged(benchmark::State& state) {
  std::vector<int64_t> lengths;
  for (int64_t length = 100; length <= 131072; length = length * 3 / 2) lengths.push_back(length);
  lengths.push_back(131072);
  attend_lengths<presets::paper>(state, lengths, 4, 128, 0.6);
}

/// What stands in front of attention in a step.
enum class before_attend { nothing, empty_kernel, append };

void decode_step(benchmark::State& state, before_attend before) {
  if (!has_device(state)) return;
  const bool with_append = before == before_attend::append;
  constexpr int64_t steps =
      160;  // one interval, so that each window is compressed once in every graph
  constexpr int64_t graphs = 40;
  const std::vector<int64_t> lengths(static_cast<size_t>(state.range(0)), state.range(1));
  compressed_batch<presets::paper> batch(lengths, 4, 128, 0.6, (graphs + 2) * steps, 1);
  timed_graph graph(static_cast<int>(steps), [&](cudaStream_t stream, int) {
    if (with_append) batch.append(stream);
    if (before == before_attend::empty_kernel) empty_kernel<<<1, 32, 0, stream>>>();
    batch.attend(stream);
  });
  timed_graph attention(static_cast<int>(steps),
                        [&](cudaStream_t stream, int) { batch.attend(stream); });
  int64_t done = 0;
  for (auto _ : state) {
    // The sequences grow by an interval with every graph, and a cache of many small segments is
    // slower to attend to than a prompt: the share of append and flush is what the mean step has
    // beyond attention halfway.
    if (with_append && done == state.max_iterations / 2)
      state.counters["attend_halfway_us"] = 1e6 * attention.seconds();
    if (++done > graphs) {
      state.SkipWithError("more iterations than the cache has room for");
      break;
    }
    state.SetIterationTime(graph.seconds());
  }
}

/// A decode step of a whole model in one graph: append and attention of 32 layers, one after the
/// other. The mean over two intervals, so that flushes are paid in it.
void decode_model(benchmark::State& state) {
  if (!has_device(state)) return;
  constexpr int32_t num_layers = 32;
  constexpr int64_t steps = 320;
  const std::vector<int64_t> lengths(static_cast<size_t>(state.range(0)), state.range(1));
  compressed_batch<presets::paper> batch(lengths, 4, 128, 0.6, steps + 160, 1, num_layers);
  timed_graph step(1, [&](cudaStream_t stream, int) {
    for (int32_t layer = 0; layer < num_layers; ++layer) {
      batch.append(stream, layer);
      batch.attend(stream, layer);
    }
  });
  int64_t done = 0;
  for (auto _ : state) {
    if (++done > steps) {
      state.SkipWithError("more iterations than the cache has room for");
      break;
    }
    state.SetIterationTime(step.seconds());
  }
}

#define SHAPES ->UseManualTime()->Unit(benchmark::kMicrosecond)->ArgNames({"batch", "kv_len"})
#define ALL_SHAPES \
  SHAPES->Args({8, 4096})->Args({8, 32768})->Args({8, 131072})->Args({64, 4096})->Args({1, 131072})
BENCHMARK_CAPTURE(attend_paper, paper, 4, 128, 0.6)->Name("attend/cuda/paper") ALL_SHAPES;
BENCHMARK_CAPTURE(attend_paper, all_4bit, 4, 128, 1.0)
    ->Name("attend/cuda/all_4bit") SHAPES->Args({8, 32768});
BENCHMARK_CAPTURE(attend_paper, all_2bit, 4, 128, 0.0)
    ->Name("attend/cuda/all_2bit") SHAPES->Args({8, 32768});
BENCHMARK_CAPTURE(attend_paper, group_1, 1, 128, 0.6)
    ->Name("attend/cuda/group_1") SHAPES->Args({8, 32768});
BENCHMARK_CAPTURE(attend_paper, group_8, 8, 128, 0.6)
    ->Name("attend/cuda/group_8") SHAPES->Args({8, 32768});
BENCHMARK_CAPTURE(attend_paper, head_dim_64, 4, 64, 0.6)
    ->Name("attend/cuda/head_dim_64") SHAPES->Args({8, 32768});
BENCHMARK_CAPTURE(attend_paper, head_dim_256, 4, 256, 0.6)
    ->Name("attend/cuda/head_dim_256") SHAPES->Args({8, 32768});
BENCHMARK(attend_keys_4_values_2)->Name("attend/cuda/keys_4_values_2") ALL_SHAPES;
// Growth with the context of one sequence, and with the batch (plot_growth.py).
BENCHMARK_CAPTURE(attend_paper, context, 4, 128, 0.6)
    ->Name("growth/cuda/context") SHAPES->ArgsProduct({{1},
                                                       benchmark::CreateRange(1024, 1048576, 2)});
BENCHMARK_CAPTURE(attend_paper, batch, 4, 128, 0.6)
    ->Name("growth/cuda/batch") SHAPES->ArgsProduct({benchmark::CreateRange(1, 256, 2), {4096}});
BENCHMARK(attend_ragged)
    ->Name("attend/cuda/ragged_100_to_131072")
    ->UseManualTime()
    ->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(decode_step, append_and_attend, before_attend::append)
    ->Name("step/cuda/append_and_attend") SHAPES->Args({8, 4096})
    ->Args({8, 32768})
    ->Iterations(30);
BENCHMARK_CAPTURE(decode_step, empty_kernel_and_attend, before_attend::empty_kernel)
    ->Name("step/cuda/empty_kernel_and_attend") SHAPES->Args({8, 4096})
    ->Args({8, 32768})
    ->Iterations(30);
BENCHMARK_CAPTURE(decode_step, attend_alone, before_attend::nothing)
    ->Name("step/cuda/attend_alone") SHAPES->Args({8, 4096})
    ->Args({8, 32768})
    ->Iterations(30);

BENCHMARK(decode_model)
    ->Name("step/cuda/32_layers_in_one_graph") SHAPES->Args({8, 4096})
    ->Args({1, 32768})
    ->Iterations(320);

}  // namespace

// One decode step in a CUDA graph: captured once, replayed while sequences grow.
#define ZIPCACHE_HEAD_DIMS 64

#include <algorithm>
#include <cstdlib>
#include <iterator>

#include <cuda_runtime_api.h>

#include "support/catch.hpp"
#include "support/device_cache.cuh"

using namespace zipcache_test;
using zipcache::detail::check_cuda;
using f16 = zipcache::half;
using paper = zipcache::presets::paper;

namespace {

constexpr zipcache::cache_shape shape{
    .num_layers = 2, .num_qo_heads = 8, .num_kv_heads = 2, .head_dim = 64};
constexpr int64_t prompt = 200, steps = 300;
constexpr int32_t num_sequences = 3;

class stream_owner {
 public:
  stream_owner() { check_cuda("cudaStreamCreate", cudaStreamCreate(&stream_)); }
  stream_owner(const stream_owner&) = delete;
  stream_owner& operator=(const stream_owner&) = delete;
  ~stream_owner() { cudaStreamDestroy(stream_); }
  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

/// Where a captured step finds the tokens of a batch, and what it leaves.
struct step_buffers {
  device_array<f16> q, k, v, out;
  device_array<float> lse;

  step_buffers()
      : q(poisoned<f16>(num_sequences * shape.num_qo_heads * shape.head_dim)),
        k(poisoned<f16>(num_sequences * shape.num_kv_heads * shape.head_dim)),
        v(poisoned<f16>(num_sequences * shape.num_kv_heads * shape.head_dim)),
        out(poisoned<f16>(shape.num_layers * q.size())),
        lse(poisoned<float>(shape.num_layers * num_sequences * shape.num_qo_heads)) {}

  /// Token `token` of every sequence's own tokens.
  void load(cudaStream_t stream, const std::vector<device_tokens<f16>>& data, int64_t token) {
    const auto copy = [&](f16* to, const f16* from, size_t elements, size_t sequence) {
      check_cuda("cudaMemcpyAsync",
                 cudaMemcpyAsync(to + sequence * elements, from, elements * sizeof(f16),
                                 cudaMemcpyDeviceToDevice, stream));
    };
    for (size_t i = 0; i < data.size(); ++i) {
      copy(q.data(), data[i].q_row(token), q.size() / num_sequences, i);
      copy(k.data(), data[i].k_row(token), k.size() / num_sequences, i);
      copy(v.data(), data[i].v_row(token), v.size() / num_sequences, i);
    }
  }
};

/// A cache with its own stream and three sequences whose prompts have different lengths.
struct decoder {
  stream_owner stream;
  device_cache<f16, paper> cache;
  std::vector<zipcache::sequence_id> sequences;
  std::vector<device_tokens<f16>> data;
  step_buffers buffers;
  zipcache::sequence_list batch;

  decoder()
      : cache(shape, {.max_sequences = num_sequences, .max_tokens = 1024}, {},
              zipcache::cuda_backend{stream.get()}),
        batch(prefilled()) {}

  static int64_t prompt_of(int32_t i) { return prompt - 70 * i; }

  void step() {
    for (int32_t layer = 0; layer < shape.num_layers; ++layer) {
      cache.append(batch, layer, buffers.k.data(), buffers.v.data());
      cache.attend(
          batch, layer, buffers.q.data(),
          buffers.out.data() + static_cast<size_t>(layer) * buffers.q.size(),
          buffers.lse.data() + static_cast<size_t>(layer) * num_sequences * shape.num_qo_heads);
    }
  }
  void load(int64_t index) { buffers.load(stream.get(), data, prompt + index); }

 private:
  zipcache::sequence_list prefilled() {
    for (int32_t i = 0; i < num_sequences; ++i) {
      data.emplace_back(token_data<f16>(shape, prompt + steps, static_cast<uint64_t>(40 + i)));
      sequences.push_back(cache.create());
      zipcache_test::prefill(cache, sequences.back(), data.back(), prompt_of(i));
    }
    return cache.make_batch(sequences);
  }
};

/// Whether compute-sanitizer or another injected tool watches this process, which allocates device
/// memory of its own meanwhile. ZIPCACHE_UNDER_SANITIZER is for tools that set none of the others.
bool is_watched() {
  const char* const names[] = {"NV_SANITIZER_INJECTION_PORT_BASE",
                               "NV_SANITIZER_INJECTION_PORT_RANGE_BEGIN", "CUDA_INJECTION64_PATH",
                               "ZIPCACHE_UNDER_SANITIZER"};
  return std::any_of(std::begin(names), std::end(names),
                     [](const char* name) { return std::getenv(name) != nullptr; });
}

size_t free_memory() {
  size_t free_bytes = 0;
  size_t total_bytes = 0;
  check_cuda("cudaMemGetInfo", cudaMemGetInfo(&free_bytes, &total_bytes));
  return free_bytes;
}

/// What `record` launches, ready to be replayed.
class graph {
 public:
  template <class Record>
  graph(cudaStream_t stream, Record&& record) {
    cudaGraph_t captured = nullptr;
    check_cuda("cudaStreamBeginCapture",
               cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    record();
    check_cuda("cudaStreamEndCapture", cudaStreamEndCapture(stream, &captured));
    check_cuda("cudaGraphGetNodes", cudaGraphGetNodes(captured, nullptr, &num_nodes_));
    check_cuda("cudaGraphInstantiate", cudaGraphInstantiate(&executable_, captured, 0));
    check_cuda("cudaGraphDestroy", cudaGraphDestroy(captured));
  }
  graph(const graph&) = delete;
  graph& operator=(const graph&) = delete;
  ~graph() { cudaGraphExecDestroy(executable_); }
  void launch(cudaStream_t stream) const {
    check_cuda("cudaGraphLaunch", cudaGraphLaunch(executable_, stream));
  }
  size_t num_nodes() const { return num_nodes_; }

 private:
  cudaGraphExec_t executable_ = nullptr;
  size_t num_nodes_ = 0;
};

}  // namespace

TEST_CASE("kv_cache: a captured step is replayed across flushes and equals the steps run eagerly",
          "[kv_cache][cuda][graph]") {
  decoder eager;
  decoder replayed;
  const int64_t pages_before = replayed.cache.num_available_pages();
  for (int32_t i = 0; i < num_sequences; ++i)
    replayed.cache.reserve(replayed.sequences[static_cast<size_t>(i)],
                           decoder::prompt_of(i) + steps);
  REQUIRE(replayed.cache.num_available_pages() < pages_before);
  check_cuda("cudaDeviceSynchronize", cudaDeviceSynchronize());

  const size_t free_before = free_memory();
  const int64_t pages_reserved = replayed.cache.num_available_pages();
  const graph step(replayed.stream.get(), [&] { replayed.step(); });
  // An append and an attend kernel in each layer, and no node that allocates or copies.
  REQUIRE(step.num_nodes() == 2 * static_cast<size_t>(shape.num_layers));
  REQUIRE(replayed.cache.num_available_pages() == pages_reserved);
  REQUIRE(replayed.cache.length(replayed.sequences[0]) == prompt);  // nothing has run
  if (is_watched()) {
    WARN("not checked, since a tool allocates too: that capturing takes no device memory");
  } else {
    REQUIRE(free_memory() + (size_t{8} << 20) >= free_before);  // the graph itself is small
  }

  for (int64_t index = 0; index < steps; ++index) {
    eager.load(index);
    eager.step();
    replayed.load(index);
    step.launch(replayed.stream.get());
    if (index % 7 != 0 && index < steps - 3) continue;
    const bool same_out = same_bits(download(replayed.buffers.out), download(eager.buffers.out));
    const bool same_lse = same_bits(download(replayed.buffers.lse), download(eager.buffers.lse));
    INFO("step " << index);
    REQUIRE(same_out);
    REQUIRE(same_lse);
  }
  replayed.cache.note_replays(replayed.batch, steps);
  replayed.cache.check();
  eager.cache.check();
  REQUIRE(replayed.cache.num_available_pages() == pages_reserved);
  for (int32_t i = 0; i < num_sequences; ++i) {
    const auto id = replayed.sequences[static_cast<size_t>(i)];
    for (int32_t layer = 0; layer < shape.num_layers; ++layer) {
      REQUIRE(replayed.cache.length(id, layer) == decoder::prompt_of(i) + steps);
      REQUIRE(replayed.cache.read_length(id, layer) == decoder::prompt_of(i) + steps);
      REQUIRE(replayed.cache.sealed_length(id, layer) == eager.cache.sealed_length(id, layer));
    }
    const bool same = device_snapshot(replayed.cache, id) == device_snapshot(eager.cache, id);
    REQUIRE(same);
  }

  // Both go on from there, one with the graph and one without.
  eager.load(0);
  eager.step();
  replayed.load(0);
  replayed.step();
  const bool same_out = same_bits(download(replayed.buffers.out), download(eager.buffers.out));
  REQUIRE(same_out);
}

TEST_CASE("kv_cache: replaying beyond what was reserved is reported and loses no page",
          "[kv_cache][cuda][graph]") {
  decoder run;
  check_cuda("cudaDeviceSynchronize", cudaDeviceSynchronize());
  const graph step(run.stream.get(), [&] { run.step(); });
  for (int64_t index = 0; index < 161; ++index) {
    run.load(index);
    step.launch(run.stream.get());
  }
  try {
    run.cache.check();
    FAIL("the missing reservation was not reported");
  } catch (const zipcache::state_error& error) {
    REQUIRE(std::string(error.what()).find("reserve()") != std::string::npos);
  }
  run.cache.check();  // reports once
  // The tokens that found no place are not there.
  for (const zipcache::sequence_id id : run.sequences) {
    REQUIRE(run.cache.read_length(id, 1) - run.cache.sealed_length(id, 1) == 160);
  }
}

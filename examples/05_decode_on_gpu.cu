// Decoding on a GPU: a prompt is compressed in device memory, one decode step is captured in a CUDA
// graph, and the graph is replayed while the sequence grows: full windows are compressed within it.
// Nothing synchronizes or allocates between the steps. Returns 77 where there is no GPU.
//
//   4096 tokens of prompt and 480 new ones in 2 layers: 4576 tokens, of which 4416 are compressed
//   compressed 3.8 times

// The kernels of one head dimension compile in a fraction of the time.
#define ZIPCACHE_HEAD_DIMS 128

#include <cstdio>
#include <vector>

#include <zipcache/zipcache.cuh>

constexpr zipcache::cache_shape shape{
    .num_layers = 2, .num_qo_heads = 32, .num_kv_heads = 8, .head_dim = 128};
constexpr int64_t prompt_len = 4096, num_new = 480;
using element = zipcache::half;

/// Random numbers in place of projections, [num_tokens, num_heads, head_dim], in device memory.
zipcache::detail::device_array<element> make_tensor(int64_t num_tokens, int32_t num_heads) {
  std::vector<element> x(static_cast<size_t>(num_tokens * num_heads * shape.head_dim));
  for (size_t i = 0; i < x.size(); ++i)
    x[i] =
        zipcache::from_float<element>(static_cast<float>(zipcache::mix64(i) >> 40) * 0x1p-23f - 1);
  zipcache::detail::device_array<element> memory(x.size());
  cudaMemcpy(memory.data(), x.data(), x.size() * sizeof(element), cudaMemcpyHostToDevice);
  return memory;
}

int main() {
  if (int count = 0; cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
    std::puts("this example needs a GPU, and there is none");
    return 77;
  }
  const auto q = make_tensor(prompt_len, shape.num_qo_heads);
  const auto k = make_tensor(prompt_len, shape.num_kv_heads);
  const auto v = make_tensor(prompt_len, shape.num_kv_heads);
  const auto out = make_tensor(1, shape.num_qo_heads);
  cudaStream_t stream;
  cudaStreamCreate(&stream);

  zipcache::kv_cache<element, zipcache::presets::paper, zipcache::cuda_backend> cache(
      shape, {.max_sequences = 1, .max_tokens = prompt_len + num_new}, {}, {stream});
  const zipcache::sequence_id sequence = cache.create();
  for (int32_t layer = 0; layer < shape.num_layers; ++layer)
    cache.prefill(sequence, layer,
                  zipcache::nhd<const element>(q.data(), prompt_len, shape.num_qo_heads, 128),
                  zipcache::nhd<const element>(k.data(), prompt_len, shape.num_kv_heads, 128),
                  zipcache::nhd<const element>(v.data(), prompt_len, shape.num_kv_heads, 128));

  // A model would write the new token's q, k and v here before every step.
  const zipcache::sequence_list batch = cache.make_batch({&sequence, 1});
  cache.reserve(sequence, prompt_len + num_new);  // pages for as far as the graph may go
  cudaGraph_t graph;
  cudaGraphExec_t step;
  cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal);
  for (int32_t layer = 0; layer < shape.num_layers; ++layer) {
    cache.append(batch, layer, k.data(), v.data());
    cache.attend(batch, layer, q.data(), out.data());
  }
  cudaStreamEndCapture(stream, &graph);
  cudaGraphInstantiate(&step, graph, 0);
  for (int64_t i = 0; i < num_new; ++i) cudaGraphLaunch(step, stream);
  cache.note_replays(batch, num_new);
  cache.check();  // waits, and reports what only the device could see

  const auto ratio = cache.footprint().ratio();
  std::printf(
      "%d tokens of prompt and %d new ones in %d layers: %d tokens, of which %d are "
      "compressed\ncompressed %.1f times\n",
      static_cast<int>(prompt_len), static_cast<int>(num_new), shape.num_layers,
      static_cast<int>(cache.length(sequence)), static_cast<int>(cache.sealed_length(sequence)),
      ratio);
  cudaGraphExecDestroy(step);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
  return ratio > 3.5 ? 0 : 1;
}

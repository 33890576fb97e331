// ggml's flash attention on its CPU backend: a graph of one node, computed again and again. Keys
// and values of a KV head are contiguous and there is no mask, which is what suits it best.
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>
#include <ggml-alloc.h>
#include <ggml-backend.h>
#include <ggml-cpu.h>
#include <ggml.h>

#include "attend/peer_step.hpp"
#include "support/read_bandwidth.hpp"
#include "support/step_timing.hpp"

using zipcache_bench::peer_step;

namespace {

template <auto free>
struct freed_by {
  template <class T>
  void operator()(T* resource) const {
    free(resource);
  }
};

class ggml_attention {
 public:
  /// The step's keys and values become those of `type`, so that they can be compared with.
  ggml_attention(peer_step& step, ggml_type type) {
    ggml_backend_cpu_set_n_threads(backend_.get(), peer_step::num_threads);
    ggml_backend_cpu_set_threadpool(backend_.get(), threads_.get());
    ggml_tensor* q = tensor(GGML_TYPE_F32, 1, peer_step::num_qo_heads);
    ggml_tensor* k = tensor(type, step.kv_len, peer_step::num_kv_heads);
    ggml_tensor* v = tensor(type, step.kv_len, peer_step::num_kv_heads);
    out_ = ggml_flash_attn_ext(context_.get(), q, k, v, nullptr, step.scale(), 0.0f, 0.0f);
    graph_ = ggml_new_graph(context_.get());
    ggml_build_forward_expand(graph_, out_);
    buffer_.reset(ggml_backend_alloc_ctx_tensors(context_.get(), backend_.get()));
    ggml_backend_tensor_set(q, step.q.data(), 0, ggml_nbytes(q));
    fill(k, step.k);
    fill(v, step.v);
    bytes_ = static_cast<int64_t>(ggml_nbytes(k) + ggml_nbytes(v));
  }

  bool compute() {
    return ggml_backend_graph_compute(backend_.get(), graph_) == GGML_STATUS_SUCCESS;
  }
  std::vector<float> out() const {
    std::vector<float> result(static_cast<size_t>(ggml_nelements(out_)));
    ggml_backend_tensor_get(out_, result.data(), 0, ggml_nbytes(out_));
    return result;
  }
  int64_t bytes() const { return bytes_; }

 private:
  static ggml_threadpool* new_threads() {
    ggml_threadpool_params params = ggml_threadpool_params_default(peer_step::num_threads);
    return ggml_threadpool_new(&params);
  }

  ggml_tensor* tensor(ggml_type type, int64_t num_tokens, int64_t num_heads) {
    return ggml_new_tensor_3d(context_.get(), type, peer_step::head_dim, num_tokens, num_heads);
  }

  static void fill(ggml_tensor* tensor, std::vector<float>& x) {
    const ggml_type_traits* traits = ggml_get_type_traits(tensor->type);
    std::vector<char> stored(ggml_nbytes(tensor));
    traits->from_float_ref(x.data(), stored.data(), ggml_nelements(tensor));
    traits->to_float(stored.data(), x.data(), ggml_nelements(tensor));
    ggml_backend_tensor_set(tensor, stored.data(), 0, stored.size());
  }

  std::unique_ptr<ggml_threadpool, freed_by<ggml_threadpool_free>> threads_{new_threads()};
  std::unique_ptr<ggml_backend, freed_by<ggml_backend_free>> backend_{ggml_backend_cpu_init()};
  std::unique_ptr<ggml_context, freed_by<ggml_free>> context_{
      ggml_init({.mem_size = 8 * ggml_tensor_overhead() + ggml_graph_overhead(),
                 .mem_buffer = nullptr,
                 .no_alloc = true})};
  std::unique_ptr<ggml_backend_buffer, freed_by<ggml_backend_buffer_free>> buffer_;
  ggml_cgraph* graph_ = nullptr;
  ggml_tensor* out_ = nullptr;
  int64_t bytes_ = 0;
};

/// ggml rounds the query to q8_0, and a block of 32 channels has one of size 10: steps of 10/127
/// are off by 0.023 (RMS), scores of these keys by 0.04, probabilities by 4 %. With f16, less is
/// lost: a running sum in 16 bits. A scale that is off by a tenth is an error of 0.07.
constexpr double allowed_error = 0.04;

void flash_attention(benchmark::State& state, ggml_type type) {
  peer_step step(state.range(0));
  ggml_attention attention(step, type);
  bool computed = true;
  zipcache_bench::time_steps(state, [&] { computed &= attention.compute(); });
  if (!computed) state.SkipWithError("ggml did not compute the graph");
  zipcache_bench::check_peer(state, step, attention.out().data(), allowed_error);
  zipcache_bench::count_bytes(state, attention.bytes());
}

const bool added = [] {
  benchmark::AddCustomContext("ggml", std::string(ggml_version()) + " " + ggml_commit());
  for (const ggml_type type : {GGML_TYPE_F16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0}) {
    zipcache_bench::add_peer(std::string("ggml_") + ggml_type_name(type),
                             [type](benchmark::State& state) { flash_attention(state, type); });
  }
  return true;
}();

}  // namespace

// Moving a sequence between a cache on the CPU and one on CUDA, for example to swap it out of
// device memory. Pages, records, bitmaps, the window, sinks and kept probes move byte for byte:
// what is compressed stays as it is, and both sequences then continue alike.
#pragma once

#include <cstdint>
#include <vector>

#include <zipcache/kv_cache.cuh>
#include <zipcache/kv_cache.hpp>

namespace zipcache {
namespace detail {

/// @throws argument_error  caches that differ in what a sequence's bytes depend on
template <class From, class To>
void check_same_cache(const From& from, const To& to) {
  require_equal("num_layers", from.shape().num_layers, to.shape().num_layers);
  require_equal("num_qo_heads", from.shape().num_qo_heads, to.shape().num_qo_heads);
  require_equal("num_kv_heads", from.shape().num_kv_heads, to.shape().num_kv_heads);
  require_equal("head_dim", from.shape().head_dim, to.shape().head_dim);
  require(from.shape().softmax_scale() == to.shape().softmax_scale(),
          "sm_scale differs between the caches");
  require_equal("page_bytes", from.page_bytes(), to.page_bytes());
  require(from.layer_options(0) == to.layer_options(0),
          "the caches' options differ, so a sequence of one cannot continue in the other");
}

template <class From, class To>
sequence_id move_sequence(const From& from, sequence_id sequence, To& to) {
  check_same_cache(from, to);
  using content = decltype(from.read_layer(sequence, 0));
  std::vector<content> layers;
  for (int32_t layer = 0; layer < from.shape().num_layers; ++layer)
    layers.push_back(from.read_layer(sequence, layer));
  return to.restore(layers);
}

}  // namespace detail

/// @brief A new sequence on CUDA that is what `sequence` is on the CPU, which stays.
/// @param from  a cache of the same shape, policies, options and page size
/// @throws argument_error  caches that differ; more tokens than the target's max_tokens
/// @throws capacity_error  no room in the target, which is as it was
/// @throws state_error  a prompt that is not complete
/// Waits for the target's stream.
template <class Element, class Policies>
sequence_id upload(const kv_cache<Element, Policies, cpu_backend>& from, sequence_id sequence,
                   kv_cache<Element, Policies, cuda_backend>& to) {
  return detail::move_sequence(from, sequence, to);
}

/// @brief A new sequence on the CPU that is what `sequence` is on CUDA, which stays.
/// @param from  a cache of the same shape, policies, options and page size
/// @throws argument_error  caches that differ
/// @throws capacity_error  no room in the target, which is as it was
/// Waits for the source's stream.
template <class Element, class Policies>
sequence_id download(const kv_cache<Element, Policies, cuda_backend>& from, sequence_id sequence,
                     kv_cache<Element, Policies, cpu_backend>& to) {
  return detail::move_sequence(from, sequence, to);
}

}  // namespace zipcache

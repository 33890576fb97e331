// Probes of the intervals to come, in device memory, so that a replayed graph knows them. Which
// rows they are is decided in probe_plan.hpp.
#pragma once

#include <cstdint>
#include <vector>

#include <zipcache/core/cuda.cuh>
#include <zipcache/store/device_layer.cuh>
#include <zipcache/stream/device_pages.cuh>
#include <zipcache/stream/probe_plan.hpp>

namespace zipcache::detail {

/// The probes of all intervals that may follow, counted from where the window now begins; none of
/// them was attended.
/// @param begin  tokens that the prompt brought
template <class Policies, class Element>
void write_probe_plan(cudaStream_t stream, const device_layer<Policies, Element>& layer,
                      int32_t sequence, int64_t sealed, int64_t begin,
                      const stream_options& options) {
  const device_probes<Element>& probes = layer.probes;
  std::vector<uint32_t> masks(
      static_cast<size_t>(probes.max_intervals) * static_cast<size_t>(probes.mask_words), 0);
  for (int32_t i = 0; i < probes.max_intervals; ++i) {
    const int64_t first = sealed + layer.recent + int64_t{i} * layer.interval;
    for (const int64_t row : interval_probe_rows<Policies>(first, begin, options)) {
      masks[static_cast<size_t>(int64_t{i} * probes.mask_words + row / 32)] |= 1u << (row % 32);
    }
  }
  write_words(stream, const_cast<uint32_t*>(probes.planned_of(sequence, 0)), masks);
  check_cuda("cudaMemsetAsync",
             cudaMemsetAsync(probes.recorded_of(sequence), 0,
                             static_cast<size_t>(probes.mask_words) * sizeof(uint32_t), stream));
}

}  // namespace zipcache::detail

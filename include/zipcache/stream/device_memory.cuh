// The device memory of a cache, allocated at once, and the views of its layers that kernels get.
// What kernels write is zero at first. device_plan.cuh says how large it is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>

#include <zipcache/attend/attend.cuh>
#include <zipcache/core/cuda.cuh>
#include <zipcache/store/device_layer.cuh>
#include <zipcache/stream/device_plan.cuh>
#include <zipcache/stream/stream.cuh>

namespace zipcache::detail {

template <class Policies, class Element>
class device_memory {
 public:
  using layer_type = device_layer<Policies, Element>;

  device_memory() = default;
  /// @throws cuda_error  not enough device memory
  explicit device_memory(const device_plan<Policies, Element>& plan) {
    const layer_type& sizes = plan.layer;
    const int64_t places = plan.num_layers * sizes.max_sequences;
    const int64_t heads = places * sizes.num_kv_heads;
    make(pages_, plan.num_pages * sizes.page_code_bytes);
    make(page_pairs_, plan.num_pages * sizes.page_pair_bytes);
    make(tables_, heads * sizes.max_pages);
    make(records_, heads * sizes.max_segments * sizes.record_bytes());
    make(bitmaps_, heads * sizes.bitmap_words);
    make(counts_, places);
    make(windows_, heads * sizes.window_tiles * sizes.row_tile_elements());
    make(sinks_, heads * sizes.sink_tiles * sizes.row_tile_elements());
    make(status_, 1);
    make(pinning_flushes_, static_cast<int64_t>(plan.pinning_flushes.size()));
    if (!plan.pinning_flushes.empty())
      check_cuda("cudaMemcpy", cudaMemcpy(pinning_flushes_.data(), plan.pinning_flushes.data(),
                                          plan.pinning_flushes.size() * sizeof(flush_sizes),
                                          cudaMemcpyHostToDevice));
    if constexpr (Policies::needs_probes) {
      make(planned_, places * sizes.probes.max_intervals * sizes.probes.mask_words);
      make(recorded_, places * sizes.probes.mask_words);
      make(kept_q_, places * sizes.probes.max_kept * sizes.num_qo_heads * sizes.head_dim);
      make(kept_lse_, places * sizes.probes.max_kept * sizes.num_qo_heads);
    }
    for (int64_t layer = 0; layer < plan.num_layers; ++layer)
      layers_.push_back(view_of(sizes, layer));
    make(attend_workspace_,
         static_cast<int64_t>(attend_workspace_bytes(layers_[0], sizes.max_sequences)));
    make(append_workspace_, static_cast<int64_t>(append_workspace_bytes(layers_[0])));
    check_cuda("cudaDeviceSynchronize",
               cudaDeviceSynchronize());  // the memory is ready for any stream
  }

  const layer_type& layer(int32_t index) const { return layers_[static_cast<size_t>(index)]; }
  /// device_fault bits of all layers.
  uint32_t* status() const { return status_.data(); }
  const device_array<std::byte>& attend_workspace() const { return attend_workspace_; }
  const device_array<std::byte>& append_workspace() const { return append_workspace_; }

 private:
  template <class T>
  static void make(device_array<T>& array, int64_t count) {
    array = device_array<T>(static_cast<size_t>(count));
    if (count > 0) check_cuda("cudaMemset", cudaMemset(array.data(), 0, array.size() * sizeof(T)));
  }

  layer_type view_of(const layer_type& sizes, int64_t layer) const {
    layer_type view = sizes;
    const int64_t first = layer * sizes.max_sequences;
    const int64_t first_head = first * sizes.num_kv_heads;
    view.pages = pages_.data();
    view.page_pairs = page_pairs_.data();
    view.table = tables_.data() + first_head * sizes.max_pages;
    view.records = records_.data() + first_head * sizes.max_segments * sizes.record_bytes();
    view.bitmaps = bitmaps_.data() + first_head * sizes.bitmap_words;
    view.counts = counts_.data() + first;
    view.window = windows_.data() + first_head * sizes.window_tiles * sizes.row_tile_elements();
    view.sink_rows = sinks_.data() + first_head * sizes.sink_tiles * sizes.row_tile_elements();
    view.status = status_.data();
    view.pinning_flushes = pinning_flushes_.data();
    if constexpr (Policies::needs_probes) {
      const device_probes<Element>& probes = sizes.probes;
      const int64_t first_kept = first * probes.max_kept * sizes.num_qo_heads;
      view.probes.planned = planned_.data() + first * probes.max_intervals * probes.mask_words;
      view.probes.recorded = recorded_.data() + first * probes.mask_words;
      view.probes.q = kept_q_.data() + first_kept * sizes.head_dim;
      view.probes.lse = kept_lse_.data() + first_kept;
    }
    return view;
  }

  std::vector<layer_type> layers_;
  device_array<std::byte> pages_, page_pairs_, records_, attend_workspace_, append_workspace_;
  device_array<page_entry> tables_;
  device_array<uint32_t> bitmaps_, status_, planned_, recorded_;
  device_array<flush_sizes> pinning_flushes_;
  device_array<sequence_counts> counts_;
  device_array<Element> windows_, sinks_, kept_q_;
  device_array<float> kept_lse_;
};

/// Everything that a layer has of one sequence, to another one, which names the same pages then.
template <class Policies, class Element>
void copy_sequence(cudaStream_t stream, const device_layer<Policies, Element>& layer, int32_t from,
                   int32_t to) {
  const int64_t heads = layer.num_kv_heads;
  const auto copy_part = [&](auto* array, int64_t elements) {
    check_cuda("cudaMemcpyAsync",
               cudaMemcpyAsync(array + int64_t{to} * elements, array + int64_t{from} * elements,
                               static_cast<size_t>(elements) * sizeof(*array),
                               cudaMemcpyDeviceToDevice, stream));
  };
  copy_part(layer.table, heads * layer.max_pages);
  copy_part(layer.records, int64_t{layer.max_segments} * heads * layer.record_bytes());
  copy_part(layer.bitmaps, heads * layer.bitmap_words);
  copy_part(layer.window, heads * layer.window_tiles * layer.row_tile_elements());
  copy_part(layer.sink_rows, heads * layer.sink_tiles * layer.row_tile_elements());
  copy_part(layer.counts, 1);
  if constexpr (Policies::needs_probes) {
    copy_part(layer.probes.recorded, layer.probes.mask_words);
    copy_part(layer.probes.q, int64_t{layer.probes.max_kept} * layer.num_qo_heads * layer.head_dim);
    copy_part(layer.probes.lse, int64_t{layer.probes.max_kept} * layer.num_qo_heads);
    copy_part(const_cast<uint32_t*>(layer.probes.planned),
              int64_t{layer.probes.max_intervals} * layer.probes.mask_words);
  }
}

}  // namespace zipcache::detail

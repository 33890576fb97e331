// What sequences in device memory take, by arithmetic on what the host knows of them. Twin:
// stream::footprint in stream.hpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <set>

#include <zipcache/policy/quantizers.hpp>
#include <zipcache/store/device_layer.cuh>
#include <zipcache/store/footprint.hpp>
#include <zipcache/store/page.hpp>
#include <zipcache/store/tile.hpp>
#include <zipcache/stream/device_sequences.cuh>
#include <zipcache/stream/options.hpp>

namespace zipcache::detail {

/// Adds up layers of sequences. Pages that a fork shares with a layer added before count once.
template <class Policies, class Element>
class device_footprint {
 public:
  /// @param sizes  any layer of the cache
  device_footprint(const device_layer<Policies, Element>& sizes, const stream_options& options)
      : sizes_(sizes), budget_(options.budget) {}

  void add(const layer_mirror<Element>& mirror) {
    const sequence_counts& counts = mirror.counts;
    add_segment(mirror, 0, counts.prompt_pages, counts.prompt_tokens);
    for (int64_t i = 0; i < counts.interval_segments(); ++i)
      add_segment(mirror, counts.prompt_pages + i * sizes_.interval_pages, sizes_.interval_pages,
                  sizes_.interval);
    pages_.insert(mirror.pages.begin(), mirror.pages.end());
    if (mirror.prompt) sum_.window_bytes += mirror.prompt->bytes();
    add_share_of_layer();
    const int64_t tokens = mirror.num_tokens();
    sum_.num_tokens += tokens;
    sum_.uncompressed_bytes += tokens * sizes_.num_kv_heads * sizes_.head_dim * 4;
  }

  footprint total() const {
    footprint total = sum_;
    total.padding_bytes = static_cast<int64_t>(pages_.size()) * sizes_.allocated_page_bytes() -
                          sum_.code_bytes - sum_.parameter_bytes;
    total.parameter_bytes += record_bytes_;
    return total;
  }

 private:
  void add_segment(const layer_mirror<Element>& mirror, int64_t first_page, int64_t pages,
                   int64_t tokens) {
    if (pages == 0 ||
        pages_.count(mirror.pages[static_cast<size_t>(first_page * sizes_.num_kv_heads)]) > 0)
      return;
    const int64_t salient = Policies::budget_policy::num_salient(tokens, budget_);
    add_class<token_class::salient>(salient);
    add_class<token_class::regular>(tokens - salient);
  }

  template <token_class Class>
  void add_class(int64_t tokens) {
    using tile = tile_record<Policies, Class>;
    const int32_t head_dim = sizes_.head_dim;
    sum_.code_bytes +=
        tokens * sizes_.num_kv_heads * head_dim * (tile::key_bits + tile::value_bits) / 8;
    sum_.parameter_bytes += tokens * sizes_.num_kv_heads *
                            (tile::bytes(head_dim) - tile::code_bytes(head_dim)) / tile_tokens;
  }

  /// What is allocated for a sequence in advance, whatever its length.
  void add_share_of_layer() {
    const int64_t heads = sizes_.num_kv_heads;
    sum_.window_bytes += heads * (sizes_.window_tiles + sizes_.sink_tiles) *
                         sizes_.row_tile_elements() * static_cast<int64_t>(sizeof(Element));
    record_bytes_ += heads * sizes_.max_segments * sizes_.record_bytes();
    sum_.table_bytes += heads * (sizes_.max_pages * static_cast<int64_t>(sizeof(page_entry)) +
                                 sizes_.bitmap_words * 4) +
                        static_cast<int64_t>(sizeof(sequence_counts));
    if constexpr (Policies::needs_probes) {
      const device_probes<Element>& probes = sizes_.probes;
      sum_.table_bytes += int64_t{probes.mask_words} * 4 * (probes.max_intervals + 1) +
                          int64_t{probes.max_kept} * sizes_.num_qo_heads *
                              (sizes_.head_dim * static_cast<int64_t>(sizeof(Element)) + 4);
    }
  }

  device_layer<Policies, Element> sizes_;
  budget_options budget_;
  footprint sum_;             ///< its parameters are those in pages
  int64_t record_bytes_ = 0;  ///< the other parameters
  std::set<uint32_t> pages_;
};

}  // namespace zipcache::detail

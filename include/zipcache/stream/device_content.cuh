// A layer in device memory to its content on the host and back. Waits for the stream: sequences
// move rarely, and then as a whole. Twin: stream::content and stream::restore in stream.hpp.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include <zipcache/core/cuda.cuh>
#include <zipcache/store/device_layer.cuh>
#include <zipcache/stream/device_plan.cuh>
#include <zipcache/stream/layer_content.hpp>

namespace zipcache::detail {

/// Copies to the host; the values are there after the next synchronization.
template <class T>
void read_array(cudaStream_t stream, T* to, const T* from, int64_t count) {
  if (count <= 0) return;
  check_cuda("cudaMemcpyAsync", cudaMemcpyAsync(to, from, static_cast<size_t>(count) * sizeof(T),
                                                cudaMemcpyDeviceToHost, stream));
}
template <class T>
void write_array(cudaStream_t stream, T* to, const T* from, int64_t count) {
  if (count <= 0) return;
  check_cuda("cudaMemcpyAsync", cudaMemcpyAsync(to, from, static_cast<size_t>(count) * sizeof(T),
                                                cudaMemcpyHostToDevice, stream));
}
inline void wait_for(cudaStream_t stream) {
  check_cuda("cudaStreamSynchronize", cudaStreamSynchronize(stream));
}

template <class T>
std::vector<T> read_values(cudaStream_t stream, const T* from, int64_t count) {
  std::vector<T> values(static_cast<size_t>(count));
  read_array(stream, values.data(), from, count);
  wait_for(stream);
  return values;
}

/// Calls visit(key in the tiles, value in the tiles, index in row_content) for every value of
/// `num_tokens` tokens of all heads, whose 16-bit tiles [num_kv_heads, num_tiles] are at `tiles`
/// and whose oldest token is in slot `first`.
template <class Policies, class Storage, class Visit>
void visit_rows(const device_layer<Policies, Storage>& layer, Storage* tiles, int32_t num_tiles,
                int32_t first, int64_t num_tokens, Visit&& visit) {
  const int32_t head_dim = layer.head_dim;
  size_t index = 0;
  for (int32_t head = 0; head < layer.num_kv_heads; ++head) {
    for (int64_t token = 0; token < num_tokens; ++token) {
      const auto slot = static_cast<int32_t>((first + token) % (int64_t{num_tiles} * tile_tokens));
      Storage* const keys =
          tiles + (int64_t{head} * num_tiles + slot / tile_tokens) * layer.row_tile_elements();
      Storage* const values = keys + int64_t{tile_tokens} * head_dim;
      for (int32_t channel = 0; channel < head_dim; ++channel) {
        visit(row_tile_element<key_layout>(keys, head_dim, slot % tile_tokens, channel),
              row_tile_element<value_layout>(values, head_dim, slot % tile_tokens, channel),
              index++);
      }
    }
  }
}

template <class Policies, class Storage>
void read_rows(cudaStream_t stream, const device_layer<Policies, Storage>& layer,
               const Storage* tiles, int32_t num_tiles, int32_t first, int64_t num_tokens,
               row_content<Storage>& rows) {
  rows.resize(layer.num_kv_heads, num_tokens, layer.head_dim);
  if (num_tokens == 0) return;
  std::vector<Storage> copy = read_values(
      stream, tiles, int64_t{layer.num_kv_heads} * num_tiles * layer.row_tile_elements());
  visit_rows(layer, copy.data(), num_tiles, first, num_tokens,
             [&](const Storage& key, const Storage& value, size_t index) {
               rows.keys[index] = key;
               rows.values[index] = value;
             });
}

/// The tiles that hold these tokens from slot 0 on; unused slots are zeros.
template <class Policies, class Storage>
std::vector<Storage> tiles_of(const device_layer<Policies, Storage>& layer, int32_t num_tiles,
                              const row_content<Storage>& rows) {
  std::vector<Storage> tiles(
      static_cast<size_t>(int64_t{layer.num_kv_heads} * num_tiles * layer.row_tile_elements()));
  visit_rows(layer, tiles.data(), num_tiles, 0, rows.num_tokens,
             [&](Storage& key, Storage& value, size_t index) {
               key = rows.keys[index];
               value = rows.values[index];
             });
  return tiles;
}

/// Rows of the interval that are in a mask, ascending.
inline std::vector<int32_t> rows_of_mask(const std::vector<uint32_t>& mask) {
  std::vector<int32_t> rows;
  for (size_t word = 0; word < mask.size(); ++word) {
    for (int32_t bit = 0; bit < 32; ++bit) {
      if ((mask[word] >> bit & 1u) != 0) rows.push_back(static_cast<int32_t>(word) * 32 + bit);
    }
  }
  return rows;
}

/// Probes that were attended. Places among the kept ones are those of the planned rows.
template <class Policies, class Storage>
void read_probes(cudaStream_t stream, const device_layer<Policies, Storage>& layer,
                 int32_t sequence, const sequence_counts& counts,
                 layer_content<Storage, Policies>& content) {
  const device_probes<Storage>& probes = layer.probes;
  if (counts.intervals >= probes.max_intervals) return;
  const auto planned = rows_of_mask(
      read_values(stream, probes.planned_of(sequence, counts.intervals), probes.mask_words));
  const auto recorded =
      read_values<uint32_t>(stream, probes.recorded_of(sequence), probes.mask_words);
  const int64_t row_size = int64_t{layer.num_qo_heads} * layer.head_dim;
  const int64_t first = int64_t{sequence} * probes.max_kept;
  for (size_t place = 0; place < planned.size(); ++place) {
    const int32_t row = planned[place];
    if ((recorded[static_cast<size_t>(row / 32)] >> (row % 32) & 1u) == 0) continue;
    content.probe_positions.push_back(int64_t{counts.sealed} + layer.recent + row);
    const int64_t kept = first + static_cast<int64_t>(place);
    const auto q = read_values<Storage>(stream, probes.q + kept * row_size, row_size);
    const auto lse =
        read_values<float>(stream, probes.lse + kept * layer.num_qo_heads, layer.num_qo_heads);
    content.probe_q.insert(content.probe_q.end(), q.begin(), q.end());
    content.probe_lse.insert(content.probe_lse.end(), lse.begin(), lse.end());
  }
}

/// @pre the sequence's probes are planned for what follows
template <class Policies, class Storage>
void write_probes(cudaStream_t stream, const device_layer<Policies, Storage>& layer,
                  int32_t sequence, const sequence_counts& counts,
                  const layer_content<Storage, Policies>& content) {
  const device_probes<Storage>& probes = layer.probes;
  const auto planned = rows_of_mask(
      read_values(stream, probes.planned_of(sequence, counts.intervals), probes.mask_words));
  std::vector<uint32_t> recorded(static_cast<size_t>(probes.mask_words), 0);
  const int64_t row_size = int64_t{layer.num_qo_heads} * layer.head_dim;
  for (size_t i = 0; i < content.probe_positions.size(); ++i) {
    const int64_t row = content.probe_positions[i] - counts.sealed - layer.recent;
    const auto found = std::lower_bound(planned.begin(), planned.end(), row);
    require(found != planned.end() && *found == row,
            "a kept query is not a probe here: the caches' options differ");
    const int64_t kept = int64_t{sequence} * probes.max_kept + (found - planned.begin());
    write_array(stream, probes.q + kept * row_size,
                content.probe_q.data() + static_cast<int64_t>(i) * row_size, row_size);
    write_array(stream, probes.lse + kept * layer.num_qo_heads,
                content.probe_lse.data() + static_cast<int64_t>(i) * layer.num_qo_heads,
                layer.num_qo_heads);
    recorded[static_cast<size_t>(row / 32)] |= 1u << (row % 32);
  }
  write_array(stream, probes.recorded_of(sequence), recorded.data(), probes.mask_words);
  wait_for(stream);
}

/// Calls copy(bytes of the page in one block, bytes of it on the device, count) for the two pieces
/// that a page is on the device.
template <class Policies, class Storage, class Copy>
void for_each_plane(const device_layer<Policies, Storage>& layer, const page_entry& entry,
                    Copy&& copy) {
  const tile_size used = page_layout_of<Policies>(layer.head_dim).size(entry);
  const tile_place page = layer.page(entry.page);
  copy(int64_t{0}, page.codes, used.codes);
  copy(used.codes, page.pairs, used.pairs);
}

/// Segment `index` with its pages [first_page, ...) of every head's table.
template <class Policies, class Storage>
segment_content<Policies> read_segment(cudaStream_t stream,
                                       const device_layer<Policies, Storage>& layer,
                                       int32_t sequence, int32_t index,
                                       const segment_shape<Policies>& shape, int64_t first_page,
                                       int64_t first_word) {
  segment_content<Policies> part;
  part.resize(shape, layer.page_bytes);
  const int64_t pages = shape.plan(layer.page_bytes).num_pages;
  std::byte* to = part.pages.data();
  for (int32_t head = 0; head < shape.num_kv_heads; ++head) {
    const auto table =
        read_values<page_entry>(stream, layer.table_of(sequence, head) + first_page, pages);
    for (const page_entry& entry : table) {
      for_each_plane(layer, entry, [&](int64_t at, const std::byte* plane, int64_t count) {
        read_array(stream, to + at, plane, count);
      });
      to += layer.page_bytes;
    }
    read_array(stream, part.bitmaps.data() + head * shape.bitmap_words(),
               static_cast<const uint32_t*>(layer.bitmap_of(sequence, head) + first_word),
               shape.bitmap_words());
  }
  read_array(stream, part.records.data(),
             static_cast<const std::byte*>(layer.record_of(sequence, index, 0)),
             static_cast<int64_t>(part.records.size()));
  wait_for(stream);
  return part;
}

/// @param[in] pages  [pages of the segment, num_kv_heads] numbers, already in the tables
template <class Policies, class Storage>
void write_segment(cudaStream_t stream, const device_layer<Policies, Storage>& layer,
                   int32_t sequence, int32_t index, const segment_content<Policies>& part,
                   const uint32_t* pages, int64_t first_page, int64_t first_word) {
  std::vector<page_entry> entries = part.entries();
  const std::byte* from = part.pages.data();
  const int32_t heads = part.shape.num_kv_heads;
  for (int32_t head = 0; head < heads; ++head) {
    for (size_t i = 0; i < entries.size(); ++i) {
      entries[i].page = pages[i * static_cast<size_t>(heads) + static_cast<size_t>(head)];
      for_each_plane(layer, entries[i], [&](int64_t at, std::byte* plane, int64_t count) {
        write_array(stream, plane, from + at, count);
      });
      from += layer.page_bytes;
    }
    write_array(stream, layer.table_of(sequence, head) + first_page, entries.data(),
                static_cast<int64_t>(entries.size()));
    write_array(stream, layer.bitmap_of(sequence, head) + first_word,
                part.bitmaps.data() + head * part.shape.bitmap_words(), part.shape.bitmap_words());
    wait_for(stream);  // before the entries change
  }
  write_array(stream, layer.record_of(sequence, index, 0), part.records.data(),
              static_cast<int64_t>(part.records.size()));
  wait_for(stream);
}

/// All that the layer has of a sequence.
/// @param begin  tokens that the prompt brought
template <class Policies, class Storage>
layer_content<Storage, Policies> read_content(cudaStream_t stream,
                                              const device_layer<Policies, Storage>& layer,
                                              int32_t sequence, int64_t begin,
                                              const budget_options& budget) {
  const auto counts = read_values<sequence_counts>(stream, layer.counts + sequence, 1)[0];
  layer_content<Storage, Policies> content;
  read_rows<Policies, Storage>(stream, layer, layer.sink_tile(sequence, 0, 0), layer.sink_tiles, 0,
                               counts.sinks, content.sinks);
  int64_t page = 0;
  int64_t word = 0;
  for (int32_t segment = 0; segment < counts.segments; ++segment) {
    const bool is_first = segment == 0 && counts.prompt_tokens > 0;
    const auto shape =
        segment_of<Policies>(layer.num_kv_heads, layer.head_dim,
                             is_first ? counts.prompt_tokens : layer.interval, budget);
    content.segments.push_back(read_segment(stream, layer, sequence, segment, shape, page, word));
    page += shape.plan(layer.page_bytes).num_pages;
    word += shape.bitmap_words();
  }
  read_rows<Policies, Storage>(stream, layer, layer.window_tile(sequence, 0, 0), layer.window_tiles,
                               counts.window_first, counts.window, content.window);
  content.interval_start = begin;
  if constexpr (Policies::needs_probes) read_probes(stream, layer, sequence, counts, content);
  return content;
}

/// Segments, sinks and window of an empty sequence; probes have to be planned before they follow.
/// @param[in] pages  [pages of all segments, num_kv_heads] numbers, already in the tables
/// @return what the sequence's counts are then; they are not written
template <class Policies, class Storage>
sequence_counts write_content(cudaStream_t stream, const device_layer<Policies, Storage>& layer,
                              int32_t sequence, const layer_content<Storage, Policies>& content,
                              const std::vector<uint32_t>& pages) {
  sequence_counts counts{};
  counts.sinks = static_cast<int32_t>(content.sinks.num_tokens);
  counts.sealed = static_cast<int32_t>(content.sealed());
  counts.window = static_cast<int32_t>(content.window.num_tokens);
  int64_t word = 0;
  for (const segment_content<Policies>& part : content.segments) {
    const auto segment_pages = static_cast<int32_t>(part.shape.plan(layer.page_bytes).num_pages);
    write_segment(stream, layer, sequence, counts.segments, part,
                  pages.data() + int64_t{counts.pages} * layer.num_kv_heads, counts.pages, word);
    if (counts.segments == 0) {
      counts.prompt_tokens = static_cast<int32_t>(part.shape.num_tokens);
      counts.prompt_pages = segment_pages;
    }
    counts.segments += 1;
    counts.pages += segment_pages;
    word += part.shape.bitmap_words();
  }
  const auto sinks = tiles_of(layer, layer.sink_tiles, content.sinks);
  const auto window = tiles_of(layer, layer.window_tiles, content.window);
  write_array(stream, layer.sink_tile(sequence, 0, 0), sinks.data(),
              static_cast<int64_t>(sinks.size()));
  write_array(stream, layer.window_tile(sequence, 0, 0), window.data(),
              static_cast<int64_t>(window.size()));
  wait_for(stream);  // before the tiles are gone
  return counts;
}

}  // namespace zipcache::detail

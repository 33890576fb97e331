// kv_cache on CUDA in tests: the tensors of a test in device memory, decoding with them, and the
// same string of bytes that cache_snapshot.hpp makes of a sequence on the CPU.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <zipcache/kv_cache.cuh>

#include "support/cache_runs.hpp"
#include "support/device.cuh"

namespace zipcache_test {

template <class Element, class Policies>
using device_cache = zipcache::kv_cache<Element, Policies, zipcache::cuda_backend>;

/// A copy of device memory. Waits for everything before it.
template <class T>
std::vector<T> fetch(const T* memory, int64_t count) {
  std::vector<T> values(static_cast<size_t>(count));
  zipcache::detail::check_cuda("cudaDeviceSynchronize", cudaDeviceSynchronize());
  if (count > 0) {
    zipcache::detail::check_cuda(
        "cudaMemcpy",
        cudaMemcpy(values.data(), memory, values.size() * sizeof(T), cudaMemcpyDeviceToHost));
  }
  return values;
}

/// [heads, tokens, dim] as [tokens, heads, dim].
template <class Element>
std::vector<Element> by_token(const tensor<Element>& x) {
  std::vector<Element> values;
  values.reserve(x.values.size());
  for (int64_t token = 0; token < x.tokens; ++token) {
    for (int32_t head = 0; head < x.heads; ++head) {
      const Element* row = &x.at(head, token, 0);
      values.insert(values.end(), row, row + x.dim);
    }
  }
  return values;
}

/// Tokens in device memory, [tokens, heads, dim].
template <class Element>
struct device_tokens {
  int32_t num_qo_heads, num_kv_heads, head_dim;
  device_array<Element> q, k, v;

  explicit device_tokens(const token_data<Element>& data)
      : num_qo_heads(data.q.heads),
        num_kv_heads(data.k.heads),
        head_dim(data.k.dim),
        q(upload(by_token(data.q))),
        k(upload(by_token(data.k))),
        v(upload(by_token(data.v))) {}

  const Element* q_row(int64_t token) const { return q.data() + token * num_qo_heads * head_dim; }
  const Element* k_row(int64_t token) const { return k.data() + token * num_kv_heads * head_dim; }
  const Element* v_row(int64_t token) const { return v.data() + token * num_kv_heads * head_dim; }
  zipcache::tensor_view<const Element> q_part(int64_t first, int64_t count) const {
    return zipcache::nhd(q_row(first), count, num_qo_heads, head_dim);
  }
  zipcache::tensor_view<const Element> k_part(int64_t first, int64_t count) const {
    return zipcache::nhd(k_row(first), count, num_kv_heads, head_dim);
  }
  zipcache::tensor_view<const Element> v_part(int64_t first, int64_t count) const {
    return zipcache::nhd(v_row(first), count, num_kv_heads, head_dim);
  }
};

/// Prefills tokens [0, count) in every layer.
template <class Element, class Policies>
void prefill(device_cache<Element, Policies>& cache, zipcache::sequence_id sequence,
             const device_tokens<Element>& data, int64_t count) {
  for (int32_t layer = 0; layer < cache.shape().num_layers; ++layer)
    cache.prefill(sequence, layer, data.q_part(0, count), data.k_part(0, count),
                  data.v_part(0, count));
}

/// The same in chunks that end at `cuts` and at `count`; lse [count, num_qo_heads] or null.
template <class Element, class Policies>
void prefill_in_chunks(device_cache<Element, Policies>& cache, zipcache::sequence_id sequence,
                       const device_tokens<Element>& data, int64_t count,
                       std::span<const int64_t> cuts, const float* lse = nullptr) {
  const auto heads = static_cast<size_t>(cache.shape().num_qo_heads);
  std::vector<int64_t> ends(cuts.begin(), cuts.end());
  ends.push_back(count);
  for (int32_t layer = 0; layer < cache.shape().num_layers; ++layer) {
    int64_t first = 0;
    for (const int64_t end : ends) {
      const std::span<const float> part = lse == nullptr
                                              ? std::span<const float>{}
                                              : std::span(lse + static_cast<size_t>(first) * heads,
                                                          static_cast<size_t>(end - first) * heads);
      cache.prefill(sequence, layer, data.q_part(first, end - first),
                    data.k_part(first, end - first), data.v_part(first, end - first),
                    {.prompt_len = count, .lse = part});
      first = end;
    }
  }
}

/// [tokens, heads, dim] as it comes from the device.
template <class Element>
outputs<Element> outputs_of(const zipcache::cache_shape& shape, int64_t tokens,
                            const std::vector<Element>& out, const std::vector<float>& lse) {
  outputs<Element> result(shape, tokens);
  result.lse = lse;
  size_t next = 0;
  for (int64_t token = 0; token < tokens; ++token) {
    for (int32_t head = 0; head < shape.num_qo_heads; ++head) {
      for (int32_t channel = 0; channel < shape.head_dim; ++channel)
        result.out.at(head, token, channel) = out[next++];
    }
  }
  return result;
}

/// Appends tokens [first, last) one by one and attends with each, in every layer. Returns what the
/// last layer gave.
template <class Element, class Policies>
outputs<Element> decode(device_cache<Element, Policies>& cache, zipcache::sequence_id sequence,
                        const device_tokens<Element>& data, int64_t first, int64_t last) {
  const zipcache::cache_shape& shape = cache.shape();
  const int64_t row = int64_t{shape.num_qo_heads} * shape.head_dim;
  auto out = poisoned<Element>(static_cast<size_t>((last - first) * row));
  auto lse = poisoned<float>(static_cast<size_t>((last - first) * shape.num_qo_heads));
  const zipcache::sequence_list batch = cache.make_batch(std::span(&sequence, 1));
  for (int64_t token = first; token < last; ++token) {
    for (int32_t layer = 0; layer < shape.num_layers; ++layer) {
      cache.append(batch, layer, data.k_row(token), data.v_row(token));
      cache.attend(batch, layer, data.q_row(token), out.data() + (token - first) * row,
                   lse.data() + (token - first) * shape.num_qo_heads);
    }
  }
  return outputs_of<Element>(shape, last - first, download(out), download(lse));
}

/// As `add_segment` of cache_snapshot.hpp, from device memory.
template <class Policies, class Element>
void add_segments(byte_string& out, const zipcache::device_layer<Policies, Element>& layer,
                  int32_t sequence) {
  using tiles = zipcache::segment_shape<Policies>;
  const int32_t heads = layer.num_kv_heads;
  const int32_t dim = layer.head_dim;
  const zipcache::sequence_counts counts = fetch(layer.counts + sequence, 1)[0];
  const auto table = fetch(layer.table_of(sequence, 0), int64_t{heads} * layer.max_pages);
  const auto records =
      fetch(layer.record_of(sequence, 0, 0), layer.max_segments * heads * layer.record_bytes());
  const auto bitmaps = fetch(layer.bitmap_of(sequence, 0), int64_t{heads} * layer.bitmap_words);
  int64_t position = counts.sinks;
  int64_t first_page = 0;
  int64_t first_word = 0;
  for (int32_t index = 0; index < counts.segments; ++index) {
    const bool is_prompt = index == 0 && counts.prompt_tokens > 0;
    const int64_t num_tokens = is_prompt ? counts.prompt_tokens : layer.interval;
    const int64_t pages = is_prompt ? counts.prompt_pages : layer.interval_pages;
    const int64_t words = zipcache::ceil_div<int64_t>(num_tokens, 32);
    int64_t num_salient = 0;
    for (int64_t word = 0; word < words; ++word)
      num_salient += std::popcount(bitmaps[static_cast<size_t>(first_word + word)]);
    for (const int64_t x : {int64_t{heads}, int64_t{dim}, num_tokens, num_salient, position, pages,
                            heads * pages, heads * pages})
      out.add(x);
    const auto entry_of = [&](int32_t head, int64_t page) {
      return table[static_cast<size_t>(head * layer.max_pages + first_page + page)];
    };
    for (int32_t head = 0; head < heads; ++head) {
      for (int64_t page = 0; page < pages; ++page) {
        out.add(entry_of(head, page).salient_tokens);
        out.add(entry_of(head, page).regular_tokens);
      }
    }
    for (int32_t head = 0; head < heads; ++head) {
      const auto add_class = [&](bool is_salient) {
        const zipcache::page_layout layout = zipcache::page_layout_of<Policies>(dim);
        const zipcache::tile_size size = is_salient ? layout.salient : layout.regular;
        if (size.bytes() == 0) return;
        for (int64_t page = 0; page < pages; ++page) {
          const zipcache::page_entry entry = entry_of(head, page);
          const zipcache::tile_place at = layer.page(entry.page);
          const auto codes = fetch<std::byte>(at.codes, layer.page_code_bytes);
          const auto pairs = fetch<std::byte>(at.pairs, layer.page_pair_bytes);
          const int64_t skipped = is_salient ? 0 : entry.salient_tiles();
          const std::byte* tile_codes = codes.data() + skipped * layout.salient.codes;
          const std::byte* tile_pairs = pairs.data() + skipped * layout.salient.pairs;
          const int32_t tokens = is_salient ? entry.salient_tokens : entry.regular_tokens;
          for (int32_t first = 0; first < tokens; first += 32) {
            out.add(std::min(32, tokens - first));
            out.add(tile_codes, static_cast<size_t>(size.codes));
            out.add(tile_pairs, static_cast<size_t>(size.pairs));
            tile_codes += size.codes;
            tile_pairs += size.pairs;
          }
        }
      };
      add_class(true);
      add_class(false);
    }
    out.add(records.data() + index * heads * layer.record_bytes(),
            static_cast<size_t>(heads * layer.record_bytes()));
    for (int32_t head = 0; head < heads; ++head)
      out.add(bitmaps.data() + head * layer.bitmap_words + first_word,
              static_cast<size_t>(words) * sizeof(uint32_t));
    position += num_tokens;
    first_page += pages;
    first_word += words;
  }
}

/// What `snapshot` of cache_snapshot.hpp gives for a sequence of the same content on the CPU.
template <class Element, class Policies>
std::string device_snapshot(const device_cache<Element, Policies>& cache,
                            zipcache::sequence_id sequence, int32_t layer) {
  const auto& view = cache.layer(layer);
  const auto index = static_cast<int32_t>(sequence.index);
  const zipcache::sequence_counts counts = fetch(view.counts + index, 1)[0];
  const int64_t length = int64_t{counts.sealed} + counts.window;
  const int64_t capacity = int64_t{view.interval} + view.recent;
  byte_string out;
  for (const int64_t x :
       {length, int64_t{counts.sealed},
        counts.window >= capacity ? int64_t{view.interval} : capacity - counts.window})
    out.add(x);
  out.add(int64_t{0});  // no prompt is incomplete
  add_segments(out, view, index);
  const int64_t values = length * view.num_kv_heads * view.head_dim;
  auto k = poisoned<float>(static_cast<size_t>(values));
  auto v = poisoned<float>(static_cast<size_t>(values));
  cache.dequantize(sequence, layer,
                   zipcache::hnd(k.data(), view.num_kv_heads, length, view.head_dim),
                   zipcache::hnd(v.data(), view.num_kv_heads, length, view.head_dim));
  for (const auto* x : {&k, &v}) {
    const auto host = download(*x);
    out.add(host.data(), host.size() * sizeof(float));
  }
  return out.bytes();
}

template <class Element, class Policies>
std::string device_snapshot(const device_cache<Element, Policies>& cache,
                            zipcache::sequence_id sequence) {
  std::string all;
  for (int32_t layer = 0; layer < cache.shape().num_layers; ++layer)
    all += device_snapshot(cache, sequence, layer);
  return all;
}

}  // namespace zipcache_test

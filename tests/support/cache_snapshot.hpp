// Everything of a sequence that counts, as one string of bytes: what attention could read, and
// nothing that may differ between equal sequences (page numbers, unused bytes of pages).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "support/cache_tensors.hpp"

namespace zipcache_test {

class byte_string {
 public:
  void add(const void* data, size_t size) { bytes_.append(static_cast<const char*>(data), size); }
  template <class Number>
  void add(const Number& x) {
    static_assert(std::is_arithmetic_v<Number>);
    add(&x, sizeof x);
  }
  const std::string& bytes() const { return bytes_; }

 private:
  std::string bytes_;
};

/// A sealed segment: shape, tile counts of its pages, tiles, blocks, records, bitmaps.
template <class Policies>
void add_segment(byte_string& out, const zipcache::segment<Policies>& sealed) {
  const auto& shape = sealed.shape;
  for (const int64_t x : {int64_t{shape.num_kv_heads}, int64_t{shape.head_dim}, shape.num_tokens,
                          shape.num_salient, sealed.first_position, sealed.pages_per_head,
                          sealed.pages.size(), static_cast<int64_t>(sealed.table.size())})
    out.add(x);
  for (const zipcache::page_entry& entry : sealed.table) {
    out.add(entry.salient_tokens);
    out.add(entry.regular_tokens);
  }
  using zipcache::token_class;
  const zipcache::page_layout layout = zipcache::page_layout_of<Policies>(shape.head_dim);
  for (int32_t head = 0; head < shape.num_kv_heads; ++head) {
    sealed.template for_each_tile<token_class::salient>(
        head, [&](zipcache::tile_place tile, int32_t count) {
          out.add(count);
          out.add(tile.codes, static_cast<size_t>(layout.salient.codes));
          out.add(tile.pairs, static_cast<size_t>(layout.salient.pairs));
        });
    sealed.template for_each_tile<token_class::regular>(
        head, [&](zipcache::tile_place tile, int32_t count) {
          out.add(count);
          out.add(tile.codes, static_cast<size_t>(layout.regular.codes));
          out.add(tile.pairs, static_cast<size_t>(layout.regular.pairs));
        });
  }
  for (int32_t head = 0; head < shape.num_kv_heads; ++head) {
    sealed.for_each_block_piece(head, [&](const std::byte* piece, int64_t count) {
      out.add(piece, static_cast<size_t>(count));
    });
  }
  out.add(sealed.records.data(), sealed.records.size());
  out.add(sealed.salient_bitmap.data(), sealed.salient_bitmap.size() * sizeof(uint32_t));
}

template <class Policies>
std::string segment_bytes(const zipcache::segment<Policies>& sealed) {
  byte_string out;
  add_segment(out, sealed);
  return out.bytes();
}

/// The types of a policy_table, or a plain set as a table of one.
template <class Policies>
struct table_of {
  using type = zipcache::policy_table<Policies>;
};
template <class... Policies>
struct table_of<zipcache::policy_table<Policies...>> {
  using type = zipcache::policy_table<Policies...>;
};

/// Calls visit(stream) with the layer's state, whatever its policies are.
template <class Element, class Cached, class Visit>
void visit_layer(const zipcache::kv_cache<Element, Cached>& cache, zipcache::sequence_id sequence,
                 int32_t layer, Visit&& visit) {
  const auto try_each = [&]<class... Policies>(zipcache::policy_table<Policies...>*) {
    const auto try_one = [&]<class Chosen>() {
      const auto* state = cache.template inspect<Chosen>(sequence, layer);
      if (state != nullptr) visit(*state);
    };
    (try_one.template operator()<Policies>(), ...);
  };
  try_each(static_cast<typename table_of<Cached>::type*>(nullptr));
}

/// What the cache holds of a layer, as attention sees it.
struct dequantized {
  tensor<float> k, v;
};
template <class Cache>
dequantized dequantize_layer(const Cache& cache, zipcache::sequence_id sequence, int32_t layer) {
  const int64_t tokens = cache.length(sequence, layer);
  const zipcache::cache_shape& shape = cache.shape();
  dequantized x{{shape.num_kv_heads, tokens, shape.head_dim},
                {shape.num_kv_heads, tokens, shape.head_dim}};
  cache.dequantize(sequence, layer, x.k.view(), x.v.view());
  return x;
}

/// [num_kv_heads][length]: whether attention sees the token, that is, whether it was not evicted.
template <class Cache>
std::vector<std::vector<bool>> visible_tokens(const Cache& cache, zipcache::sequence_id sequence,
                                              int32_t layer) {
  std::vector<std::vector<bool>> visible(
      static_cast<size_t>(cache.shape().num_kv_heads),
      std::vector<bool>(static_cast<size_t>(cache.length(sequence, layer)), true));
  visit_layer(cache, sequence, layer, [&](const auto& state) {
    for (const auto& sealed : state.segments()) {
      using segment = std::remove_cvref_t<decltype(*sealed)>;
      const auto mark = [&]<class Policies>(const zipcache::segment<Policies>& part) {
        using zipcache::token_class;
        for (int32_t head = 0; head < part.shape.num_kv_heads; ++head) {
          for (int64_t token = 0; token < part.shape.num_tokens; ++token) {
            const bool evicted = part.is_salient(head, token)
                                     ? Policies::template evicts<token_class::salient>
                                     : Policies::template evicts<token_class::regular>;
            if (evicted)
              visible[static_cast<size_t>(head)][static_cast<size_t>(part.first_position + token)] =
                  false;
          }
        }
      };
      mark(static_cast<const segment&>(*sealed));
    }
  });
  return visible;
}

template <class Cache>
std::string snapshot(const Cache& cache, zipcache::sequence_id sequence, int32_t layer) {
  byte_string out;
  for (const int64_t x : {cache.length(sequence, layer), cache.sealed_length(sequence, layer),
                          cache.append_room(sequence, layer)})
    out.add(x);
  visit_layer(cache, sequence, layer, [&](const auto& state) {
    out.add(static_cast<int64_t>(state.is_prefilling()));
    for (const auto& sealed : state.segments()) add_segment(out, *sealed);
  });
  const dequantized x = dequantize_layer(cache, sequence, layer);
  out.add(x.k.values.data(), x.k.values.size() * sizeof(float));
  out.add(x.v.values.data(), x.v.values.size() * sizeof(float));
  return out.bytes();
}

template <class Cache>
std::string snapshot(const Cache& cache, zipcache::sequence_id sequence) {
  std::string all;
  for (int32_t layer = 0; layer < cache.shape().num_layers; ++layer)
    all += snapshot(cache, sequence, layer);
  return all;
}

/// All of the named sequences, and what the cache says it holds.
template <class Cache>
std::string cache_snapshot(const Cache& cache, std::span<const zipcache::sequence_id> sequences) {
  byte_string out;
  const zipcache::footprint held = cache.footprint();
  for (const int64_t x : {held.code_bytes, held.parameter_bytes, held.padding_bytes,
                          held.table_bytes, held.window_bytes, held.num_tokens,
                          held.uncompressed_bytes, cache.num_sequences(), cache.pool().num_used()})
    out.add(x);
  std::string all = out.bytes();
  for (const zipcache::sequence_id sequence : sequences) all += snapshot(cache, sequence);
  return all;
}

}  // namespace zipcache_test

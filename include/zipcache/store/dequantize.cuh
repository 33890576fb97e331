// Looking into a layer on the device: the values of all its tokens, in token order. For inspection
// and tests; attention never dequantizes. Twin: dequantize_head in store.hpp.
// @equality same_bytes
#pragma once

#include <cstdint>

#include <zipcache/core/cuda.cuh>
#include <zipcache/core/view.hpp>
#include <zipcache/detail/warp.cuh>
#include <zipcache/store/device_layer.cuh>
#include <zipcache/store/encode.cuh>

namespace zipcache {
namespace detail {

inline constexpr int32_t dequantize_threads = 256;

/// A sealed token's segment, and where that begins.
struct token_segment {
  int32_t segment;
  int32_t token;       ///< within the segment
  int32_t first_page;  ///< of the segment, in the head's table
  int32_t num_pages;
  int32_t first_word;  ///< of the segment, in the head's bitmap
};

/// The segment of the token at `position` behind the sinks.
template <class Policies, class Storage>
__device__ token_segment find_segment(const device_layer<Policies, Storage>& layer,
                                      const sequence_counts& counts, int32_t position) {
  if (position < counts.prompt_tokens) return {0, position, 0, counts.prompt_pages, 0};
  const int32_t behind = position - counts.prompt_tokens;
  const int32_t index = behind / layer.interval;
  return {(counts.prompt_tokens > 0 ? 1 : 0) + index, behind % layer.interval,
          counts.prompt_pages + index * layer.interval_pages, layer.interval_pages,
          ceil_div(counts.prompt_tokens, 32) + index * ceil_div(layer.interval, 32)};
}

/// Salient tokens before `token` of a segment, counted by the warp.
__device__ inline int32_t salient_before(const uint32_t* bitmap, int32_t token, int32_t lane) {
  int32_t count = 0;
  for (int32_t word = lane; word <= token / 32; word += 32) {
    const uint32_t counted = word < token / 32 ? whole_warp : (1u << (token % 32)) - 1u;
    count += __popc(bitmap[word] & counted);
  }
  return warp_sum(count);
}

/// Token `rank` of `Class` in a segment's pages.
template <token_class Class, class Policies, class Storage>
__device__ void write_sealed_token(const device_layer<Policies, Storage>& layer,
                                   const page_entry* table, int32_t num_pages, int32_t rank,
                                   record_view<Policies, Storage> record, int32_t lane, float* k,
                                   float* v) {
  using tile = tile_record<Policies, Class>;
  const int32_t head_dim = layer.head_dim;
  constexpr bool is_salient = Class == token_class::salient;
  tile_place at{nullptr, nullptr};
  for (int32_t page = 0; page < num_pages && at.codes == nullptr; ++page) {
    const page_entry entry = table[page];
    const int32_t tokens = is_salient ? entry.salient_tokens : entry.regular_tokens;
    if (rank < tokens) {
      at = layer.template tile<Class>(entry, rank / tile_tokens);
    } else {
      rank -= tokens;
    }
  }
  const int32_t slot = rank % tile_tokens;
  for (int32_t channel = lane; channel < head_dim; channel += 32) {
    if (at.codes == nullptr) {  // evicted
      k[channel] = 0.0f;
      v[channel] = 0.0f;
      continue;
    }
    k[channel] = decode_value<key_layout, typename tile::key_granularity, tile::key_bits, Storage>(
        reinterpret_cast<const uint32_t*>(at.codes),
        reinterpret_cast<const affine_params<Storage>*>(at.pairs),
        record.template key_side<Class>(), head_dim, slot, channel);
    v[channel] =
        decode_value<value_layout, typename tile::value_granularity, tile::value_bits, Storage>(
            reinterpret_cast<const uint32_t*>(at.codes + tile::value_codes_offset(head_dim)),
            reinterpret_cast<const affine_params<Storage>*>(at.pairs +
                                                            tile::value_pairs_offset(head_dim)),
            record.template value_side<Class>(), head_dim, slot, channel);
  }
}

/// Token `slot` of the 16-bit tiles that begin at `tiles`.
template <class Policies, class Storage>
__device__ void write_row_token(const device_layer<Policies, Storage>& layer, Storage* tiles,
                                int32_t slot, int32_t lane, float* k, float* v) {
  Storage* const keys = tiles + slot / tile_tokens * layer.row_tile_elements();
  Storage* const values = keys + int64_t{tile_tokens} * layer.head_dim;
  for (int32_t channel = lane; channel < layer.head_dim; channel += 32) {
    k[channel] =
        to_float(row_tile_element<key_layout>(keys, layer.head_dim, slot % tile_tokens, channel));
    v[channel] = to_float(
        row_tile_element<value_layout>(values, layer.head_dim, slot % tile_tokens, channel));
  }
}

namespace {

// Grid: x = eight tokens (striding), y = KV head (striding). Warp: one token.
// Lane: every 32nd channel of it. Memory: nothing kept; pages are read code by code.
template <class Policies, class Storage>
__global__ void __launch_bounds__(dequantize_threads)
    dequantize_kernel(device_layer<Policies, Storage> layer, int32_t sequence, tensor_view<float> k,
                      tensor_view<float> v) {
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
  const int64_t first = (int64_t{blockIdx.x} * dequantize_threads + threadIdx.x) / 32;
  const int64_t step = int64_t{gridDim.x} * dequantize_threads / 32;
  const sequence_counts counts = layer.counts[sequence];
  const int64_t length = least<int64_t>(k.num_tokens, int64_t{counts.sealed} + counts.window);
  for (int32_t head = static_cast<int32_t>(blockIdx.y); head < layer.num_kv_heads;
       head += static_cast<int32_t>(gridDim.y)) {
    for (int64_t token = first; token < length; token += step) {
      const int32_t position = static_cast<int32_t>(token);
      float* const k_row = k.row(head, token);
      float* const v_row = v.row(head, token);
      if (position < counts.sinks) {
        write_row_token(layer, layer.sink_tile(sequence, head, 0), position, lane, k_row, v_row);
        continue;
      }
      if (position >= counts.sealed) {
        const int32_t slot =
            (counts.window_first + position - counts.sealed) % (tile_tokens * layer.window_tiles);
        write_row_token(layer, layer.window_tile(sequence, head, 0), slot, lane, k_row, v_row);
        continue;
      }
      const token_segment place = find_segment(layer, counts, position - counts.sinks);
      const uint32_t* bitmap = layer.bitmap_of(sequence, head) + place.first_word;
      const page_entry* table = layer.table_of(sequence, head) + place.first_page;
      const record_view<Policies, Storage> record{layer.record_of(sequence, place.segment, head),
                                                  layer.head_dim};
      const int32_t salient = salient_before(bitmap, place.token, lane);
      if ((bitmap[place.token / 32] >> (place.token % 32) & 1u) != 0) {
        write_sealed_token<token_class::salient>(layer, table, place.num_pages, salient, record,
                                                 lane, k_row, v_row);
      } else {
        write_sealed_token<token_class::regular>(layer, table, place.num_pages,
                                                 place.token - salient, record, lane, k_row, v_row);
      }
    }
  }
}

}  // namespace
}  // namespace detail

/// @brief Values of a sequence's first tokens in one layer, in token order; zeros for evicted ones.
/// @param[out] k, v  device memory [num_kv_heads, num_tokens, head_dim]; tokens that the sequence
/// does not have are left as they are
/// @throws argument_error  shapes that do not fit, host pointers
template <class Policies, class Storage>
void dequantize(cuda_backend backend, const device_layer<Policies, Storage>& layer,
                int32_t sequence, tensor_view<float> k, tensor_view<float> v) {
  detail::check_head_dim(layer.head_dim);
  detail::require_between("sequence", sequence, 0, layer.max_sequences - 1);
  detail::require_equal("k.num_heads", k.num_heads, layer.num_kv_heads);
  detail::require_equal("v.num_heads", v.num_heads, layer.num_kv_heads);
  detail::require_equal("k.head_dim", k.head_dim, layer.head_dim);
  detail::require_equal("v.head_dim", v.head_dim, layer.head_dim);
  detail::require_between("k.num_tokens", k.num_tokens, int64_t{0}, int64_t{2147483647});
  detail::require_equal("v.num_tokens", v.num_tokens, k.num_tokens);
  if (k.num_tokens == 0) return;
  detail::check_device_pointer("k.data", k.data);
  detail::check_device_pointer("v.data", v.data);
  detail::check_no_earlier_error();
  const auto blocks = static_cast<unsigned>(
      least<int64_t>(ceil_div<int64_t>(k.num_tokens * 32, detail::dequantize_threads), 65535));
  const auto heads = static_cast<unsigned>(least(layer.num_kv_heads, 65535));
  detail::dequantize_kernel<<<dim3(blocks, heads), detail::dequantize_threads, 0, backend.stream>>>(
      layer, sequence, k, v);
  detail::check_launch("dequantize_kernel");
}

}  // namespace zipcache

// Storing on the CPU: keys, values and the salient set of a span of tokens become one sealed
// segment of pages. In: k, v [num_kv_heads, num_tokens, head_dim], salient tokens. Out: segment.
// Twin: store.cuh. @equality same_bytes
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include <zipcache/core/backend.hpp>
#include <zipcache/core/view.hpp>
#include <zipcache/detail/thread_pool.hpp>
#include <zipcache/quantize/rotation.hpp>
#include <zipcache/store/decoded_rows.hpp>
#include <zipcache/store/encode.hpp>
#include <zipcache/store/record_view.hpp>
#include <zipcache/store/segment.hpp>

namespace zipcache {
namespace detail {

/// Rows of one side of one head, apart by class.
template <class Element>
struct class_rows {
  std::vector<const Element*> all, salient, regular;

  template <token_class Class>
  row_span<Element> of() const {
    return Class == token_class::salient ? salient : regular;
  }
};

template <class Element>
class_rows<Element> split_rows(std::vector<const Element*> all, std::span<const int32_t> salient) {
  class_rows<Element> rows;
  size_t next = 0;
  for (size_t token = 0; token < all.size(); ++token) {
    const bool is_salient = next < salient.size() && static_cast<size_t>(salient[next]) == token;
    (is_salient ? rows.salient : rows.regular).push_back(all[token]);
    next += is_salient ? 1 : 0;
  }
  rows.all = std::move(all);
  return rows;
}

/// Parameters of a whole segment for one side: pairs by channel of each class, magnitudes of both
/// classes together.
template <class Quantizer, class Storage, class Element>
void fit_segment_side(const class_rows<Element>& rows, int32_t head_dim,
                      affine_params<Storage>* salient_pairs, affine_params<Storage>* regular_pairs,
                      Storage* magnitudes) {
  using granularity = typename Quantizer::granularity;
  constexpr int salient_bits = Quantizer::template bits<token_class::salient>;
  constexpr int regular_bits = Quantizer::template bits<token_class::regular>;
  if constexpr (granularity::has_channel_magnitudes &&
                (has_pairs(salient_bits) || has_pairs(regular_bits))) {
    fit_channel_magnitudes<Storage, Element>(rows.all, head_dim, magnitudes);
  }
  if constexpr (granularity::home == parameter_home::segment) {
    if constexpr (has_pairs(salient_bits))
      fit_channels<salient_bits, Storage, Element>(rows.salient, head_dim, salient_pairs);
    if constexpr (has_pairs(regular_bits))
      fit_channels<regular_bits, Storage, Element>(rows.regular, head_dim, regular_pairs);
  }
}

template <class Policies, token_class Class, class Storage, class KeyElement, class ValueElement>
void encode_class(const segment<Policies>& sealed, int32_t head,
                  record_view<Policies, Storage> record, const class_rows<KeyElement>& key_rows,
                  const class_rows<ValueElement>& value_rows) {
  using tile = tile_record<Policies, Class>;
  const int32_t head_dim = sealed.shape.head_dim;
  size_t first = 0;
  sealed.template for_each_tile<Class>(head, [&](tile_place at, int32_t count) {
    const size_t tokens = static_cast<size_t>(count);
    encode_side<key_layout, typename tile::key_granularity, tile::key_bits, Storage, KeyElement>(
        key_rows.template of<Class>().subspan(first, tokens), head_dim,
        record.template key_side<Class>(), reinterpret_cast<uint32_t*>(at.codes),
        reinterpret_cast<affine_params<Storage>*>(at.pairs));
    encode_side<value_layout, typename tile::value_granularity, tile::value_bits, Storage,
                ValueElement>(
        value_rows.template of<Class>().subspan(first, tokens), head_dim,
        record.template value_side<Class>(),
        reinterpret_cast<uint32_t*>(at.codes + tile::value_codes_offset(head_dim)),
        reinterpret_cast<affine_params<Storage>*>(at.pairs + tile::value_pairs_offset(head_dim)));
    first += tokens;
  });
}

/// Rows of one head as a block has them: floats, the salient class first. [num_tokens, head_dim]
template <class Element>
std::vector<float> block_values(const class_rows<Element>& rows, int32_t head_dim) {
  std::vector<float> values;
  values.reserve(rows.all.size() * static_cast<size_t>(head_dim));
  for (const auto* class_rows : {&rows.salient, &rows.regular}) {
    for (const Element* row : *class_rows)
      for (int32_t channel = 0; channel < head_dim; ++channel)
        values.push_back(to_float(row[channel]));
  }
  return values;
}

template <class Policies, class Storage, class KeyElement, class ValueElement>
void encode_blocks(const segment<Policies>& sealed, int32_t head,
                   const class_rows<KeyElement>& key_rows,
                   const class_rows<ValueElement>& value_rows) {
  using blocks = block_record<Policies>;
  const block_shape shape = sealed.shape.block();
  if (shape.num_tokens == 0) return;
  std::vector<std::byte> bytes(static_cast<size_t>(blocks::bytes(shape)));
  if constexpr (blocks::has_keys) {
    blocks::key_quantizer::granularity::template encode<Storage>(
        block_values(key_rows, shape.head_dim).data(), shape, bytes.data());
  }
  if constexpr (blocks::has_values) {
    blocks::value_quantizer::granularity::template encode<Storage>(
        block_values(value_rows, shape.head_dim).data(), shape,
        bytes.data() + blocks::value_offset(shape));
  }
  const std::byte* next = bytes.data();
  sealed.for_each_block_piece(head, [&](std::byte* piece, int64_t count) {
    std::memcpy(piece, next, static_cast<size_t>(count));
    next += count;
  });
}

}  // namespace detail

/// @brief Quantizes and packs a span of tokens into a new segment.
/// @param pool  pages are taken from it; it must outlive the segment
/// @param[in] k, v  [num_kv_heads, num_tokens, head_dim], finite
/// @param[in] salient  [num_kv_heads, num_salient], ascending within a head
/// @param origin  for block codecs that treat prompts and intervals differently
/// @throws argument_error  shapes that differ, salient tokens out of order or range
/// @throws capacity_error  the pool is exhausted; pages already taken go back
template <class Policies, class Storage, cache_element Element>
std::shared_ptr<const segment<Policies>> store(cpu_backend backend, page_pool& pool,
                                               tensor_view<const Element> k,
                                               tensor_view<const Element> v,
                                               std::span<const int32_t> salient,
                                               int64_t num_salient, int64_t first_position,
                                               segment_origin origin = segment_origin::prompt) {
  detail::check_granularity<typename Policies::key_quantizer_policy::granularity>(k.head_dim);
  detail::check_granularity<typename Policies::value_quantizer_policy::granularity>(k.head_dim);
  detail::require_equal("v.num_heads", v.num_heads, k.num_heads);
  detail::require_equal("v.num_tokens", v.num_tokens, k.num_tokens);
  detail::require_equal("v.head_dim", v.head_dim, k.head_dim);
  detail::require_between("num_salient", num_salient, int64_t{0}, k.num_tokens);
  detail::require_equal("salient.size()", static_cast<int64_t>(salient.size()),
                        k.num_heads * num_salient);
  for (int64_t i = 0; i < static_cast<int64_t>(salient.size()); ++i) {
    const int32_t token = salient[static_cast<size_t>(i)];
    detail::require_between("salient token", token, int64_t{0}, k.num_tokens - 1);
    detail::require(i % num_salient == 0 || salient[static_cast<size_t>(i - 1)] < token,
                    "salient tokens must be ascending and differ");
  }

  auto sealed = std::make_shared<segment<Policies>>();
  sealed->shape = {k.num_heads, k.head_dim, k.num_tokens, num_salient, origin};
  sealed->first_position = first_position;
  sealed->pool = &pool;
  sealed->pages = page_list(pool);
  const page_plan plan = sealed->shape.plan(pool.page_bytes());
  sealed->pages_per_head = sealed->shape.pages_per_head(pool.page_bytes());
  sealed->records.resize(
      static_cast<size_t>(k.num_heads * segment_record<Policies>::bytes(k.head_dim)));
  sealed->salient_bitmap.resize(static_cast<size_t>(k.num_heads * sealed->shape.bitmap_words()));
  sealed->table.reserve(static_cast<size_t>(k.num_heads * sealed->pages_per_head));
  for (int32_t head = 0; head < k.num_heads; ++head) {
    for (int64_t page = 0; page < sealed->pages_per_head; ++page) {
      sealed->pages.grow();
      sealed->table.push_back(
          sealed->shape.entry(plan, page, sealed->pages[sealed->pages.size() - 1]));
    }
    for (int64_t i = 0; i < num_salient; ++i) {
      const int32_t token = salient[static_cast<size_t>(head * num_salient + i)];
      sealed
          ->salient_bitmap[static_cast<size_t>(head * sealed->shape.bitmap_words() + token / 32)] |=
          1u << (token % 32);
    }
  }
  detail::parallel_for(backend.num_threads, k.num_heads, [&](int64_t item) {
    const int32_t head = static_cast<int32_t>(item);
    const detail::record_view<Policies, Storage> record =
        detail::view_record<Policies, Storage>(*sealed, head);
    const auto head_salient =
        salient.subspan(static_cast<size_t>(head * num_salient), static_cast<size_t>(num_salient));
    using key_quantizer = typename Policies::key_quantizer_policy;
    using value_quantizer = typename Policies::value_quantizer_policy;
    const detail::quantizer_rows<typename key_quantizer::granularity, Element> keys(k, head);
    const detail::quantizer_rows<typename value_quantizer::granularity, Element> values(v, head);
    const auto key_rows = detail::split_rows(keys.rows, head_salient);
    const auto value_rows = detail::split_rows(values.rows, head_salient);
    using class_token = token_class;
    detail::fit_segment_side<tile_side<key_quantizer>>(
        key_rows, k.head_dim, record.template key_pairs<class_token::salient>(),
        record.template key_pairs<class_token::regular>(), record.key_magnitudes());
    detail::fit_segment_side<tile_side<value_quantizer>>(
        value_rows, k.head_dim, record.template value_pairs<class_token::salient>(),
        record.template value_pairs<class_token::regular>(), record.value_magnitudes());
    detail::encode_class<Policies, token_class::salient, Storage>(*sealed, head, record, key_rows,
                                                                  value_rows);
    detail::encode_class<Policies, token_class::regular, Storage>(*sealed, head, record, key_rows,
                                                                  value_rows);
    if constexpr (block_record<Policies>::has_blocks)
      detail::encode_blocks<Policies, Storage>(*sealed, head, key_rows, value_rows);
  });
  return sealed;
}

/// @brief Values of the sealed tokens of one head, for inspection: visit(token, k, v) in token
/// order, k and v [head_dim], zeros if the token was evicted.
template <class Policies, class Storage, class Visit>
void dequantize_head(const segment<Policies>& sealed, int32_t head, Visit&& visit) {
  detail::decoded_scratch salient_scratch, regular_scratch;
  detail::decoded_rows<Policies, token_class::salient, Storage> salient(sealed, head,
                                                                        salient_scratch);
  detail::decoded_rows<Policies, token_class::regular, Storage> regular(sealed, head,
                                                                        regular_scratch);
  int64_t num_salient = 0;  // among the tokens so far
  for (int64_t token = 0; token < sealed.shape.num_tokens; ++token) {
    const auto visit_row = [&](auto& rows, int64_t rank) {
      rows.load(rank, 1);
      visit(token, rows.key(0), rows.value(0));
    };
    if (sealed.is_salient(head, token)) {
      visit_row(salient, num_salient++);
    } else {
      visit_row(regular, token - num_salient);
    }
  }
}

}  // namespace zipcache

// A segment made of seeded tokens, with everything that a test wants to compare it with: the tokens
// themselves, which of them are salient, and the values that the codes stand for.
#pragma once

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include <zipcache/store/store.hpp>

#include "support/generators.hpp"
#include "support/poison.hpp"

namespace zipcache_test {

/// Tokens and salient tokens of segments at the edges of tiles: whole tiles, one token, one too
/// few, one too many, a class that is empty.
struct segment_size {
  int64_t num_tokens;
  int64_t num_salient;
};
inline constexpr segment_size segment_sizes[] = {
    {160, 96}, {1, 0},   {1, 1},   {31, 31}, {32, 0},    {33, 0},    {33, 33},
    {63, 31},  {64, 32}, {65, 33}, {65, 64}, {200, 100}, {257, 100}, {320, 192}};

struct token_shape {
  int32_t num_kv_heads = 1;
  int64_t num_tokens = 0;
  int64_t num_salient = 0;
  int32_t head_dim = 16;
  content keys = content::gaussian;
  content values = content::gaussian;
  int64_t tiles_in_page = 3;  // of the larger class
};

template <class Policies, class Storage = zipcache::half>
struct sealed_tokens {
  using segment_type = zipcache::segment<Policies>;
  static constexpr bool evicts_regular = Policies::template evicts<zipcache::token_class::regular>;
  static constexpr bool evicts_salient = Policies::template evicts<zipcache::token_class::salient>;

  token_shape shape;
  std::vector<Storage> k, v;     // [num_kv_heads, num_tokens, head_dim]
  std::vector<int32_t> salient;  // [num_kv_heads, num_salient]
  std::unique_ptr<zipcache::page_pool> pool;
  std::shared_ptr<const segment_type> sealed;

  explicit sealed_tokens(const token_shape& given, uint64_t seed = 1, int32_t num_threads = 1)
      : shape(given),
        k(make_tensor<Storage>(given.keys, given.num_kv_heads, given.num_tokens, given.head_dim,
                               seed)),
        v(make_tensor<Storage>(given.values, given.num_kv_heads, given.num_tokens, given.head_dim,
                               seed + 1000)) {
    for (int32_t head = 0; head < shape.num_kv_heads; ++head) {
      const std::vector<int32_t> chosen =
          random_subset(shape.num_tokens, shape.num_salient, seed + static_cast<uint64_t>(head));
      salient.insert(salient.end(), chosen.begin(), chosen.end());
    }
    using sizes = zipcache::segment_shape<Policies>;
    const int64_t tile = std::max<int64_t>(
        {sizes::salient_tile_bytes(shape.head_dim), sizes::regular_tile_bytes(shape.head_dim), 16});
    pool = std::make_unique<zipcache::page_pool>(shape.tiles_in_page * tile, 0);
    // Pages come with whatever was in them.
    std::vector<uint32_t> dirty;
    for (int i = 0; i < 20; ++i) {
      dirty.push_back(pool->allocate());
      std::memset(pool->data(dirty.back()), 0xa5, static_cast<size_t>(pool->page_bytes()));
    }
    for (const uint32_t page : dirty) pool->release(page);
    sealed = zipcache::store<Policies, Storage, Storage>(
        zipcache::cpu_backend{num_threads}, *pool, view(k), view(v), salient, shape.num_salient, 0);
  }

  zipcache::tensor_view<const Storage> view(const std::vector<Storage>& x) const {
    return zipcache::hnd(x.data(), shape.num_kv_heads, shape.num_tokens, shape.head_dim);
  }

  bool is_salient(int32_t head, int64_t token) const {
    const auto first = salient.begin() + head * shape.num_salient;
    return std::binary_search(first, first + shape.num_salient, static_cast<int32_t>(token));
  }
  bool is_evicted(int32_t head, int64_t token) const {
    return is_salient(head, token) ? evicts_salient : evicts_regular;
  }

  /// What the codes of every token stand for. [num_kv_heads, num_tokens, head_dim] each
  struct values_type {
    std::vector<float> k, v;
  };
  values_type dequantized() const {
    values_type values{std::vector<float>(k.size()), std::vector<float>(v.size())};
    for (int32_t head = 0; head < shape.num_kv_heads; ++head) {
      const auto copy_row = [&](int64_t token, const float* key, const float* value) {
        const int64_t row = (head * shape.num_tokens + token) * shape.head_dim;
        std::copy_n(key, shape.head_dim, values.k.data() + row);
        std::copy_n(value, shape.head_dim, values.v.data() + row);
      };
      zipcache::dequantize_head<Policies, Storage>(*sealed, head, copy_row);
    }
    return values;
  }

  /// Every byte of the segment's pages, page after page.
  std::vector<std::byte> page_bytes() const {
    std::vector<std::byte> bytes;
    for (const zipcache::page_entry& entry : sealed->table) {
      const std::byte* page = pool->data(entry.page);
      bytes.insert(bytes.end(), page, page + pool->page_bytes());
    }
    return bytes;
  }

  /// Writes `code`s and parameters of the pattern `bits` into every unused token of the last tiles,
  /// and `byte` into every unused byte of the pages.
  void poison(uint16_t bits, uint8_t byte) {
    using zipcache::token_class;
    for (int32_t head = 0; head < shape.num_kv_heads; ++head) {
      poison_class<token_class::salient>(head, bits);
      poison_class<token_class::regular>(head, bits);
    }
    using sizes = zipcache::segment_shape<Policies>;
    std::vector<std::byte> blocks;
    for (int32_t head = 0; head < shape.num_kv_heads; ++head)
      sealed->for_each_block_piece(head, [&](const std::byte* piece, int64_t count) {
        blocks.insert(blocks.end(), piece, piece + count);
      });
    for (const zipcache::page_entry& entry : sealed->table) {
      const int64_t used = entry.salient_tiles() * sizes::salient_tile_bytes(shape.head_dim) +
                           entry.regular_tiles() * sizes::regular_tile_bytes(shape.head_dim);
      std::memset(pool->data(entry.page) + used, byte,
                  static_cast<size_t>(pool->page_bytes() - used));
    }
    auto next = blocks.cbegin();
    for (int32_t head = 0; head < shape.num_kv_heads; ++head)
      sealed->for_each_block_piece(head, [&](std::byte* piece, int64_t count) {
        std::copy_n(next, count, piece);
        next += count;
      });
  }

 private:
  template <zipcache::token_class Class>
  void poison_class(int32_t head, uint16_t bits) {
    using tile = zipcache::tile_record<Policies, Class>;
    const int32_t dim = shape.head_dim;
    sealed->template for_each_tile<Class>(head, [&](zipcache::tile_place at, int32_t count) {
      poison_side<typename tile::key_codes, typename tile::key_granularity, tile::key_bits>(
          at.codes, at.pairs, count, bits);
      poison_side<typename tile::value_codes, typename tile::value_granularity, tile::value_bits>(
          at.codes + tile::value_codes_offset(dim), at.pairs + tile::value_pairs_offset(dim), count,
          bits);
    });
  }

  template <class Codes, class Granularity, int Bits>
  void poison_side(std::byte* codes, std::byte* pairs, int32_t count, uint16_t bits) {
    if constexpr (Bits > 0) {
      for (int32_t token = count; token < zipcache::tile_tokens; ++token) {
        for (int32_t channel = 0; channel < shape.head_dim; ++channel)
          Codes::save(reinterpret_cast<uint32_t*>(codes), shape.head_dim, token, channel, bits);
        if constexpr (Bits < 16 && Granularity::axis == zipcache::parameter_axis::token) {
          for (int32_t group = 0; group < zipcache::groups_per_token<Granularity>(shape.head_dim);
               ++group) {
            poison_token_pair<Granularity, Storage>(pairs, token, group, bits);
          }
        }
      }
    }
  }
};

}  // namespace zipcache_test

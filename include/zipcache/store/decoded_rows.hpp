// Rows of one class of one head as floats, out of tiles and blocks: what attention uses where a
// side is coded in blocks, and inspection for every policy.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include <zipcache/quantize/rotation.hpp>
#include <zipcache/store/block_record.hpp>
#include <zipcache/store/encode.hpp>
#include <zipcache/store/record_view.hpp>
#include <zipcache/store/segment.hpp>

namespace zipcache::detail {

/// Memory that decoded_rows works in, reused from segment to segment.
struct decoded_scratch {
  std::vector<std::byte> blocks;
  std::vector<tile_place> tiles;
  std::vector<float> keys, values;  ///< [32, head_dim]
};

/// @brief Decodes up to 32 rows at a time.
template <class Policies, token_class Class, class Storage>
class decoded_rows {
 public:
  decoded_rows(const segment<Policies>& sealed, int32_t head, decoded_scratch& scratch)
      : sealed_(&sealed),
        record_(view_record<Policies, Storage>(sealed, head)),
        scratch_(&scratch),
        head_dim_(sealed.shape.head_dim) {
    scratch.tiles.clear();
    sealed.template for_each_tile<Class>(
        head, [&](tile_place at, int32_t) { scratch.tiles.push_back(at); });
    scratch.keys.resize(static_cast<size_t>(tile_tokens * head_dim_));
    scratch.values.resize(scratch.keys.size());
    if constexpr (blocks::has_blocks) gather_blocks(head);
  }

  /// Rows [first, first + count) of the class, all of one tile.
  void load(int64_t first, int32_t count) {
    load_side<key_layout, typename tile::key_granularity, tile::key_bits,
              typename blocks::key_quantizer>(
        first, count, 0, 0, record_.template key_side<Class>(), 0, scratch_->keys.data());
    load_side<value_layout, typename tile::value_granularity, tile::value_bits,
              typename blocks::value_quantizer>(
        first, count, tile::value_codes_offset(head_dim_), tile::value_pairs_offset(head_dim_),
        record_.template value_side<Class>(), blocks::value_offset(sealed_->shape.block()),
        scratch_->values.data());
  }

  /// Row `index` of those that were loaded. [head_dim]
  const float* key(int64_t index) const { return scratch_->keys.data() + index * head_dim_; }
  const float* value(int64_t index) const { return scratch_->values.data() + index * head_dim_; }

 private:
  using tile = tile_record<Policies, Class>;
  using blocks = block_record<Policies>;

  /// The blocks of the head are one string that pages cut into pieces.
  void gather_blocks(int32_t head) {
    scratch_->blocks.resize(static_cast<size_t>(blocks::bytes(sealed_->shape.block())));
    std::byte* next = scratch_->blocks.data();
    sealed_->for_each_block_piece(head, [&](const std::byte* piece, int64_t count) {
      std::memcpy(next, piece, static_cast<size_t>(count));
      next += count;
    });
  }

  template <template <int> class Layout, class Granularity, int Bits, class Quantizer>
  void load_side(int64_t first, int32_t count, int64_t codes_offset, int64_t pairs_offset,
                 side_parameters<Storage> given, int64_t block_offset, float* out) {
    if constexpr (codes_blocks<Quantizer>) {
      // The block has the tokens of both classes, the salient ones first.
      const int64_t skipped = Class == token_class::salient ? 0 : sealed_->shape.num_salient;
      Quantizer::granularity::template decode<Storage>(scratch_->blocks.data() + block_offset,
                                                       sealed_->shape.block(), skipped + first,
                                                       count, out);
    } else if constexpr (Bits == 0) {
      std::fill_n(out, count * head_dim_, 0.0f);
    } else {
      const tile_place at = scratch_->tiles[static_cast<size_t>(first / tile_tokens)];
      for (int32_t token = 0; token < count; ++token) {
        decode_token<Layout, Granularity, Bits, Storage>(
            reinterpret_cast<const uint32_t*>(at.codes + codes_offset),
            reinterpret_cast<const affine_params<Storage>*>(at.pairs + pairs_offset), given,
            head_dim_, static_cast<int32_t>(first % tile_tokens) + token, out + token * head_dim_);
      }
    }
    if constexpr (is_rotated<typename Quantizer::granularity>) {
      for (int32_t token = 0; token < count; ++token)
        rotate_channels(out + token * head_dim_, head_dim_);
    }
  }

  const segment<Policies>* sealed_;
  record_view<Policies, Storage> record_;
  decoded_scratch* scratch_;
  int32_t head_dim_;
};

}  // namespace zipcache::detail

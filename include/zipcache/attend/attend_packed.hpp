// Attention over one class of a segment whose codes are never unpacked: which layouts and
// processors have it, and the loop around the kernels of attend_avx512.hpp. @equality within
// rounding.
#pragma once

#include <zipcache/detail/cpu_features.hpp>
#if ZIPCACHE_X86_VECTORS

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <vector>

#include <zipcache/attend/attend_avx512.hpp>
#include <zipcache/attend/attend_rows.hpp>
#include <zipcache/attend/fold_parameters.hpp>
#include <zipcache/store/segment.hpp>
#include <zipcache/store/store.hpp>
#include <zipcache/store/tile.hpp>

namespace zipcache::detail {

/// Layouts that the kernels of attend_avx512.hpp read: 2 or 4 bits, and parameters that are folded
/// once for a class (by channel of the segment) or lie with one pair for a token.
template <class Granularity, int Bits>
inline constexpr bool is_packed_side = (Bits == 2 || Bits == 4) && Granularity::group_size == 0 &&
                                       (Granularity::axis == parameter_axis::token ||
                                        Granularity::home == parameter_home::segment);

template <class Tile>
inline constexpr bool is_packed_tile =
    is_packed_side<typename Tile::key_granularity, Tile::key_bits>&&
        is_packed_side<typename Tile::value_granularity, Tile::value_bits>;

inline bool reads_packed(const attend_rows& rows) {
  return active_cpu().load(std::memory_order_relaxed) >= cpu_level::avx512 &&
         rows.head_dim % 64 == 0 && rows.rows <= packed_scratch::most_rows;
}

/// Calls work(first row, its chunk, integral constant of the number of rows in the chunk).
template <class Work>
void for_row_chunks(int32_t rows, Work&& work) {
  for (int32_t first = 0; first < rows; first += packed_scratch::row_chunk) {
    const int32_t chunk = first / packed_scratch::row_chunk;
    switch (rows - first) {
      case 1:
        work(first, chunk, std::integral_constant<int, 1>{});
        break;
      case 2:
        work(first, chunk, std::integral_constant<int, 2>{});
        break;
      case 3:
        work(first, chunk, std::integral_constant<int, 3>{});
        break;
      default:
        work(first, chunk, std::integral_constant<int, 4>{});
    }
  }
}

/// Steps and minima of the tokens of one side.
template <class Granularity, int Bits, class Storage>
void load_side_pairs(const std::byte* pairs, int32_t count, tile_pairs_by_token& to) {
  if constexpr (has_compact_pairs<Granularity>) {
    load_compact_pairs<Bits>(reinterpret_cast<const uint8_t*>(pairs), count, to.steps, to.mins);
  } else {
    load_token_pairs(reinterpret_cast<const affine_params<Storage>*>(pairs), count, to.steps,
                     to.mins);
  }
}

/// attend_class on packed codes: see attend_avx512.hpp.
template <class Policies, token_class Class, class Storage>
void attend_packed_class(const segment<Policies>& sealed, int32_t head, attend_rows& rows) {
  using tile = tile_record<Policies, Class>;
  using key_granularity = typename tile::key_granularity;
  using value_granularity = typename tile::value_granularity;
  constexpr bool keys_by_token = key_granularity::axis == parameter_axis::token;
  constexpr bool values_by_token = value_granularity::axis == parameter_axis::token;
  const int32_t head_dim = rows.head_dim;
  const auto record = view_record<Policies, Storage>(sealed, head);
  packed_scratch& packed = rows.packed;
  rows.begin_part();
  fold_keys<key_granularity, tile::key_bits>(rows, record.template key_side<Class>());
  split_queries<tile::key_bits>(rows.folded_q.data(), rows.rows, head_dim, packed);
  packed.reset(rows.rows, head_dim);
  tile_pairs_by_token key_pairs, value_pairs;

  sealed.template for_each_tile<Class>(head, [&](tile_place at, int32_t count) {
    const auto* keys = reinterpret_cast<const uint32_t*>(at.codes);
    const auto* values =
        reinterpret_cast<const uint32_t*>(at.codes + tile::value_codes_offset(head_dim));
    if constexpr (keys_by_token)
      load_side_pairs<key_granularity, tile::key_bits, Storage>(at.pairs, count, key_pairs);
    if constexpr (values_by_token)
      load_side_pairs<value_granularity, tile::value_bits, Storage>(
          at.pairs + tile::value_pairs_offset(head_dim), count, value_pairs);
    prefetch_tile(at.codes + tile::code_bytes(head_dim), tile::code_bytes(head_dim));
    for_row_chunks(rows.rows, [&](int32_t first, int32_t chunk, auto size) {
      float* scores = packed.scores.data() + first * tile_tokens;
      const std::vector<float>& offset = keys_by_token ? rows.group_sums : rows.bias;
      score_packed_keys<tile::key_bits, size()>(
          keys, head_dim, packed.key_digits.data() + first * head_dim * packed_scratch::digits,
          third_digit_view(packed, chunk), packed.scales + first, scores);
      weigh_packed_rows<size()>(packed, first, head_dim, count, scores,
                                keys_by_token ? &key_pairs : nullptr, offset.data() + first,
                                values_by_token ? &value_pairs : nullptr);
      add_packed_values<tile::value_bits, size()>(values, head_dim,
                                                  packed.weights.data() + first * 64,
                                                  packed.sums.data() + first * 8 * head_dim);
    });
  });
  for (int32_t row = 0; row < rows.rows; ++row) {
    const size_t i = static_cast<size_t>(row);
    rows.part_states[i] = {packed.maxima[row], sum_of_16(packed.totals.data() + row * 32)};
    rows.zeros[i] = sum_of_16(packed.totals.data() + row * 32 + 16);
    unpack_sums<tile::value_bits>(packed.sums.data() + row * 8 * head_dim, head_dim,
                                  rows.part_out.data() + row * head_dim);
  }
  unfold_values<value_granularity, tile::value_bits>(rows, record.template value_side<Class>());
  rows.end_part();
}

}  // namespace zipcache::detail

#endif

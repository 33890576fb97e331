// Attention over one class of a segment by the matrix unit: the loop around the kernels of
// attend_amx.hpp, for the layouts that attend_packed.hpp reads. Tiles are taken in batches, all
// scores first, so that maxima rise and integers become floats once a batch. @equality within
// rounding.
#pragma once

#include <zipcache/detail/cpu_features.hpp>
#if ZIPCACHE_X86_VECTORS

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <limits>

#include <zipcache/attend/attend_amx.hpp>
#include <zipcache/attend/attend_packed.hpp>
#include <zipcache/attend/attend_rows.hpp>
#include <zipcache/attend/fold_parameters.hpp>
#include <zipcache/store/segment.hpp>
#include <zipcache/store/store.hpp>
#include <zipcache/store/tile.hpp>

// g++ 12 takes the operand that its own intrinsics leave undefined for an uninitialized variable.
#if !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace zipcache::detail {

inline bool uses_matrix_unit(const attend_rows& rows) {
  return active_cpu().load(std::memory_order_relaxed) == cpu_level::amx &&
         rows.head_dim % 64 == 0 && rows.rows <= matrix_scratch::most_rows;
}

/// The tiles of one batch, and the work on them.
template <class Policies, token_class Class, class Storage>
class matrix_batch {
 public:
  explicit matrix_batch(attend_rows& rows) : rows_(rows), scratch_(rows.matrix) {}

  /// Takes a tile in; a full batch is attended at once.
  ZIPCACHE_AMX void add(const tile_place& tile, int32_t count) {
    tiles_[size_] = tile.codes;
    counts_[size_] = count;
    if constexpr (keys_by_token)
      load_side_pairs<key_granularity, record::key_bits, Storage>(tile.pairs, count,
                                                                  key_pairs_[size_]);
    if constexpr (values_by_token)
      load_side_pairs<value_granularity, record::value_bits, Storage>(
          tile.pairs + record::value_pairs_offset(rows_.head_dim), count, value_pairs_[size_]);
    if (++size_ == matrix_scratch::batch) attend();
  }
  ZIPCACHE_AMX void attend() {
    if (size_ == 0) return;
    const float largest = largest_step();
    for (int32_t chunk = 0; chunk * matrix_scratch::row_chunk < rows_.rows; ++chunk) {
      const __m512 factor = raise_matrix_rows(scratch_.rows[chunk], score(chunk));
      weigh(chunk, largest > 0.0f ? finest / largest : 0.0f);
      add_values(chunk, factor, largest / finest);
    }
    size_ = 0;
  }

 private:
  using record = tile_record<Policies, Class>;
  using key_granularity = typename record::key_granularity;
  using value_granularity = typename record::value_granularity;
  static constexpr bool keys_by_token = key_granularity::axis == parameter_axis::token;
  static constexpr bool values_by_token = value_granularity::axis == parameter_axis::token;
  static constexpr int32_t part_bytes = record::value_bits * 256;  ///< 64 channels, 32 tokens
  static constexpr float finest = 0x1p31f;  ///< the integer of the largest weight

  /// Of the values' tokens: what no probability times its step is larger than.
  ZIPCACHE_AMX float largest_step() const {
    if constexpr (!values_by_token) return 1.0f;
    __m512 largest = _mm512_setzero_ps();
    for (int32_t tile = 0; tile < size_; ++tile)
      for (int32_t i = 0; i < tile_tokens; i += 16)
        largest = _mm512_max_ps(largest, _mm512_load_ps(value_pairs_[tile].steps + i));
    return _mm512_reduce_max_ps(largest);
  }

  /// Scores of all tiles; returns the largest of each row and token of four.
  ZIPCACHE_AMX __m512 score(int32_t chunk) {
    const int32_t head_dim = rows_.head_dim;
    const float* digits = scratch_.digits.data() + chunk * head_dim / 64 * 256;
    __m512 largest = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
    unpack_keys(0);
    for (int32_t tile = 0; tile < size_; ++tile) {
      // One tile ahead, so that the matrix unit does not wait for what has just been written.
      if (tile + 1 < size_) unpack_keys(tile + 1);
      float* results = scratch_.results.data() + tile % 2 * 512;
      multiply_matrix_keys(codes(tile), digits, head_dim, results);
      largest = score_matrix_tile(results, scratch_.rows[chunk],
                                  keys_by_token ? &key_pairs_[tile] : nullptr, counts_[tile],
                                  largest, scratch_.scores.data() + tile * 128);
    }
    return largest;
  }

  ZIPCACHE_AMX void weigh(int32_t chunk, float unit) {
    for (int32_t tile = 0; tile < size_; ++tile)
      weigh_matrix_tile(scratch_.scores.data() + tile * 128, scratch_.rows[chunk],
                        values_by_token ? &value_pairs_[tile] : nullptr, unit,
                        scratch_.weights.data() + tile / 2 * 256 + tile % 2 * 32);
    if (size_ % 2 == 0) return;
    float* missing = scratch_.weights.data() + size_ / 2 * 256 + 32;
    for (int32_t t = 0; t < 4; ++t) std::fill_n(missing + 64 * t, 32, 0.0f);
  }

  ZIPCACHE_AMX void add_values(int32_t chunk, __m512 factor, float unit) {
    const int32_t head_dim = rows_.head_dim;
    const int64_t offset = record::value_codes_offset(head_dim);
    for (int32_t part = 0; part < head_dim / 64; ++part) {
      matrix_unit::clear<0>();
      matrix_unit::clear<1>();
      matrix_unit::clear<2>();
      matrix_unit::clear<3>();
      unpack_values(0, offset + part * part_bytes);
      for (int32_t pair = 0; 2 * pair < size_; ++pair) {
        if (2 * pair + 2 < size_) unpack_values(pair + 1, offset + part * part_bytes);
        multiply_matrix_values(codes(pair), scratch_.weights.data() + pair * 256);
      }
      add_matrix_products(scratch_.results.data(), factor, unit,
                          scratch_.sums.data() + (chunk * head_dim + part * 64) * 16);
    }
  }

  float* codes(int32_t turn) const {
    return scratch_.codes.data() + turn % 2 * most(4, rows_.head_dim / 32) * 256;
  }
  ZIPCACHE_AMX void unpack_keys(int32_t tile) {
    prefetch_codes(tile, 0, record::value_codes_offset(rows_.head_dim));
    unpack_matrix_keys<record::key_bits>(reinterpret_cast<const uint32_t*>(tiles_[tile]),
                                         rows_.head_dim, codes(tile));
  }
  /// 64 channels of two tiles, at `offset` of each.
  ZIPCACHE_AMX void unpack_values(int32_t pair, int64_t offset) {
    const int32_t first = 2 * pair;
    const int32_t second = least(first + 1, size_ - 1);  // meets weights of 0 if there is none
    prefetch_codes(first, offset, part_bytes);
    prefetch_codes(second, offset, part_bytes);
    unpack_matrix_values<record::value_bits>(
        reinterpret_cast<const uint32_t*>(tiles_[first] + offset),
        reinterpret_cast<const uint32_t*>(tiles_[second] + offset), codes(pair));
  }

  /// Asks for the same bytes of the tile one batch further on, which lies there in the same page.
  void prefetch_codes(int32_t tile, int64_t offset, int64_t bytes) const {
    const std::byte* next =
        tiles_[tile] + matrix_scratch::batch * record::code_bytes(rows_.head_dim) + offset;
    for (int64_t i = 0; i < bytes; i += 64)
      _mm_prefetch(reinterpret_cast<const char*>(next + i), _MM_HINT_T1);
  }

  attend_rows& rows_;
  matrix_scratch& scratch_;
  int32_t size_ = 0;
  const std::byte* tiles_[matrix_scratch::batch];
  int32_t counts_[matrix_scratch::batch];
  tile_pairs_by_token key_pairs_[matrix_scratch::batch], value_pairs_[matrix_scratch::batch];
};

/// attend_class by the matrix unit: see attend_amx.hpp.
template <class Policies, token_class Class, class Storage>
ZIPCACHE_AMX void attend_matrix_class(const segment<Policies>& sealed, int32_t head,
                                      attend_rows& rows) {
  using tile = tile_record<Policies, Class>;
  using key_granularity = typename tile::key_granularity;
  const int32_t head_dim = rows.head_dim;
  const auto record = view_record<Policies, Storage>(sealed, head);
  matrix_scratch& scratch = rows.matrix;
  rows.begin_part();
  fold_keys<key_granularity, tile::key_bits>(rows, record.template key_side<Class>());
  scratch.reset(rows.rows, head_dim);
  split_matrix_queries<tile::key_bits>(rows.folded_q.data(), rows.rows, head_dim, scratch);
  const auto& bias = key_granularity::axis == parameter_axis::token ? rows.group_sums : rows.bias;
  for (int32_t row = 0; row < rows.rows; ++row)
    for (int32_t lane = 0; lane < 4; ++lane)
      scratch.rows[row / 4].bias[4 * lane + row % 4] = bias[static_cast<size_t>(row)];
  {
    const matrix_unit in_use;
    matrix_batch<Policies, Class, Storage> batch(rows);
    sealed.template for_each_tile<Class>(
        head, [&](const tile_place& at, int32_t count) { batch.add(at, count); });
    batch.attend();
  }
  for (int32_t row = 0; row < rows.rows; ++row) {
    const size_t i = static_cast<size_t>(row);
    const matrix_rows& chunk = scratch.rows[row / 4];
    const auto over_tokens = [&](const float* x) {
      x += row % 4;
      return x[0] + x[4] + x[8] + x[12];
    };
    rows.part_states[i] = {chunk.maxima[row % 4], over_tokens(chunk.totals)};
    rows.zeros[i] = over_tokens(chunk.zeros);
  }
  for (int32_t first = 0; first < rows.rows; first += matrix_scratch::row_chunk)
    join_matrix_sums<tile::value_bits>(scratch.sums.data() + first / 4 * head_dim * 16,
                                       least(rows.rows - first, matrix_scratch::row_chunk),
                                       head_dim, rows.part_out.data() + first * head_dim);
  unfold_values<typename tile::value_granularity, tile::value_bits>(
      rows, record.template value_side<Class>());
  rows.end_part();
}

}  // namespace zipcache::detail

#if !defined(__clang__)
#pragma GCC diagnostic pop
#endif
#endif

// Attention on the CPU, directly on packed codes: no row of the cache is ever dequantized, but for
// sides that are coded in blocks (quantize/block_codec.hpp), of which 32 rows at a time are. In:
// query rows of one KV head, a segment or rows in 16 bits. Out: softmax states that merge. Twin:
// attend.cuh. @equality within rounding.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include <zipcache/attend/attend_matrix.hpp>
#include <zipcache/attend/attend_packed.hpp>
#include <zipcache/attend/attend_rows.hpp>
#include <zipcache/attend/fold_parameters.hpp>
#include <zipcache/attend/softmax_state.hpp>
#include <zipcache/core/view.hpp>
#include <zipcache/detail/block_math.hpp>
#include <zipcache/quantize/rotation.hpp>
#include <zipcache/store/store.hpp>
#if ZIPCACHE_X86_VECTORS
#include <zipcache/attend/attend_avx2.hpp>
#endif

namespace zipcache {

namespace detail {

/// Codes of a tile side as floats: keys [head_dim, 32] or values [32, head_dim]. 16-bit codes
/// become their values. Tokens from `count` on become zeros, whatever lies there.
template <template <int> class Layout, int Bits, class Storage>
void load_codes(scalar_isa, const uint32_t* tile, int32_t head_dim, int32_t count,
                int32_t token_stride, int32_t channel_stride, float* block) {
  std::fill(block, block + head_dim * tile_tokens, 0.0f);
  for (int32_t token = 0; token < count; ++token) {
    for (int32_t channel = 0; channel < head_dim; ++channel) {
      const uint32_t code = code_tile<Layout, Bits>::load(tile, head_dim, token, channel);
      block[token * token_stride + channel * channel_stride] =
          Bits == 16 ? to_float(Storage{static_cast<uint16_t>(code)}) : static_cast<float>(code);
    }
  }
}

/// The pairs of one group for the tokens of a tile, as floats; zeros from `count` on.
struct token_scales {
  float steps[tile_tokens] = {};
  float mins[tile_tokens] = {};
};
template <class Granularity, int Bits, class Storage>
token_scales load_token_scales(const affine_params<Storage>* pairs, int32_t count, int32_t group) {
  token_scales scales;
  for (int32_t token = 0; token < count; ++token) {
    const affine_params<Storage> pair = load_token_pair<Granularity, Bits>(pairs, token, group);
    scales.steps[token] = to_float(pair.step);
    scales.mins[token] = to_float(pair.min);
  }
  return scales;
}

/// Scores of one tile in base 2; tokens from `count` on get -inf. Writes rows.scores [rows, 32].
template <class Granularity, int Bits, class Storage>
void score_tile(attend_rows& rows, const uint32_t* codes, const affine_params<Storage>* pairs,
                int32_t count) {
  const int32_t head_dim = rows.head_dim;
  with_isa([&](auto isa) {
    load_codes<key_layout, Bits, Storage>(isa, codes, head_dim, count, 1, tile_tokens,
                                          rows.key_block.data());
  });
  std::fill(rows.scores.begin(), rows.scores.end(), 0.0f);
  if constexpr (has_pairs(Bits) && Granularity::axis == parameter_axis::token) {
    const int32_t groups = groups_per_token<Granularity>(head_dim);
    const int32_t group_size = channels_per_group<Granularity>(head_dim);
    std::vector<float>& dots = rows.weights;
    for (int32_t group = 0; group < groups; ++group) {
      std::fill(dots.begin(), dots.end(), 0.0f);
      add_scores(rows.folded_q.data(), rows.key_block.data(), rows.rows, head_dim,
                 group * group_size, (group + 1) * group_size, dots.data());
      const token_scales scales = load_token_scales<Granularity, Bits>(pairs, count, group);
      add_scaled_scores(dots.data(), scales.steps, scales.mins, rows.group_sums.data() + group,
                        rows.rows, groups, rows.scores.data());
    }
  } else {
    if constexpr (has_pairs(Bits) && Granularity::home == parameter_home::tile)
      fold_channel_pairs<Granularity>(rows, pairs);
    add_scores(rows.folded_q.data(), rows.key_block.data(), rows.rows, head_dim, 0, head_dim,
               rows.scores.data());
    for (int32_t row = 0; row < rows.rows; ++row) {
      for (int32_t token = 0; token < count; ++token)
        rows.scores[static_cast<size_t>(row * tile_tokens + token)] +=
            rows.bias[static_cast<size_t>(row)];
    }
  }
  for (int32_t row = 0; row < rows.rows; ++row) {
    std::fill(rows.scores.begin() + row * tile_tokens + count,
              rows.scores.begin() + (row + 1) * tile_tokens,
              -std::numeric_limits<float>::infinity());
  }
}

/// Raises the maxima by the block's scores, rescales what was accumulated, and turns scores into
/// probabilities.
inline void update_states(attend_rows& rows, int32_t zeros_per_row) {
  for (int32_t row = 0; row < rows.rows; ++row) {
    float* scores = rows.scores.data() + row * tile_tokens;
    softmax_state& state = rows.part_states[static_cast<size_t>(row)];
    const float factor = state.raise(largest_score(scores));
    if (factor != 1.0f) {
      for (int32_t channel = 0; channel < rows.head_dim; ++channel)
        rows.part_out[static_cast<size_t>(row * rows.head_dim + channel)] *= factor;
      for (int32_t i = 0; i < zeros_per_row; ++i)
        rows.zeros[static_cast<size_t>(row * zeros_per_row + i)] *= factor;
    }
    if (state.maximum == -std::numeric_limits<float>::infinity()) {
      std::fill(scores, scores + tile_tokens,
                0.0f);  // nothing visible yet: -inf - -inf would be NaN
    } else {
      state.sum += exponentiate(scores, state.maximum);
    }
  }
}

/// Adds one tile's values, weighted by rows.scores (now probabilities), to the part.
template <class Granularity, int Bits, class Storage>
void accumulate_tile(attend_rows& rows, const uint32_t* codes, const affine_params<Storage>* pairs,
                     int32_t count) {
  const int32_t head_dim = rows.head_dim;
  with_isa([&](auto isa) {
    load_codes<value_layout, Bits, Storage>(isa, codes, head_dim, count, head_dim, 1,
                                            rows.value_block.data());
  });
  if constexpr (has_pairs(Bits) && Granularity::axis == parameter_axis::token) {
    const int32_t groups = groups_per_token<Granularity>(head_dim);
    const int32_t group_size = channels_per_group<Granularity>(head_dim);
    for (int32_t group = 0; group < groups; ++group) {
      const token_scales scales = load_token_scales<Granularity, Bits>(pairs, count, group);
      weigh_tokens(rows.scores.data(), scales.steps, scales.mins, rows.rows, groups,
                   rows.weights.data(), rows.zeros.data() + group);
      add_weighted_values(rows.weights.data(), rows.value_block.data(), rows.rows, head_dim,
                          group * group_size, (group + 1) * group_size, rows.part_out.data());
    }
  } else if constexpr (has_pairs(Bits) && Granularity::home == parameter_home::tile) {
    std::fill(rows.tile_out.begin(), rows.tile_out.end(), 0.0f);
    add_weighted_values(rows.scores.data(), rows.value_block.data(), rows.rows, head_dim, 0,
                        head_dim, rows.tile_out.data());
    const channel_scales<Storage> scales(pairs, head_dim);
    for (int32_t row = 0; row < rows.rows; ++row) {
      float sum = 0.0f;
      for (int32_t token = 0; token < count; ++token)
        sum += rows.scores[static_cast<size_t>(row * tile_tokens + token)];
      for (int32_t channel = 0; channel < head_dim; ++channel) {
        const size_t index = static_cast<size_t>(row * head_dim + channel);
        rows.part_out[index] +=
            scales.steps[channel] * rows.tile_out[index] + scales.mins[channel] * sum;
      }
    }
  } else {
    add_weighted_values(rows.scores.data(), rows.value_block.data(), rows.rows, head_dim, 0,
                        head_dim, rows.part_out.data());
  }
}

template <class Policies, token_class Class, class Storage>
void attend_class(const segment<Policies>& sealed, int32_t head, attend_rows& rows) {
  using tile = tile_record<Policies, Class>;
  if constexpr (!Policies::template evicts<Class>) {
    if (sealed.shape.template class_tokens<Class>() == 0) return;
#if ZIPCACHE_X86_VECTORS
    if constexpr (is_packed_tile<tile>) {
      if (uses_matrix_unit(rows))
        return attend_matrix_class<Policies, Class, Storage>(sealed, head, rows);
      if (reads_packed(rows))
        return attend_packed_class<Policies, Class, Storage>(sealed, head, rows);
    }
#endif
    const int32_t head_dim = sealed.shape.head_dim;
    const auto record = view_record<Policies, Storage>(sealed, head);
    rows.begin_part();
    fold_keys<typename tile::key_granularity, tile::key_bits>(rows,
                                                              record.template key_side<Class>());
    sealed.template for_each_tile<Class>(head, [&](tile_place at, int32_t count) {
      score_tile<typename tile::key_granularity, tile::key_bits>(
          rows, reinterpret_cast<const uint32_t*>(at.codes),
          reinterpret_cast<const affine_params<Storage>*>(at.pairs), count);
      update_states(rows, groups_per_token<typename tile::value_granularity>(head_dim));
      accumulate_tile<typename tile::value_granularity, tile::value_bits>(
          rows, reinterpret_cast<const uint32_t*>(at.codes + tile::value_codes_offset(head_dim)),
          reinterpret_cast<const affine_params<Storage>*>(at.pairs +
                                                          tile::value_pairs_offset(head_dim)),
          count);
    });
    unfold_values<typename tile::value_granularity, tile::value_bits>(
        rows, record.template value_side<Class>());
    rows.end_part();
  }
}

}  // namespace detail

/// @brief Adds tokens in 16 bits (window, sinks) to the rows' states, causally.
/// @param key_row, value_row  functions of the token index that give its row [head_dim]
/// @param num_tokens  tokens in the run; query token t sees those with index < first_visible + t
/// @param group  query heads for each query token
template <class KeyRow, class ValueRow>
void attend(cpu_backend, KeyRow&& key_row, ValueRow&& value_row, int64_t num_tokens,
            int64_t first_visible, int32_t group, attend_rows& rows) {
  const int32_t head_dim = rows.head_dim;
  rows.begin_part();
  for (int64_t first = 0; first < num_tokens; first += tile_tokens) {
    const int32_t count = static_cast<int32_t>(least<int64_t>(tile_tokens, num_tokens - first));
    decltype(key_row(first)) keys[tile_tokens] = {};
    for (int32_t token = 0; token < count; ++token) {
      keys[token] = key_row(first + token);
      detail::widen(value_row(first + token), head_dim, rows.value_block.data() + token * head_dim);
    }
    detail::transpose_rows(keys, count, head_dim, rows.key_block.data());
    std::fill(rows.value_block.begin() + count * head_dim, rows.value_block.end(), 0.0f);
    std::fill(rows.scores.begin(), rows.scores.end(), 0.0f);
    detail::add_scores(rows.q.data(), rows.key_block.data(), rows.rows, head_dim, 0, head_dim,
                       rows.scores.data());
    for (int32_t row = 0; row < rows.rows; ++row) {
      const int64_t visible = std::clamp<int64_t>(first_visible + row / group - first, 0, count);
      std::fill(rows.scores.begin() + row * tile_tokens + visible,
                rows.scores.begin() + (row + 1) * tile_tokens,
                -std::numeric_limits<float>::infinity());
    }
    detail::update_states(rows, 0);
    detail::add_weighted_values(rows.scores.data(), rows.value_block.data(), rows.rows, head_dim, 0,
                                head_dim, rows.part_out.data());
  }
  rows.end_part();
}

namespace detail {

/// attend_class where a side is coded in blocks: 32 rows at a time are decoded and met as rows in
/// 16 bits are.
template <class Policies, token_class Class, class Storage>
void attend_decoded_class(cpu_backend backend, const segment<Policies>& sealed, int32_t head,
                          attend_rows& rows) {
  const int64_t num_tokens = sealed.shape.template class_tokens<Class>();
  if (num_tokens == 0) return;
  decoded_rows<Policies, Class, Storage> decoded(sealed, head, rows.decoded);
  const auto key_row = [&](int64_t token) {
    if (token % tile_tokens == 0)
      decoded.load(token, static_cast<int32_t>(least<int64_t>(tile_tokens, num_tokens - token)));
    return decoded.key(token % tile_tokens);
  };
  const auto value_row = [&](int64_t token) { return decoded.value(token % tile_tokens); };
  zipcache::attend(backend, key_row, value_row, num_tokens, num_tokens, 1, rows);
}

}  // namespace detail

/// @brief Adds a sealed segment, seen whole by every query row, to the rows' states.
template <class Policies, class Storage>
void attend(cpu_backend backend, const segment<Policies>& sealed, int32_t kv_head,
            attend_rows& rows) {
  if constexpr (block_record<Policies>::has_blocks) {
    detail::attend_decoded_class<Policies, token_class::salient, Storage>(backend, sealed, kv_head,
                                                                          rows);
    detail::attend_decoded_class<Policies, token_class::regular, Storage>(backend, sealed, kv_head,
                                                                          rows);
  } else {
    detail::attend_class<Policies, token_class::salient, Storage>(sealed, kv_head, rows);
    detail::attend_class<Policies, token_class::regular, Storage>(sealed, kv_head, rows);
  }
}

}  // namespace zipcache

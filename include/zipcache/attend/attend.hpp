// Attention on the CPU, directly on packed codes: no row of the cache is ever dequantized, but for
// sides that are coded in blocks (quantize/block_codec.hpp), of which 32 rows at a time are. In:
// query rows of one KV head, a segment or rows in 16 bits. Out: softmax states that merge. Twin:
// attend.cuh. @equality within rounding.
//
// Scales are folded where they cost least (design of the method, section 7). With q in base-2
// units:
//   keys by channel      q'_c = q_c * step_c, and sum_c q_c * min_c is one bias for each row
//   keys by token        score_i = sum over groups of step_ig * (codes . q)_g + min_ig * sum of q
//   over the group,
//                        q first multiplied by the channel magnitudes if there are any
//   values by channel    codes are summed with p, and out_c = step_c * sum_c + min_c * sum of p
//   values by token      codes are summed with p_i * step_ig; sum_i p_i * min_ig is one scalar for
//   each row and group;
//                        magnitudes multiply the result once
//   rotated keys         the query is rotated once; rotated values: the part's output is, at the
//   end
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include <zipcache/attend/softmax_state.hpp>
#include <zipcache/core/view.hpp>
#include <zipcache/detail/block_math.hpp>
#include <zipcache/quantize/rotation.hpp>
#include <zipcache/store/store.hpp>
#if ZIPCACHE_X86_VECTORS
#include <zipcache/attend/attend_avx2.hpp>
#include <zipcache/attend/attend_avx512.hpp>
#endif

namespace zipcache {

/// Query rows that share one KV head, their states and scratch; reused from call to call.
struct attend_rows {
  int32_t rows = 0;  ///< query heads of the group x query tokens
  int32_t head_dim = 0;
  std::vector<float> q;               ///< [rows, head_dim], times sm_scale * log2(e)
  std::vector<softmax_state> states;  ///< [rows]
  std::vector<float> out;             ///< [rows, head_dim], not yet divided by the sum

  /// q as keys of this layout are met with: rotated if they are.
  template <class Granularity>
  const std::vector<float>& query() {
    if constexpr (!is_rotated<Granularity>) return q;
    if (rotated_q.empty()) {
      rotated_q = q;
      for (int32_t row = 0; row < rows; ++row)
        rotate_channels(rotated_q.data() + row * head_dim, head_dim);
    }
    return rotated_q;
  }
  std::vector<float> rotated_q;  ///< [rows, head_dim], or empty until it is needed

  // Scratch of one class or one run of rows.
  std::vector<softmax_state> part_states;
  std::vector<float> part_out, folded_q, bias, scores, weights, zeros, group_sums, key_block,
      value_block, tile_out;
  detail::decoded_scratch decoded;
#if ZIPCACHE_X86_VECTORS
  detail::packed_scratch packed;
#endif

  void reset(int32_t num_rows, int32_t dim) {
    rows = num_rows;
    head_dim = dim;
    const size_t size = static_cast<size_t>(num_rows) * static_cast<size_t>(dim);
    q.resize(size);
    rotated_q.clear();
    states.assign(static_cast<size_t>(num_rows), softmax_state{});
    out.assign(size, 0.0f);
    part_out.resize(size);
    folded_q.resize(size);
    bias.resize(static_cast<size_t>(num_rows));
    scores.resize(static_cast<size_t>(num_rows) * tile_tokens);
    weights.resize(static_cast<size_t>(num_rows) * tile_tokens);
    zeros.resize(static_cast<size_t>(num_rows) * detail::max_head_dim / 16);
    group_sums.resize(static_cast<size_t>(num_rows) * detail::max_head_dim / 16);
    key_block.resize(static_cast<size_t>(dim) * tile_tokens);
    value_block.resize(static_cast<size_t>(dim) * tile_tokens);
    tile_out.resize(size);
  }

  void begin_part() {
    part_states.assign(static_cast<size_t>(rows), softmax_state{});
    std::fill(part_out.begin(), part_out.end(), 0.0f);
    std::fill(zeros.begin(), zeros.end(), 0.0f);
  }
  void end_part() {
    for (int32_t row = 0; row < rows; ++row) {
      merge(states[static_cast<size_t>(row)], out.data() + row * head_dim,
            part_states[static_cast<size_t>(row)], part_out.data() + row * head_dim, head_dim);
    }
  }
};

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

/// q times pairs that vary by channel: folded_q = q * step, bias = q . min.
template <class Granularity, class Storage>
void fold_channel_pairs(attend_rows& rows, const affine_params<Storage>* pairs) {
  const std::vector<float>& q = rows.query<Granularity>();
  for (int32_t row = 0; row < rows.rows; ++row) {
    float sum = 0.0f;
    for (int32_t channel = 0; channel < rows.head_dim; ++channel) {
      const size_t index = static_cast<size_t>(row * rows.head_dim + channel);
      rows.folded_q[index] = q[index] * to_float(pairs[channel].step);
      sum += q[index] * to_float(pairs[channel].min);
    }
    rows.bias[static_cast<size_t>(row)] = sum;
  }
}

/// q times channel magnitudes (or plain q), and its sums over the groups of channels.
template <class Granularity, class Storage>
void fold_magnitudes(attend_rows& rows, const Storage* magnitudes) {
  const std::vector<float>& q = rows.query<Granularity>();
  const int32_t groups = groups_per_token<Granularity>(rows.head_dim);
  const int32_t group_size = channels_per_group<Granularity>(rows.head_dim);
  for (int32_t row = 0; row < rows.rows; ++row) {
    for (int32_t group = 0; group < groups; ++group) {
      float sum = 0.0f;
      for (int32_t channel = group * group_size; channel < (group + 1) * group_size; ++channel) {
        const size_t index = static_cast<size_t>(row * rows.head_dim + channel);
        rows.folded_q[index] = Granularity::has_channel_magnitudes
                                   ? q[index] * to_float(magnitudes[channel])
                                   : q[index];
        sum += rows.folded_q[index];
      }
      rows.group_sums[static_cast<size_t>(row * groups + group)] = sum;
    }
  }
}

/// What can be folded into the query once for a class of a segment.
template <class Granularity, int Bits, class Storage>
void fold_keys(attend_rows& rows, side_parameters<Storage> given) {
  if constexpr (!has_pairs(Bits)) {
    rows.folded_q = rows.query<Granularity>();
    std::fill(rows.bias.begin(), rows.bias.end(), 0.0f);
  } else if constexpr (Granularity::axis == parameter_axis::token) {
    fold_magnitudes<Granularity>(rows, given.magnitudes);
  } else if constexpr (Granularity::home == parameter_home::segment) {
    fold_channel_pairs<Granularity>(rows, given.segment_pairs);
  }
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
      for (int32_t token = 0; token < count; ++token) {
        const affine_params<Storage> pair = *token_pair(pairs, token, group);
        const float step = to_float(pair.step);
        const float min = to_float(pair.min);
        for (int32_t row = 0; row < rows.rows; ++row) {
          const size_t index = static_cast<size_t>(row * tile_tokens + token);
          rows.scores[index] +=
              step * dots[index] + min * rows.group_sums[static_cast<size_t>(row * groups + group)];
        }
      }
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
      std::fill(rows.weights.begin(), rows.weights.end(), 0.0f);
      for (int32_t token = 0; token < count; ++token) {
        const affine_params<Storage> pair = *token_pair(pairs, token, group);
        const float step = to_float(pair.step);
        const float min = to_float(pair.min);
        for (int32_t row = 0; row < rows.rows; ++row) {
          const float probability = rows.scores[static_cast<size_t>(row * tile_tokens + token)];
          rows.weights[static_cast<size_t>(row * tile_tokens + token)] = probability * step;
          rows.zeros[static_cast<size_t>(row * groups + group)] += probability * min;
        }
      }
      add_weighted_values(rows.weights.data(), rows.value_block.data(), rows.rows, head_dim,
                          group * group_size, (group + 1) * group_size, rows.part_out.data());
    }
  } else if constexpr (has_pairs(Bits) && Granularity::home == parameter_home::tile) {
    std::fill(rows.tile_out.begin(), rows.tile_out.end(), 0.0f);
    add_weighted_values(rows.scores.data(), rows.value_block.data(), rows.rows, head_dim, 0,
                        head_dim, rows.tile_out.data());
    for (int32_t row = 0; row < rows.rows; ++row) {
      float sum = 0.0f;
      for (int32_t token = 0; token < count; ++token)
        sum += rows.scores[static_cast<size_t>(row * tile_tokens + token)];
      for (int32_t channel = 0; channel < head_dim; ++channel) {
        const size_t index = static_cast<size_t>(row * head_dim + channel);
        rows.part_out[index] += to_float(pairs[channel].step) * rows.tile_out[index] +
                                to_float(pairs[channel].min) * sum;
      }
    }
  } else {
    add_weighted_values(rows.scores.data(), rows.value_block.data(), rows.rows, head_dim, 0,
                        head_dim, rows.part_out.data());
  }
}

/// Applies minima and magnitudes by token, or pairs by channel of the segment.
template <class Granularity, class Storage>
void unfold_parameters(attend_rows& rows, side_parameters<Storage> given) {
  const int32_t groups = groups_per_token<Granularity>(rows.head_dim);
  const int32_t group_size = channels_per_group<Granularity>(rows.head_dim);
  for (int32_t row = 0; row < rows.rows; ++row) {
    for (int32_t channel = 0; channel < rows.head_dim; ++channel) {
      float& value = rows.part_out[static_cast<size_t>(row * rows.head_dim + channel)];
      if constexpr (Granularity::axis == parameter_axis::token) {
        value += rows.zeros[static_cast<size_t>(row * groups + channel / group_size)];
        if constexpr (Granularity::has_channel_magnitudes)
          value *= to_float(given.magnitudes[channel]);
      } else if constexpr (Granularity::home == parameter_home::segment) {
        value = to_float(given.segment_pairs[channel].step) * value +
                to_float(given.segment_pairs[channel].min) *
                    rows.part_states[static_cast<size_t>(row)].sum;
      }
    }
  }
}

/// Applies what was left out of the inner loop: parameters, and the way back from rotated channels.
template <class Granularity, int Bits, class Storage>
void unfold_values(attend_rows& rows, side_parameters<Storage> given) {
  if constexpr (has_pairs(Bits)) unfold_parameters<Granularity>(rows, given);
  if constexpr (is_rotated<Granularity>) {
    for (int32_t row = 0; row < rows.rows; ++row)
      rotate_channels(rows.part_out.data() + row * rows.head_dim, rows.head_dim);
  }
}

#if ZIPCACHE_X86_VECTORS

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
  return active_cpu().load(std::memory_order_relaxed) == cpu_level::avx512 &&
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

  sealed.template for_each_tile<Class>(head, [&](const std::byte* bytes, int32_t count) {
    using pair = affine_params<Storage>;
    const auto* keys = reinterpret_cast<const uint32_t*>(bytes);
    const auto* values =
        reinterpret_cast<const uint32_t*>(bytes + tile::value_codes_offset(head_dim));
    if constexpr (keys_by_token)
      load_token_pairs(reinterpret_cast<const pair*>(bytes + tile::key_pairs_offset(head_dim)),
                       count, key_pairs.steps, key_pairs.mins);
    if constexpr (values_by_token)
      load_token_pairs(reinterpret_cast<const pair*>(bytes + tile::value_pairs_offset(head_dim)),
                       count, value_pairs.steps, value_pairs.mins);
    prefetch_tile(bytes + tile::bytes(head_dim), tile::bytes(head_dim));
    for_row_chunks(rows.rows, [&](int32_t first, int32_t chunk, auto size) {
      float* scores = packed.scores.data() + first * tile_tokens;
      const std::vector<float>& offset = keys_by_token ? rows.group_sums : rows.bias;
      score_packed_keys<tile::key_bits, size()>(
          keys, head_dim, packed.key_digits.data() + first * head_dim * packed_scratch::digits,
          packed.has_third[chunk], packed.scales + first, scores);
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

#endif

template <class Policies, token_class Class, class Storage>
void attend_class(const segment<Policies>& sealed, int32_t head, attend_rows& rows) {
  using tile = tile_record<Policies, Class>;
  if constexpr (!Policies::template evicts<Class>) {
    if (sealed.shape.template class_tokens<Class>() == 0) return;
#if ZIPCACHE_X86_VECTORS
    if constexpr (is_packed_tile<tile>) {
      if (reads_packed(rows))
        return attend_packed_class<Policies, Class, Storage>(sealed, head, rows);
    }
#endif
    const int32_t head_dim = sealed.shape.head_dim;
    const auto record = view_record<Policies, Storage>(sealed, head);
    rows.begin_part();
    fold_keys<typename tile::key_granularity, tile::key_bits>(rows,
                                                              record.template key_side<Class>());
    sealed.template for_each_tile<Class>(head, [&](const std::byte* bytes, int32_t count) {
      score_tile<typename tile::key_granularity, tile::key_bits>(
          rows, reinterpret_cast<const uint32_t*>(bytes),
          reinterpret_cast<const affine_params<Storage>*>(bytes + tile::key_pairs_offset(head_dim)),
          count);
      update_states(rows, groups_per_token<typename tile::value_granularity>(head_dim));
      accumulate_tile<typename tile::value_granularity, tile::value_bits>(
          rows, reinterpret_cast<const uint32_t*>(bytes + tile::value_codes_offset(head_dim)),
          reinterpret_cast<const affine_params<Storage>*>(bytes +
                                                          tile::value_pairs_offset(head_dim)),
          count);
    });
    unfold_values<typename tile::value_granularity, tile::value_bits>(
        rows, record.template value_side<Class>());
    rows.end_part();
  }
}

}  // namespace detail

/// @brief Loads the query rows of one KV head: row = query token * group + query head of the group.
/// @param[in] q  [num_qo_heads, qo_len, head_dim]
template <cache_element Element>
void load_queries(tensor_view<const Element> q, int32_t kv_head, int32_t group, float sm_scale,
                  attend_rows& rows) {
  rows.reset(group * static_cast<int32_t>(q.num_tokens), q.head_dim);
  for (int32_t row = 0; row < rows.rows; ++row) {
    float* target = rows.q.data() + row * q.head_dim;
    detail::widen(q.row(kv_head * group + row % group, row / group), q.head_dim, target);
    for (int32_t channel = 0; channel < q.head_dim; ++channel) target[channel] *= sm_scale * log2_e;
  }
}

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

/// @brief Divides by the sums and writes the result of one KV head. A row that saw no token gets
/// zeros and lse -inf.
/// @param[out] out  [num_qo_heads, qo_len, head_dim]
/// @param[out] lse  natural log-sum-exp of query head h and token t at lse[t * lse_stride + h]; may
/// be null
template <cache_element Element>
void store_output(const attend_rows& rows, int32_t kv_head, int32_t group, tensor_view<Element> out,
                  float* lse, int64_t lse_stride) {
  for (int32_t row = 0; row < rows.rows; ++row) {
    const int32_t qo_head = kv_head * group + row % group;
    const softmax_state& state = rows.states[static_cast<size_t>(row)];
    const float inverse = state.sum > 0.0f ? 1.0f / state.sum : 0.0f;
    Element* target = out.row(qo_head, row / group);
    for (int32_t channel = 0; channel < rows.head_dim; ++channel) {
      target[channel] = from_float<Element>(
          rows.out[static_cast<size_t>(row * rows.head_dim + channel)] * inverse);
    }
    if (lse != nullptr) lse[row / group * lse_stride + qo_head] = state.lse();
  }
}

}  // namespace zipcache

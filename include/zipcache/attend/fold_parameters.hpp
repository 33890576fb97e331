// Parameters that stay out of the inner loops of attention on the CPU: folded into the query before
// the keys, applied to the result after the values.
//
// Scales are folded where they cost least (design of the method, section 7). With q in base-2
// units:
//   keys by channel    q'_c = q_c * step_c, and sum_c q_c * min_c is one bias for each row
//   keys by token      q is multiplied by the channel magnitudes if there are any; score_i = sum
//                      over groups of step_ig * (codes . q)_g + min_ig * sum of q over the group
//   values by channel  codes are summed with p, and out_c = step_c * sum_c + min_c * sum of p
//   values by token    codes are summed with p_i * step_ig; sum_i p_i * min_ig is one scalar for
//                      each row and group; magnitudes multiply the result once
//   rotated            the query is rotated once, and so is the output of the values' part
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include <zipcache/attend/attend_rows.hpp>
#include <zipcache/detail/block_math.hpp>
#include <zipcache/quantize/affine.hpp>
#include <zipcache/quantize/granularity.hpp>
#include <zipcache/quantize/rotation.hpp>
#include <zipcache/store/store.hpp>

namespace zipcache::detail {

/// Parameters of up to 256 channels as floats, widened once for all query rows.
template <class Storage>
struct channel_scales {
  float steps[max_head_dim];
  float mins[max_head_dim];

  channel_scales(const affine_params<Storage>* pairs, int32_t head_dim) {
    for (int32_t channel = 0; channel < head_dim; ++channel) {
      steps[channel] = to_float(pairs[channel].step);
      mins[channel] = to_float(pairs[channel].min);
    }
  }
};

/// The sum of a[i] * b[i], in 16 running sums so that a compiler can keep them in vectors. count is
/// a multiple of 16.
inline float dot_product(const float* a, const float* b, int32_t count) {
  constexpr int32_t lanes = 16;
  float sums[lanes] = {};
  for (int32_t i = 0; i < count; i += lanes)
    for (int32_t lane = 0; lane < lanes; ++lane) sums[lane] += a[i + lane] * b[i + lane];
  float sum = 0.0f;
  for (const float part : sums) sum += part;
  return sum;
}

/// q times pairs that vary by channel: folded_q = q * step, bias = q . min.
template <class Granularity, class Storage>
void fold_channel_pairs(attend_rows& rows, const affine_params<Storage>* pairs) {
  const std::vector<float>& q = rows.query<Granularity>();
  const channel_scales<Storage> scales(pairs, rows.head_dim);
  for (int32_t row = 0; row < rows.rows; ++row) {
    const float* source = q.data() + row * rows.head_dim;
    float* folded = rows.folded_q.data() + row * rows.head_dim;
    for (int32_t channel = 0; channel < rows.head_dim; ++channel)
      folded[channel] = source[channel] * scales.steps[channel];
    rows.bias[static_cast<size_t>(row)] = dot_product(source, scales.mins, rows.head_dim);
  }
}

/// q times channel magnitudes (or plain q), and its sums over the groups of channels.
template <class Granularity, class Storage>
void fold_magnitudes(attend_rows& rows, [[maybe_unused]] const Storage* magnitudes) {
  rows.folded_q = rows.query<Granularity>();
  const int32_t groups = groups_per_token<Granularity>(rows.head_dim);
  const int32_t group_size = channels_per_group<Granularity>(rows.head_dim);
  [[maybe_unused]] float wide[max_head_dim];
  if constexpr (Granularity::has_channel_magnitudes) widen(magnitudes, rows.head_dim, wide);
  for (int32_t row = 0; row < rows.rows; ++row) {
    float* folded = rows.folded_q.data() + row * rows.head_dim;
    if constexpr (Granularity::has_channel_magnitudes) {
      for (int32_t channel = 0; channel < rows.head_dim; ++channel)
        folded[channel] *= wide[channel];
    }
    for (int32_t group = 0; group < groups; ++group) {
      float sum = 0.0f;
      for (int32_t channel = group * group_size; channel < (group + 1) * group_size; ++channel)
        sum += folded[channel];
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

/// Values by token: minima, then channel magnitudes.
template <class Granularity, class Storage>
void unfold_token_parameters(attend_rows& rows, [[maybe_unused]] const Storage* magnitudes) {
  const int32_t groups = groups_per_token<Granularity>(rows.head_dim);
  const int32_t group_size = channels_per_group<Granularity>(rows.head_dim);
  [[maybe_unused]] float wide[max_head_dim];
  if constexpr (Granularity::has_channel_magnitudes) widen(magnitudes, rows.head_dim, wide);
  for (int32_t row = 0; row < rows.rows; ++row) {
    for (int32_t group = 0; group < groups; ++group) {
      const float zero = rows.zeros[static_cast<size_t>(row * groups + group)];
      float* values = rows.part_out.data() + row * rows.head_dim;
      for (int32_t channel = group * group_size; channel < (group + 1) * group_size; ++channel) {
        values[channel] += zero;
        if constexpr (Granularity::has_channel_magnitudes) values[channel] *= wide[channel];
      }
    }
  }
}

/// Values by channel of the segment.
template <class Storage>
void unfold_channel_parameters(attend_rows& rows, const affine_params<Storage>* pairs) {
  const channel_scales<Storage> scales(pairs, rows.head_dim);
  for (int32_t row = 0; row < rows.rows; ++row) {
    const float sum = rows.part_states[static_cast<size_t>(row)].sum;
    float* values = rows.part_out.data() + row * rows.head_dim;
    for (int32_t channel = 0; channel < rows.head_dim; ++channel)
      values[channel] = scales.steps[channel] * values[channel] + scales.mins[channel] * sum;
  }
}

/// Applies what was left out of the inner loop: parameters, and the way back from rotated channels.
template <class Granularity, int Bits, class Storage>
void unfold_values(attend_rows& rows, side_parameters<Storage> given) {
  if constexpr (has_pairs(Bits) && Granularity::axis == parameter_axis::token) {
    unfold_token_parameters<Granularity>(rows, given.magnitudes);
  } else if constexpr (has_pairs(Bits) && Granularity::home == parameter_home::segment) {
    unfold_channel_parameters(rows, given.segment_pairs);
  }
  if constexpr (is_rotated<Granularity>) {
    for (int32_t row = 0; row < rows.rows; ++row)
      rotate_channels(rows.part_out.data() + row * rows.head_dim, rows.head_dim);
  }
}

}  // namespace zipcache::detail

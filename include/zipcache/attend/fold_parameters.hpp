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
#include <zipcache/quantize/affine.hpp>
#include <zipcache/quantize/granularity.hpp>
#include <zipcache/quantize/rotation.hpp>
#include <zipcache/store/store.hpp>

namespace zipcache::detail {

/// q times pairs that vary by channel: folded_q = q * step, bias = q . min.
template <class Granularity, class Storage>
void fold_channel_pairs(attend_rows& rows, const affine_params<Storage>* pairs) {
  const std::vector<float>& q = rows.query<Granularity>();
  std::fill_n(rows.bias.begin(), rows.rows, 0.0f);
  for (int32_t channel = 0; channel < rows.head_dim; ++channel) {
    const float step = to_float(pairs[channel].step);
    const float min = to_float(pairs[channel].min);
    for (int32_t row = 0; row < rows.rows; ++row) {
      const size_t index = static_cast<size_t>(row * rows.head_dim + channel);
      rows.folded_q[index] = q[index] * step;
      rows.bias[static_cast<size_t>(row)] += q[index] * min;
    }
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

/// Applies minima and magnitudes by token, or pairs by channel of the segment.
template <class Granularity, class Storage>
void unfold_parameters(attend_rows& rows, side_parameters<Storage> given) {
  [[maybe_unused]] const int32_t groups = groups_per_token<Granularity>(rows.head_dim);
  [[maybe_unused]] const int32_t group_size = channels_per_group<Granularity>(rows.head_dim);
  for (int32_t channel = 0; channel < rows.head_dim; ++channel) {
    [[maybe_unused]] float step = 1.0f;
    [[maybe_unused]] float min = 0.0f;
    if constexpr (Granularity::axis == parameter_axis::token) {
      if constexpr (Granularity::has_channel_magnitudes) step = to_float(given.magnitudes[channel]);
    } else if constexpr (Granularity::home == parameter_home::segment) {
      step = to_float(given.segment_pairs[channel].step);
      min = to_float(given.segment_pairs[channel].min);
    }
    for (int32_t row = 0; row < rows.rows; ++row) {
      float& value = rows.part_out[static_cast<size_t>(row * rows.head_dim + channel)];
      if constexpr (Granularity::axis == parameter_axis::token) {
        value += rows.zeros[static_cast<size_t>(row * groups + channel / group_size)];
        value *= step;
      } else if constexpr (Granularity::home == parameter_home::segment) {
        value = step * value + min * rows.part_states[static_cast<size_t>(row)].sum;
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

}  // namespace zipcache::detail

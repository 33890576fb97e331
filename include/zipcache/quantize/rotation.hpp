// The Hadamard rotation in front of a quantizer: `rotated<channelwise>` quantizes H x instead of x.
// H spreads an outlier channel over all channels of its block, so that no single step has to cover
// it. H is orthonormal: (H q) . (H k) = q . k, so attention rotates the query once instead of
// rotating keys back, and rotates the weighted sum of values back once. Source: QuaRot (Ashkboos et
// al., NeurIPS 2024), applied after RoPE.
#pragma once

#include <cstdint>
#include <string>

#include <zipcache/config.hpp>
#include <zipcache/core/numerics.hpp>

namespace zipcache {

/// The layout `Granularity` on rotated channels: keys<rotated<channelwise>, 4, 2>.
template <class Granularity>
struct rotated : Granularity {
  static constexpr bool rotates_channels = true;
  static std::string name() { return "rotated_" + Granularity::name(); }
};

namespace detail {

template <class Granularity>
concept says_that_it_rotates = requires {
  requires Granularity::rotates_channels;
};

}  // namespace detail

/// Layouts that do not mention a rotation have none.
template <class Granularity>
inline constexpr bool is_rotated = detail::says_that_it_rotates<Granularity>;

/// Neighbouring channels that are rotated together: the largest power of two that divides head_dim
/// (all of 64, 128 and 256; 32 of 96, 16 of 80).
ZIPCACHE_HOST_DEVICE constexpr int32_t rotation_block(int32_t head_dim) {
  return head_dim & -head_dim;
}

/// @brief x <- H x in place, H the normalized Walsh-Hadamard matrix of every block. H is its own
/// inverse. Sums are made in the order of the butterflies, so that every backend gets the same
/// bits.
/// @param x  [head_dim]
ZIPCACHE_HOST_DEVICE inline void rotate_channels(float* x, int32_t head_dim) {
  const int32_t block = rotation_block(head_dim);
  for (int32_t distance = 1; distance < block; distance *= 2) {
    for (int32_t pair = 0; pair < head_dim / 2; ++pair) {
      const int32_t low = pair / distance * 2 * distance + pair % distance;
      const float a = x[low];
      const float b = x[low + distance];
      x[low] = a + b;
      x[low + distance] = a - b;
    }
  }
  const float norm = divide(1.0f, square_root(static_cast<float>(block)));
  for (int32_t channel = 0; channel < head_dim; ++channel) x[channel] *= norm;
}

}  // namespace zipcache

// (step, min) in 12 instead of 32 bits: `compact_pairs<channel_separable_tokenwise>` has the groups
// of the layout that it wraps, and a pair that is kept as
//   step   8 bits: short_scale.hpp
//   zero   4 bits: min = -zero * step * 2^(bits - 4)
// One pair a token costs 0.09 bits a value at head_dim 128 instead of 0.25. The range always holds
// zero, so min is never above it; the step is the nearest one (within 1/16), the minimum the
// nearest in quarters of a step at 2 bits and in whole steps at 4. Both are exact in half and in
// bfloat16, so whoever reads a pair computes with the (step, min) of affine.hpp. Steps end at 4096
// and at 2^-17, below which a group decodes to 0. For codes of at most 4 bits.
#pragma once

#include <cstdint>
#include <string>

#include <zipcache/quantize/affine.hpp>
#include <zipcache/quantize/granularity.hpp>
#include <zipcache/quantize/short_scale.hpp>

namespace zipcache {

/// The layout `Granularity` with pairs of 12 bits: values<compact_pairs<tokenwise>, 4, 2>.
template <class Granularity>
struct compact_pairs : Granularity {
  static_assert(Granularity::axis == parameter_axis::token && Granularity::group_size == 0,
                "zipcache: compact_pairs takes layouts with one pair for a token: tokenwise, "
                "channel_separable_tokenwise and rotated<> of them");
  static constexpr bool has_compact_pairs = true;
  static std::string name() { return "compact_" + Granularity::name(); }
};

namespace detail {

template <class Granularity>
concept says_that_pairs_are_compact = requires {
  requires Granularity::has_compact_pairs;
};

}  // namespace detail

/// Layouts that do not mention compact pairs have none.
template <class Granularity>
inline constexpr bool has_compact_pairs = detail::says_that_pairs_are_compact<Granularity>;

/// A pair of 12 bits.
struct compact_pair {
  uint8_t step;
  uint8_t zero;  ///< 0 to 15
};

template <int Bits>
struct compact_affine {
  static_assert(Bits <= 4);  // with more, neighbouring minima would be several steps apart
  static constexpr int max_code = affine<Bits>::max_code;
  /// What one of `zero` counts, in steps.
  static constexpr float unit = 1.0f / static_cast<float>(1 << (4 - Bits));
  /// 4096, so that every minimum is finite in half.
  static constexpr uint32_t largest_step = 0xd8;

  /// The pair of a group; an empty range gives zeros.
  ZIPCACHE_HOST_DEVICE static compact_pair fit(value_range r) {
    if (r.empty()) return {0, 0};
    const float lowest = least(r.lowest, 0.0f);
    const float highest = most(r.highest, 0.0f);
    // Halves, since two finite floats can be further apart than the largest one.
    const float exact = divide(highest * 0.5f - lowest * 0.5f, 0.5f * static_cast<float>(max_code));
    const uint32_t step = short_scale_of(exact, largest_step);
    if (step == 0) return {0, 0};
    const float zero = divide(-lowest, widen_short_scale(step) * unit) + 0.5f;
    return {static_cast<uint8_t>(step), static_cast<uint8_t>(zero < 15.0f ? zero : 15.0f)};
  }

  /// What the pair stands for. Exact.
  template <class Storage>
  ZIPCACHE_HOST_DEVICE static affine_params<Storage> widen(compact_pair pair) {
    const float step = widen_short_scale(pair.step);
    return {from_float<Storage>(step),
            from_float<Storage>(0.0f - step * (unit * static_cast<float>(pair.zero)))};
  }

  /// The inverse of `widen`.
  template <class Storage>
  ZIPCACHE_HOST_DEVICE static compact_pair narrow(affine_params<Storage> params) {
    const float step = to_float(params.step);
    if (!(step > 0.0f)) return {0, 0};
    return {static_cast<uint8_t>(from_float<half>(step).bits >> 7),
            static_cast<uint8_t>(divide(-to_float(params.min), step * unit))};
  }
};

/// The pair of a group of `Granularity`, as whoever quantizes and dequantizes with it needs it.
template <class Granularity, int Bits, class Storage>
ZIPCACHE_HOST_DEVICE affine_params<Storage> fit_pair(value_range range) {
  if constexpr (has_compact_pairs<Granularity>) {
    return compact_affine<Bits>::template widen<Storage>(compact_affine<Bits>::fit(range));
  } else {
    return affine<Bits>::template fit<Storage>(range);
  }
}

}  // namespace zipcache

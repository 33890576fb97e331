// Pairs of 12 bits: what they hold is exact, and what they lose is within their steps.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include <zipcache/store/tile.hpp>
#include <zipcache/store/token_pair.hpp>

#include "support/catch.hpp"

using namespace zipcache;

namespace {

template <int Bits, class Storage>
bool keeps(compact_pair pair) {
  const auto wide = compact_affine<Bits>::template widen<Storage>(pair);
  const compact_pair back = compact_affine<Bits>::narrow(wide);
  const double step = static_cast<double>(to_float(half{static_cast<uint16_t>(pair.step << 7)}));
  return back.step == pair.step && back.zero == pair.zero &&
         static_cast<double>(to_float(wide.step)) == step &&
         static_cast<double>(to_float(wide.min)) == -step * pair.zero * std::exp2(Bits - 4);
}

template <int Bits>
affine_params<half> fitted(float lowest, float highest) {
  return fit_pair<compact_pairs<tokenwise>, Bits, half>({lowest, highest});
}

}  // namespace

TEMPLATE_TEST_CASE_SIG("quantize: every compact pair is exact in half and in bfloat16",
                       "[quantize][compact]", ((int Bits), Bits), 1, 2, 3, 4) {
  int wrong = 0;
  for (uint32_t step = 1; step <= compact_affine<Bits>::largest_step; ++step) {
    for (uint32_t zero = 0; zero < 16; ++zero) {
      const compact_pair pair{static_cast<uint8_t>(step), static_cast<uint8_t>(zero)};
      wrong += !keeps<Bits, half>(pair) || !keeps<Bits, bfloat16>(pair);
    }
  }
  CHECK(wrong == 0);
  CHECK(keeps<Bits, half>({0, 0}));
}

// A step is within 1/16 of the exact one (half a unit of three bits of mantissa), and the minimum
// within half a unit: values at the ends of a range are off by no more than both together.
TEMPLATE_TEST_CASE_SIG("quantize: compact pairs cover a range to a fraction of a step",
                       "[quantize][compact]", ((int Bits), Bits), 1, 2, 3, 4) {
  constexpr int max_code = (1 << Bits) - 1;
  const double unit = std::exp2(Bits - 4);
  for (const float scale : {0.01f, 0.37f, 1.0f, 5.1f, 300.0f}) {
    for (const auto& [low, high] :
         {std::pair{-1.0f, 1.0f}, {-2.0f, 0.5f}, {-0.1f, 3.0f}, {0.5f, 3.0f}, {-3.0f, -1.0f}}) {
      INFO(Bits << " bits, " << low * scale << " to " << high * scale);
      const auto pair = fitted<Bits>(low * scale, high * scale);
      const double step = static_cast<double>(to_float(pair.step));
      const double min = static_cast<double>(to_float(pair.min));
      const double lowest = std::min(static_cast<double>(low * scale), 0.0);
      const double highest = std::max(static_cast<double>(high * scale), 0.0);
      const double exact = (highest - lowest) / max_code;
      CHECK(std::fabs(step - exact) <= exact / 16);
      // 15 units of a step that was rounded down may end before the range does.
      const double short_of = std::max(-lowest - 15 * unit * step, 0.0);
      CHECK(short_of <= -lowest / 16);
      CHECK(std::fabs(min - lowest) <= std::max(unit / 2 * step * 1.001, short_of));
      CHECK(std::fabs(min + step * max_code - highest) <=
            unit / 2 * step * 1.001 + max_code * exact / 16);
    }
  }
}

TEST_CASE("quantize: compact pairs of unusual ranges are finite", "[quantize][compact]") {
  const float huge = std::numeric_limits<float>::max();
  const auto all = fitted<4>(-huge, huge);
  CHECK(to_float(all.step) == 4096.0f);
  CHECK(is_finite(to_float(all.min)));
  const auto nothing = fit_pair<compact_pairs<tokenwise>, 2, half>(value_range{});
  CHECK(nothing.step.bits == 0);
  CHECK(nothing.min.bits == 0);
  // Too small to be told from zero: everything decodes to zero.
  const auto tiny = fitted<2>(-1e-8f, 1e-8f);
  CHECK(to_float(tiny.step) == 0.0f);
  CHECK(to_float(tiny.min) == 0.0f);
  // A constant is the end of its range.
  const auto constant = fitted<2>(5.0f, 5.0f);
  const auto scale = affine<2>::widen(constant);
  CHECK(std::fabs(affine<2>::dequantize(affine<2>::quantize(5.0f, scale), scale) - 5.0f) <=
        5.0f / 16);
}

TEST_CASE("store: a tile's compact pairs are 48 bytes, a place of its own for each",
          "[store][compact]") {
  using layout = compact_pairs<tokenwise>;
  CHECK(tile_pair_bytes<layout, 2>(128) == 48);
  CHECK(tile_pair_bytes<layout, 16>(128) == 0);
  affine_params<half> pairs[12] = {};
  const auto pair_of = [](int32_t token) {
    return compact_affine<2>::widen<half>(
        {static_cast<uint8_t>(40 + token), static_cast<uint8_t>(token % 16)});
  };
  for (int32_t token = 0; token < 32; ++token)
    detail::save_token_pair<layout, 2>(pairs, token, 0, pair_of(token));
  // The first is written again over its neighbour's half byte.
  detail::save_token_pair<layout, 2>(pairs, 0, 0, pair_of(0));
  for (int32_t token = 0; token < 32; ++token) {
    const auto pair = detail::load_token_pair<layout, 2>(pairs, token, 0);
    CHECK(pair.step.bits == pair_of(token).step.bits);
    CHECK(pair.min.bits == pair_of(token).min.bits);
  }
}

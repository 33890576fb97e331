// Element classes by magnitude: every value of a block is outer, middle or inner, and the classes
// have codes of their own. Source: Oaken (2025, arXiv 2503.18599): fractions 4 / 90 / 6 %, a class
// is shifted towards zero by the threshold that bounds it on that side ("group shift"), the middle
// is coded in 4 dense bits, inner and outer in 5 bits, of which 4 use the value's dense slot and
// the fifth lies in a sparse entry of 8 bits with the channel and the class. Attention decodes.
//
// Where ours differs:
// - Oaken takes its thresholds offline, from calibration texts; a library of headers has none. Ours
//   are the quantiles of the block itself, that is of one side of one head of the tokens that are
//   compressed together, and are stored with it (8 bytes). So the classes have exactly the shares
//   that they are given, and the size of a block follows from its shape.
// - A scale belongs to one head, not to all heads of a token. The middle has a (step, min) pair a
//   token, the outer class a step a token; inner values lie between two thresholds and need none.
// - The fifth bit is the side of an outer value, and the high bit of an inner one's code.
// - Keys are met after RoPE, as everywhere in this library.
//
// Block of n tokens, S sparse values, in this order:
//   4 thresholds of 16 bits: outer low, inner low, inner high, outer high
//   pairs of the middle [n] of 4 bytes, steps of the outer class [n] of 2 bytes
//   starts [n / 32, up] of 4 bytes: sparse values before every 32nd token
//   counts [n, head_dim / 64, up] of 1 byte: sparse values among 64 channels of a token
//   entries [S] of 1 byte, in the order of tokens and channels: channel % 64, whether outer << 6,
//   fifth bit << 7
//   codes [n, head_dim] of 4 bits
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <zipcache/quantize/block_bytes.hpp>
#include <zipcache/quantize/block_codec.hpp>

namespace zipcache {

template <int OuterPerMille, int InnerPerMille>
struct magnitude_classes {
  static_assert(OuterPerMille >= 0 && InnerPerMille >= 0 && OuterPerMille + InnerPerMille <= 500,
                "zipcache: outer and inner values are at most 500 per mille together");
  static constexpr int bits = 4;

  /// Outer values at each end, and inner ones.
  static constexpr int64_t outer_per_end(int64_t num_values) {
    return (num_values * OuterPerMille + 1000) / 2000;
  }
  static constexpr int64_t num_inner(int64_t num_values) {
    return (num_values * InnerPerMille + 500) / 1000;
  }
  static block_size size(const block_shape& shape) {
    const parts at(shape);
    return {at.end - at.entries, at.entries};
  }

  template <class Storage>
  static void encode(const float* x, const block_shape& shape, std::byte* out) {
    const parts at(shape);
    std::memset(out, 0, static_cast<size_t>(at.end));
    const classification found = classify<Storage>(x, shape.num_tokens * shape.head_dim);
    for (int side = 0; side < 4; ++side)
      save_number(out, side, from_float<Storage>(found.thresholds[side]));
    int64_t next = 0;  // sparse value
    for (int64_t token = 0; token < shape.num_tokens; ++token) {
      if (token % start_tokens == 0)
        save_number(out + at.starts, token / start_tokens, static_cast<uint32_t>(next));
      const float* row = x + token * shape.head_dim;
      const element_class* classes = found.classes.data() + token * shape.head_dim;
      const token_codes<Storage> codes(row, classes, shape.head_dim, found.thresholds);
      save_number(out + at.pairs, token, codes.pair);
      save_number(out + at.steps, token, codes.outer_step);
      for (int32_t channel = 0; channel < shape.head_dim; ++channel) {
        const uint32_t code = codes.quantize(row[channel], classes[channel]);
        dense::save(out + at.codes, token * shape.head_dim + channel, code & 15u);
        if (!is_sparse(classes[channel])) continue;
        const bool outer = classes[channel] != element_class::inner;
        const uint32_t entry =
            static_cast<uint32_t>(channel % chunk_channels) | (outer ? 64u : 0u) | (code >> 4) << 7;
        save_number(out + at.entries, next++, static_cast<uint8_t>(entry));
        std::byte& count = out[at.counts + token * at.chunks + channel / chunk_channels];
        count = static_cast<std::byte>(std::to_integer<int>(count) + 1);
      }
    }
  }

  template <class Storage>
  static void decode(const std::byte* in, const block_shape& shape, int64_t first, int64_t count,
                     float* out) {
    const parts at(shape);
    float thresholds[4];
    for (int side = 0; side < 4; ++side)
      thresholds[side] = to_float(load_number<Storage>(in, side));
    int64_t next = load_number<uint32_t>(in + at.starts, first / start_tokens);
    for (int64_t token = first / start_tokens * start_tokens; token < first; ++token) {
      for (int64_t chunk = 0; chunk < at.chunks; ++chunk)
        next += std::to_integer<int64_t>(in[at.counts + token * at.chunks + chunk]);
    }
    std::vector<uint8_t> codes(static_cast<size_t>(shape.head_dim));
    for (int64_t token = first; token < first + count; ++token, out += shape.head_dim) {
      dense::unpack(in + at.codes, token * shape.head_dim, shape.head_dim, codes.data());
      const token_codes<Storage> scales(load_number<affine_params<Storage>>(in + at.pairs, token),
                                        load_number<Storage>(in + at.steps, token), thresholds);
      for (int32_t channel = 0; channel < shape.head_dim; ++channel)
        out[channel] = scales.dequantize_middle(codes[static_cast<size_t>(channel)]);
      for (int64_t chunk = 0; chunk < at.chunks; ++chunk) {
        auto left = std::to_integer<int32_t>(in[at.counts + token * at.chunks + chunk]);
        for (; left > 0; --left) {
          const auto entry = load_number<uint8_t>(in + at.entries, next++);
          const int64_t channel = chunk * chunk_channels + (entry & 63);
          const uint32_t code = codes[static_cast<size_t>(channel)] | (entry >> 7) * 16u;
          out[channel] = scales.dequantize_sparse(code, (entry & 64) != 0);
        }
      }
    }
  }

  static std::string name() {
    return "magnitude_classes" + std::to_string(OuterPerMille) + "_" +
           std::to_string(InnerPerMille);
  }

 private:
  using dense = packed_codes<4>;
  enum class element_class : uint8_t { outer_low, middle_low, inner, middle_high, outer_high };
  static constexpr bool is_sparse(element_class c) {
    return c != element_class::middle_low && c != element_class::middle_high;
  }
  static constexpr int64_t start_tokens = 32;
  static constexpr int32_t chunk_channels = 64;

  /// Where the parts of a block begin, in bytes.
  struct parts {
    int64_t chunks, pairs, steps, starts, counts, entries, codes, end;

    explicit parts(const block_shape& shape) {
      const int64_t tokens = shape.num_tokens;
      const int64_t num_values = tokens * shape.head_dim;
      chunks = ceil_div(shape.head_dim, chunk_channels);
      pairs = 8;
      steps = pairs + 4 * tokens;
      starts = steps + 2 * tokens;
      counts = starts + 4 * ceil_div(tokens, start_tokens);
      entries = counts + tokens * chunks;
      codes = entries + 2 * outer_per_end(num_values) + num_inner(num_values);
      end = codes + dense::bytes(num_values);
    }
  };

  struct classification {
    std::vector<element_class> classes;
    float thresholds[4];  ///< outer low, inner low, inner high, outer high; rounded as stored
  };

  /// The class of every value by its rank, equal values in the order in which they lie.
  template <class Storage>
  static classification classify(const float* x, int64_t num_values) {
    std::vector<std::pair<float, int64_t>> ranked;
    for (int64_t i = 0; i < num_values; ++i) ranked.emplace_back(finite_or_zero(x[i]), i);
    const int64_t outer = outer_per_end(num_values);
    const int64_t inner = num_inner(num_values);
    // Where the classes end in the order of values.
    const int64_t inner_begin = (num_values - inner) / 2;
    const int64_t ends[] = {outer, inner_begin, inner_begin + inner, num_values - outer,
                            num_values};
    auto from = ranked.begin();
    for (int i = 0; i < 4; ++i) {
      const auto end = ranked.begin() + ends[i];
      if (end != ranked.end()) std::nth_element(from, end, ranked.end());
      from = end;
    }
    classification found{std::vector<element_class>(ranked.size()), {}};
    const float low = 3.402823466e38f;
    float smallest[5] = {low, low, low, low, low};
    float largest[5] = {-low, -low, -low, -low, -low};
    for (int64_t rank = 0, c = 0; rank < num_values; ++rank) {
      while (rank >= ends[c]) ++c;
      const auto& [value, index] = ranked[static_cast<size_t>(rank)];
      found.classes[static_cast<size_t>(index)] = static_cast<element_class>(c);
      smallest[c] = least(smallest[c], value);
      largest[c] = most(largest[c], value);
    }
    // Without inner values the middle is parted at its first high value, the median.
    const float thresholds[] = {largest[0], inner > 0 ? smallest[2] : smallest[3],
                                inner > 0 ? largest[2] : smallest[3], smallest[4]};
    for (int i = 0; i < 4; ++i) {
      const bool exists = std::fabs(thresholds[i]) < low;
      found.thresholds[i] = exists ? to_float(from_float<Storage>(thresholds[i])) : 0.0f;
    }
    return found;
  }

  /// Codes of one token.
  template <class Storage>
  struct token_codes {
    affine_params<Storage> pair;  ///< of the middle, after the shift
    Storage outer_step;
    const float* thresholds;
    affine_scale middle, outer, inner;

    token_codes(affine_params<Storage> stored_pair, Storage stored_step, const float* given)
        : pair(stored_pair), outer_step(stored_step), thresholds(given) {
      widen();
    }

    token_codes(const float* row, const element_class* classes, int32_t head_dim,
                const float* given)
        : thresholds(given) {
      value_range range, excess;
      bool has_low = false, has_high = false;
      for (int32_t channel = 0; channel < head_dim; ++channel) {
        const element_class c = classes[channel];
        has_low = has_low || c == element_class::middle_low;
        has_high = has_high || c == element_class::middle_high;
        if (c == element_class::inner) continue;
        value_range& grown = is_sparse(c) ? excess : range;
        grown = include(grown, shifted(row[channel], c));
      }
      pair = affine<4>::template fit<Storage>(range);
      outer_step = affine<4>::template fit<Storage>({0.0f, most(0.0f, excess.highest)}).step;
      part_sides(has_low, has_high);
      widen();
    }

    /// Distance from the threshold on the class's zero side; outer values without their sign.
    float shifted(float x, element_class c) const {
      if (c == element_class::outer_low) return thresholds[0] - x;
      if (c == element_class::middle_low) return x - thresholds[1];
      if (c == element_class::middle_high) return x - thresholds[2];
      return x - thresholds[3];
    }

    /// A middle code says by its sign which threshold to add back, so low values need a negative
    /// code and high ones another: at most one code further than the nearest.
    uint32_t quantize(float x, element_class c) const {
      if (c == element_class::inner) return affine<5>::quantize(x, inner);
      uint32_t code = affine<4>::quantize(shifted(x, c), is_sparse(c) ? outer : middle);
      if (c == element_class::outer_high) return code | 16u;
      while (c == element_class::middle_low && code > 0 && !is_low(code)) --code;
      while (c == element_class::middle_high && code < 15 && is_low(code)) ++code;
      return code;
    }

    float dequantize_middle(uint32_t code) const {
      const float x = static_cast<float>(code) * middle.step + middle.min;
      return x + (x < 0.0f ? thresholds[1] : thresholds[2]);
    }
    float dequantize_sparse(uint32_t code, bool is_outer) const {
      if (!is_outer) return affine<5>::dequantize(code, inner);
      const float excess = affine<4>::dequantize(code & 15u, outer);
      return code >= 16u ? thresholds[3] + excess : thresholds[0] - excess;
    }

   private:
    bool is_low(uint32_t code) const { return affine<4>::dequantize(code, middle) < 0.0f; }

    /// Makes sure that a token with low values has a negative code, and one with high values
    /// another, where rounding or ties with a threshold left none: the least negative minimum, the
    /// next larger step.
    void part_sides(bool has_low, bool has_high) {
      if (has_low && !(to_float(pair.min) < 0.0f)) pair.min.bits = 0x8001;
      middle = affine<4>::widen(pair);
      while (has_low && has_high && is_low(15)) {
        ++pair.step.bits;
        middle = affine<4>::widen(pair);
      }
    }

    void widen() {
      middle = affine<4>::widen(pair);
      const Storage none{};
      outer = affine<4>::widen(affine_params<Storage>{outer_step, none});
      const float step = divide(thresholds[2] - thresholds[1], 31.0f);
      inner = {step, thresholds[1], step > 0.0f ? divide(1.0f, step) : 0.0f};
    }
  };
};

}  // namespace zipcache

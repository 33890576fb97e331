// Channelwise keys in which the largest channels of every page get 4 bits and the others 2.
// Source: Kitty (2025, arXiv 2511.18643), "dynamic channel boost": pages of 128 tokens, one pair a
// channel and page, channels ranked by the mean of |K| over the page, a boosted channel's 4 bits in
// two planes of 2, so that every load is one of 2-bit codes. Attention decodes; it does not read
// the planes.
//
// Ours differs in the map of boosted channels, which is one bit a channel instead of one byte.
//
// Page of m tokens, b boosted channels, in this order:
//   pairs [head_dim] of 4 bytes, map of boosted channels [head_dim] of 1 bit,
//   plane 0 [m, head_dim] of 2 bits: codes, or the two high bits of a boosted channel's,
//   plane 1 [m, b] of 2 bits: their two low bits, boosted channels in ascending order
// A block is its pages; the last one may have fewer tokens.
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

/// A share of `BoostedPerMille` / 1000 of the channels is boosted, rounded down.
template <int BoostedPerMille>
struct boosted_channels {
  static_assert(BoostedPerMille >= 0 && BoostedPerMille <= 1000,
                "zipcache: a share of boosted channels is between 0 and 1000 per mille");
  static constexpr int bits = 2;
  static constexpr int64_t page_tokens = 128;

  static constexpr int32_t num_boosted(int32_t head_dim) {
    return head_dim * BoostedPerMille / 1000;
  }
  static block_size size(const block_shape& shape) {
    const block_size full = page_size(page_tokens, shape.head_dim);
    const int64_t pages = shape.num_tokens / page_tokens;
    const int64_t rest = shape.num_tokens % page_tokens;
    const block_size last = rest > 0 ? page_size(rest, shape.head_dim) : block_size{};
    return {pages * full.code_bytes + last.code_bytes,
            pages * full.parameter_bytes + last.parameter_bytes};
  }

  template <class Storage>
  static void encode(const float* x, const block_shape& shape, std::byte* out) {
    for (int64_t first = 0; first < shape.num_tokens; first += page_tokens) {
      const int64_t count = least(page_tokens, shape.num_tokens - first);
      encode_page<Storage>(x + first * shape.head_dim, count, shape.head_dim, out);
      out += page_size(count, shape.head_dim).bytes();
    }
  }

  template <class Storage>
  static void decode(const std::byte* in, const block_shape& shape, int64_t first, int64_t count,
                     float* out) {
    const int64_t full_bytes = page_size(page_tokens, shape.head_dim).bytes();
    while (count > 0) {
      const int64_t page = first / page_tokens;
      const int64_t begin = first % page_tokens;
      const int64_t here = least(count, page_tokens - begin);
      const int64_t in_page = least(page_tokens, shape.num_tokens - page * page_tokens);
      decode_page<Storage>(in + page * full_bytes, in_page, shape.head_dim, begin, here, out);
      first += here;
      count -= here;
      out += here * shape.head_dim;
    }
  }

  static std::string name() { return "boosted" + std::to_string(BoostedPerMille) + "_channels"; }

 private:
  using plane = packed_codes<2>;

  static constexpr block_size page_size(int64_t count, int32_t head_dim) {
    return {plane::bytes(count * head_dim) + plane::bytes(count * num_boosted(head_dim)),
            int64_t{4} * head_dim + head_dim / 8};
  }

  /// Channels with the largest mean magnitude, ascending; ties go to the lower channel.
  static std::vector<int32_t> largest_channels(const float* x, int64_t count, int32_t head_dim) {
    std::vector<std::pair<float, int32_t>> ranked;  // minus the sum, so that less ranks first
    for (int32_t channel = 0; channel < head_dim; ++channel) {
      float sum = 0.0f;
      for (int64_t token = 0; token < count; ++token)
        sum += std::fabs(finite_or_zero(x[token * head_dim + channel]));
      ranked.emplace_back(-sum, channel);
    }
    const auto end = ranked.begin() + num_boosted(head_dim);
    std::partial_sort(ranked.begin(), end, ranked.end());
    std::vector<int32_t> channels;
    for (auto entry = ranked.begin(); entry != end; ++entry) channels.push_back(entry->second);
    std::sort(channels.begin(), channels.end());
    return channels;
  }

  template <class Storage>
  static void encode_page(const float* x, int64_t count, int32_t head_dim, std::byte* out) {
    std::memset(out, 0, static_cast<size_t>(page_size(count, head_dim).bytes()));
    std::byte* map = out + 4 * head_dim;
    std::byte* high = map + head_dim / 8;
    std::byte* low = high + plane::bytes(count * head_dim);
    const std::vector<int32_t> boosted = largest_channels(x, count, head_dim);
    size_t rank = 0;
    for (int32_t channel = 0; channel < head_dim; ++channel) {
      const bool is_boosted = rank < boosted.size() && boosted[rank] == channel;
      value_range range;
      for (int64_t token = 0; token < count; ++token)
        range = include(range, x[token * head_dim + channel]);
      const auto pair =
          is_boosted ? affine<4>::fit<Storage>(range) : affine<2>::fit<Storage>(range);
      const affine_scale scale = affine<4>::widen(pair);
      save_number(out, channel, pair);
      for (int64_t token = 0; token < count; ++token) {
        const float value = x[token * head_dim + channel];
        const uint32_t code =
            is_boosted ? affine<4>::quantize(value, scale) : affine<2>::quantize(value, scale);
        plane::save(high, token * head_dim + channel, is_boosted ? code >> 2 : code);
        if (is_boosted)
          plane::save(low, token * num_boosted(head_dim) + static_cast<int64_t>(rank), code & 3u);
      }
      if (is_boosted) {
        packed_codes<1>::save(map, channel, 1);
        ++rank;
      }
    }
  }

  template <class Storage>
  static void decode_page(const std::byte* in, int64_t in_page, int32_t head_dim, int64_t begin,
                          int64_t count, float* out) {
    const std::byte* map = in + 4 * head_dim;
    const std::byte* high = map + head_dim / 8;
    const std::byte* low = high + plane::bytes(in_page * head_dim);
    channel_scales scales(head_dim);
    std::vector<size_t> boosted;
    for (int32_t channel = 0; channel < head_dim; ++channel) {
      scales.set(channel, load_number<affine_params<Storage>>(in, channel));
      if (packed_codes<1>::load(map, channel) != 0) boosted.push_back(static_cast<size_t>(channel));
    }
    std::vector<uint8_t> row(static_cast<size_t>(head_dim));
    for (int64_t token = begin; token < begin + count; ++token, out += head_dim) {
      plane::unpack(high, token * head_dim, head_dim, row.data());
      int64_t next = token * num_boosted(head_dim);
      for (const size_t channel : boosted)
        row[channel] = static_cast<uint8_t>(row[channel] * 4u | plane::load(low, next++));
      scales.dequantize(row.data(), out);
    }
  }
};

}  // namespace zipcache

// Attention on CUDA against attention in double over the values that the cache holds, by the kernel
// that the policies get and by the general one.
//
// Tolerance: an output row's relative error, as vectors, is at most 2e-4 (scores of 24-bit queries
// and weights of 22 bits against sums in float leave far less on average, also where outlier
// channels make scores large) plus the rounding of the output to 16 bits. lse has the score's
// error: (d + 8) u S as in attention_check.hpp, plus w S where 16-bit keys meet the query as the
// sum of two 16-bit numbers (w = 2^-21 for half, 2^-16 for bfloat16).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include <zipcache/store/store.hpp>

#include "support/catch.hpp"
#include "support/device_cache.cuh"
#include "support/generators.hpp"
#include "support/poison.hpp"

namespace zipcache_test {

/// What is attended to: a prompt, then tokens that are appended and attended.
struct attention_case {
  int32_t head_dim = 64;
  int32_t group = 4;
  int64_t prompt = 300;
  int64_t decoded = 40;
  content keys = content::gaussian;
  float value_scale = 1.0f;
  bool has_sink = false;  ///< one key is 12 nats above all others
  int64_t recent_window = 0;
};

template <class Element>
token_data<Element> tokens_of(const attention_case& given, const zipcache::cache_shape& shape) {
  const int64_t n = given.prompt + given.decoded;
  token_data<Element> data(shape, n, 1);
  const auto fill = [&](tensor<Element>& x, content what, float scale, uint64_t seed) {
    const std::vector<float> values = make_values(what, x.heads, n, x.dim, seed);
    for (size_t i = 0; i < values.size(); ++i)
      x.values[i] = zipcache::from_float<Element>(values[i] * scale);
  };
  fill(data.q, content::gaussian, 1.0f, 7);
  fill(data.k, given.keys, 1.0f, 8);
  fill(data.v, content::gaussian, given.value_scale, 9);
  if (given.has_sink) {
    // All queries have the same first channel, and one key has nothing else.
    for (int32_t head = 0; head < shape.num_qo_heads; ++head) {
      for (int64_t token = 0; token < n; ++token)
        data.q.at(head, token, 0) = zipcache::from_float<Element>(4.0f);
    }
    for (int32_t head = 0; head < shape.num_kv_heads; ++head) {
      for (int64_t token = 0; token < n; ++token) data.k.at(head, token, 0) = Element{};
      for (int32_t channel = 0; channel < shape.head_dim; ++channel)
        data.k.at(head, 3, channel) = Element{};
      data.k.at(head, 3, 0) = zipcache::from_float<Element>(12.0f / (4.0f * shape.softmax_scale()));
    }
  }
  return data;
}

/// Whether attention sees each token of one head: those that were not evicted.
template <class Policies, class Element>
std::vector<bool> visible_on_device(const zipcache::device_layer<Policies, Element>& layer,
                                    int32_t sequence, int32_t head, int64_t length) {
  using zipcache::token_class;
  std::vector<bool> visible(static_cast<size_t>(length), true);
  const auto counts = fetch(layer.counts + sequence, 1)[0];
  const auto bitmap = fetch(layer.bitmap_of(sequence, head), layer.bitmap_words);
  int64_t position = counts.sinks;
  int64_t word = 0;
  for (int32_t index = 0; index < counts.segments; ++index) {
    const int64_t tokens =
        index == 0 && counts.prompt_tokens > 0 ? counts.prompt_tokens : layer.interval;
    for (int64_t token = 0; token < tokens; ++token) {
      const bool salient =
          (bitmap[static_cast<size_t>(word + token / 32)] >> (token % 32) & 1u) != 0;
      visible[static_cast<size_t>(position + token)] =
          !(salient ? Policies::template evicts<token_class::salient>
                    : Policies::template evicts<token_class::regular>);
    }
    position += tokens;
    word += zipcache::ceil_div<int64_t>(tokens, 32);
  }
  return visible;
}

/// Writes patterns into all that no token uses: codes and parameters of unused tokens of last
/// tiles, unused bytes of pages, unused slots of the window and of sinks.
template <class Policies, class Element>
class poisoner {
 public:
  poisoner(const zipcache::device_layer<Policies, Element>& layer, int32_t sequence, uint16_t bits)
      : layer_(layer), sequence_(sequence), bits_(bits) {
    const auto counts = fetch(layer.counts + sequence, 1)[0];
    for (int32_t head = 0; head < layer.num_kv_heads; ++head) {
      for (const zipcache::page_entry& entry : fetch(layer.table_of(sequence, head), counts.pages))
        poison_page(entry);
      poison_rows(layer.window_tile(sequence, head, 0), layer.window_tiles, counts.window_first,
                  counts.window);
      poison_rows(layer.sink_tile(sequence, head, 0), layer.sink_tiles, 0, counts.sinks);
    }
  }

 private:
  template <class T>
  static void put(T* to, const std::vector<T>& values) {
    zipcache::detail::check_cuda(
        "cudaMemcpy",
        cudaMemcpy(to, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
  }

  void poison_rows(Element* tiles, int32_t num_tiles, int32_t first, int32_t used) {
    if (num_tiles == 0) return;
    auto values = fetch(tiles, num_tiles * layer_.row_tile_elements());
    const int32_t slots = num_tiles * zipcache::tile_tokens;
    for (int32_t i = used; i < slots; ++i) {
      const int32_t slot = (first + i) % slots;
      Element* keys = values.data() + slot / 32 * layer_.row_tile_elements();
      for (int32_t channel = 0; channel < layer_.head_dim; ++channel) {
        zipcache::row_tile_element<zipcache::key_layout>(keys, layer_.head_dim, slot % 32,
                                                         channel) = Element{bits_};
        zipcache::row_tile_element<zipcache::value_layout>(
            keys + 32 * layer_.head_dim, layer_.head_dim, slot % 32, channel) = Element{bits_};
      }
    }
    put(tiles, values);
  }

  void poison_page(const zipcache::page_entry& entry) {
    using zipcache::token_class;
    const zipcache::tile_place page = layer_.page(entry.page);
    auto codes = fetch<std::byte>(page.codes, layer_.page_code_bytes);
    auto pairs = fetch<std::byte>(page.pairs, layer_.page_pair_bytes);
    zipcache::tile_place end{codes.data(), pairs.data()};
    end = poison_class<token_class::salient>(end, entry.salient_tokens);
    end = poison_class<token_class::regular>(end, entry.regular_tokens);
    const auto byte = static_cast<std::byte>(bits_ & 0xffu);
    std::fill(end.codes, codes.data() + codes.size(), byte);
    std::fill(end.pairs, pairs.data() + pairs.size(), byte);
    put(page.codes, codes);
    put(page.pairs, pairs);
  }

  template <zipcache::token_class Class>
  zipcache::tile_place poison_class(zipcache::tile_place at, int32_t tokens) const {
    using tile = zipcache::tile_record<Policies, Class>;
    const int32_t dim = layer_.head_dim;
    if (tile::bytes(dim) == 0) return at;
    const zipcache::tile_size size{tile::code_bytes(dim), tile::pair_bytes(dim)};
    for (; tokens > 0; tokens -= 32, at = at + size) {
      poison_side<typename tile::key_codes, typename tile::key_granularity, tile::key_bits>(
          at.codes, at.pairs, tokens);
      poison_side<typename tile::value_codes, typename tile::value_granularity, tile::value_bits>(
          at.codes + tile::value_codes_offset(dim), at.pairs + tile::value_pairs_offset(dim),
          tokens);
    }
    return at;
  }

  template <class Codes, class Granularity, int Bits>
  void poison_side(std::byte* codes, std::byte* pairs, int32_t tokens) const {
    if constexpr (Bits > 0) {
      for (int32_t token = tokens; token < zipcache::tile_tokens; ++token) {
        for (int32_t channel = 0; channel < layer_.head_dim; ++channel)
          Codes::save(reinterpret_cast<uint32_t*>(codes), layer_.head_dim, token, channel, bits_);
        if constexpr (Bits < 16 && Granularity::axis == zipcache::parameter_axis::token) {
          for (int32_t group = 0; group < zipcache::groups_per_token<Granularity>(layer_.head_dim);
               ++group)
            poison_token_pair<Granularity, Element>(pairs, token, group, bits_);
        }
      }
    }
  }

  const zipcache::device_layer<Policies, Element>& layer_;
  int32_t sequence_;
  uint16_t bits_;
};

/// A cache in device memory, and what attention over it gives.
template <class Element, class Policies>
class attention_run {
 public:
  explicit attention_run(const attention_case& given)
      : given_(given),
        shape_{.num_layers = 1,
               .num_qo_heads = 2 * given.group,
               .num_kv_heads = 2,
               .head_dim = given.head_dim},
        length_(given.prompt + given.decoded),
        data_(tokens_of<Element>(given, shape_)),
        on_device_(data_),
        cache_(shape_, {.max_sequences = 2, .max_tokens = length_}, options_of(given)),
        sequence_(make_sequence()) {
    prefill(cache_, sequence_, on_device_, given.prompt);
    decode(cache_, sequence_, on_device_, given.prompt, length_);
    cache_.check();
  }

  void check() {
    INFO(Policies::name() << ": " << given_.prompt << " + " << given_.decoded << " tokens of "
                          << given_.head_dim << " channels, group " << given_.group << ", "
                          << name_of(given_.keys) << ", values by " << given_.value_scale);
    const int64_t window = length_ - cache_.sealed_length(sequence_);
    std::vector<outputs<Element>> before;
    for (const int64_t hidden : {int64_t{0}, int64_t{1}, window - 1}) {
      if (hidden < 0 || (hidden > 0 && hidden >= window)) continue;
      INFO(hidden << " hidden tokens");
      before.push_back(attend<false>(hidden));
      check_row(before.back(), hidden);
      check_row(attend<true>(hidden), hidden);
      for (int repetition = 0; repetition < 2; ++repetition) {
        const bool repeated = attend<false>(hidden) == before.back();
        REQUIRE(repeated);
      }
    }
    for (const uint16_t bits : {uint16_t{0x7fff}, uint16_t{0xffff}}) {
      poisoner<Policies, Element>(cache_.layer(0), static_cast<int32_t>(sequence_.index), bits);
      size_t next = 0;
      for (const int64_t hidden : {int64_t{0}, int64_t{1}, window - 1}) {
        if (hidden < 0 || (hidden > 0 && hidden >= window)) continue;
        const bool same = attend<false>(hidden) == before[next++];
        REQUIRE(same);
        check_row(attend<true>(hidden), hidden);
      }
    }
  }

 private:
  static zipcache::cache_options options_of(const attention_case& given) {
    zipcache::cache_options options;
    if (given.recent_window > 0) options.recent_window = given.recent_window;
    return options;
  }
  zipcache::sequence_id make_sequence() {
    cache_.create();  // so that the sequence is not the first one
    return cache_.create();
  }

  /// Attention of the last token but `hidden`, in the middle of a batch of three.
  template <bool General>
  outputs<Element> attend(int64_t hidden) {
    const auto& layer = cache_.layer(0);
    const int64_t row = int64_t{shape_.num_qo_heads} * shape_.head_dim;
    const auto index = static_cast<int32_t>(sequence_.index);
    const auto sequences = upload(std::vector<int32_t>{index, index, 0});
    const auto hidden_tokens = upload(std::vector<int32_t>{0, static_cast<int32_t>(hidden), 0});
    std::vector<Element> queries;
    const auto rows = fetch(on_device_.q_row(length_ - 1 - hidden), row);
    for (int i = 0; i < 3; ++i) queries.insert(queries.end(), rows.begin(), rows.end());
    const auto q = upload(queries);
    auto out = poisoned<Element>(static_cast<size_t>(3 * row));
    auto lse = poisoned<float>(static_cast<size_t>(3 * shape_.num_qo_heads));
    const size_t bytes = zipcache::attend_workspace_bytes(layer, 3);
    device_array<std::byte> workspace(bytes);
    zipcache::detail::check_cuda("cudaMemset", cudaMemset(workspace.data(), 0, bytes));
    zipcache::attend_batch<Element> batch;
    batch.num_items = 3;
    batch.sequences = sequences.data();
    batch.hidden = hidden_tokens.data();
    batch.q = q.data();
    batch.out = out.data();
    batch.lse = lse.data();
    zipcache::attend<General>(cache_.backend(), layer, batch, workspace.data(), bytes);
    const auto all_out = download(out);
    const auto all_lse = download(lse);
    return outputs_of<Element>(
        shape_, 1, {all_out.begin() + row, all_out.begin() + 2 * row},
        {all_lse.begin() + shape_.num_qo_heads, all_lse.begin() + 2 * shape_.num_qo_heads});
  }

  void check_row(const outputs<Element>& got, int64_t hidden) {
    if (values_.empty()) dequantize();
    const int64_t visible = length_ - hidden;
    constexpr double split = rounding_unit<Element>() == 0x1p-11 ? 0x1p-21 : 0x1p-16;
    const double scale = static_cast<double>(shape_.softmax_scale());
    for (int32_t head = 0; head < shape_.num_qo_heads; ++head) {
      const int32_t kv_head = head / shape_.group();
      const exact_row exact = exact_attention(
          &data_.q.at(head, length_ - 1 - hidden, 0), values_[0], values_[1], kv_head, visible,
          scale, [&](int64_t token) {
            return visible_[static_cast<size_t>(kv_head)][static_cast<size_t>(token)];
          });
      double error = 0.0, norm = 0.0;
      for (int32_t channel = 0; channel < shape_.head_dim; ++channel) {
        const double wanted = exact.out[static_cast<size_t>(channel)];
        const double off =
            static_cast<double>(zipcache::to_float(got.out.at(head, 0, channel))) - wanted;
        error += off * off;
        norm += wanted * wanted;
      }
      INFO("head " << head << ": error " << std::sqrt(error) << " of " << std::sqrt(norm));
      // Numbers of type half below 2^-14 are 2^-24 apart.
      const double tiny = 0x1p-25 * std::sqrt(static_cast<double>(shape_.head_dim));
      REQUIRE(std::sqrt(error) <= (2e-4 + rounding_unit<Element>()) * std::sqrt(norm) + tiny);
      const double s = exact.score_error / ((shape_.head_dim + 8) * 0x1p-24);
      const double lse = static_cast<double>(got.lse[static_cast<size_t>(head)]);
      REQUIRE(std::fabs(lse - exact.lse) <= exact.lse_error() + split * s);
    }
  }

  void dequantize() {
    const auto& layer = cache_.layer(0);
    const auto size = static_cast<size_t>(2 * length_ * shape_.head_dim);
    auto k = poisoned<float>(size);
    auto v = poisoned<float>(size);
    cache_.dequantize(sequence_, 0, zipcache::hnd(k.data(), 2, length_, shape_.head_dim),
                      zipcache::hnd(v.data(), 2, length_, shape_.head_dim));
    for (const auto* x : {&k, &v}) {
      values_.emplace_back(2, length_, shape_.head_dim);
      values_.back().values = download(*x);
    }
    for (int32_t head = 0; head < 2; ++head)
      visible_.push_back(
          visible_on_device(layer, static_cast<int32_t>(sequence_.index), head, length_));
  }

  attention_case given_;
  zipcache::cache_shape shape_;
  int64_t length_;
  token_data<Element> data_;
  device_tokens<Element> on_device_;
  device_cache<Element, Policies> cache_;
  zipcache::sequence_id sequence_;
  std::vector<tensor<float>> values_;  ///< keys, values
  std::vector<std::vector<bool>> visible_;
};

template <class Element, class Policies>
void check_device_attention(const attention_case& given) {
  attention_run<Element, Policies>(given).check();
}

/// One axis at a time around a common case.
template <class Element, class Policies>
void check_axes(int32_t head_dim) {
  const auto check = check_device_attention<Element, Policies>;
  for (const int32_t group : {1, 2, 3, 4, 5, 6, 7, 8, 12, 16})
    check({.head_dim = head_dim, .group = group});
  for (const int64_t prompt : {1, 31, 32, 33, 161, 1500})
    check({.head_dim = head_dim, .prompt = prompt, .decoded = 3});
  for (const int64_t decoded : {1, 32, 33, 161, 330})
    check({.head_dim = head_dim, .decoded = decoded});
  check({.head_dim = head_dim, .has_sink = true});
  check({.head_dim = head_dim, .keys = content::outlier_channels});
  for (const float scale : {1e-4f, 3e2f}) check({.head_dim = head_dim, .value_scale = scale});
  check({.head_dim = head_dim, .prompt = 100, .decoded = 330, .recent_window = 32});
}

}  // namespace zipcache_test

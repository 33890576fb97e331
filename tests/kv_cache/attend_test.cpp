// Attention over the whole cache against attention in double precision over what it holds.
#include <algorithm>

#include "support/cache_runs.hpp"
#include "support/catch.hpp"

namespace {

using namespace zipcache_test;
using zipcache::half;
using zipcache::sequence_id;
namespace presets = zipcache::presets;

/// Whether attention of the last `count` tokens gives what double precision gives over the tokens
/// that the cache holds.
template <class Cache>
bool attends_right(Cache& cache, sequence_id sequence, int32_t layer,
                   zipcache::tensor_view<const element_of<Cache>> q,
                   const outputs<element_of<Cache>>& given) {
  using element = element_of<Cache>;
  const zipcache::cache_shape& shape = cache.shape();
  const int64_t length = cache.length(sequence, layer);
  const auto held = dequantize_layer(cache, sequence, layer);
  const auto visible = visible_tokens(cache, sequence, layer);
  const double scale = 1.0 / std::sqrt(static_cast<double>(shape.head_dim));
  const int32_t group = shape.num_qo_heads / shape.num_kv_heads;
  for (int32_t head = 0; head < shape.num_qo_heads; ++head) {
    for (int64_t token = 0; token < q.num_tokens; ++token) {
      const int32_t kv_head = head / group;
      const exact_row exact = exact_attention(
          q.row(head, token), held.k, held.v, kv_head, length - q.num_tokens + token + 1, scale,
          [&](int64_t i) { return visible[static_cast<size_t>(kv_head)][static_cast<size_t>(i)]; });
      for (int32_t channel = 0; channel < shape.head_dim; ++channel) {
        const double wanted = exact.out[static_cast<size_t>(channel)];
        const double bound = exact.out_error() +
                             rounding_unit<element>() * (std::fabs(wanted) + exact.out_error()) +
                             0x1.0p-24;
        const double got = zipcache::to_float(given.out.at(head, token, channel));
        if (!(std::fabs(got - wanted) <= bound)) {
          UNSCOPED_INFO("head " << head << ", token " << token << ", channel " << channel << ": "
                                << got << ", exact " << wanted << " +- " << bound);
          return false;
        }
      }
      const double lse = given.lse[static_cast<size_t>(token * shape.num_qo_heads + head)];
      if (!(std::fabs(lse - exact.lse) <= exact.lse_error())) {
        UNSCOPED_INFO("head " << head << ", token " << token << ": lse " << lse << ", exact "
                              << exact.lse << " +- " << exact.lse_error());
        return false;
      }
    }
  }
  return true;
}

TEMPLATE_LIST_TEST_CASE(
    "kv_cache: attention over segments, window and sinks is that of the values they hold",
    "[kv_cache][attend]", cache_axes) {
  using cache = typename TestType::cache;
  using policies = typename TestType::policies;
  using element = typename TestType::element;
  for (const int32_t group : {1, 3, 4}) {
    auto shape = shape_for<policies>();
    shape.num_qo_heads = group * shape.num_kv_heads;
    const token_data<element> data(shape, 240, 31);
    for (const int64_t prompt : {0, 1, 2, 31, 32, 33, 159, 160, 161}) {
      auto options = options_for<policies>(shape);
      options.recompress_interval = group == 3 ? 32 : 33;
      cache subject(shape, options);
      const auto sequence = subject.create();
      if (prompt > 0) prefill(subject, sequence, data, prompt);
      int64_t next = prompt;
      for (const int64_t count : {1, 2, 5, 3, 4, 18, 1, 30, 1}) {
        for (int32_t layer = 0; layer < shape.num_layers; ++layer) {
          outputs<element> given(shape, count);
          subject.append_and_attend(sequence, layer, data.q.part(next, count),
                                    data.k.part(next, count), data.v.part(next, count),
                                    given.out.view(), given.lse);
          if (count > 5) continue;  // may have been flushed in between
          const int64_t seen = std::min(
              count, subject.length(sequence, layer) - subject.sealed_length(sequence, layer));
          outputs<element> again(shape, seen);
          const auto q = data.q.part(next + count - seen, seen);
          subject.attend(sequence, layer, q, again.out.view(), again.lse);
          INFO("group " << group << ", prompt " << prompt << ", tokens " << next + count
                        << ", layer " << layer);
          CHECK(attends_right(subject, sequence, layer, q, again));
        }
        next += count;
      }
    }
  }
}

TEST_CASE("kv_cache: pinned sinks and the recent window take part in attention",
          "[kv_cache][attend]") {
  using policies = presets::paper::with<zipcache::sink_tokens<4>>;
  using cache = zipcache::kv_cache<half, policies>;
  const token_data<half> data(small_shape, 240, 32);
  for (const int64_t prompt : {1, 3, 4, 5, 36, 37, 100}) {
    cache subject(small_shape, {.recompress_interval = 32, .recent_window = 16});
    const auto sequence = subject.create();
    prefill(subject, sequence, data, prompt);
    for (int64_t token = prompt; token < prompt + 110; ++token) {
      const auto given = decode(subject, sequence, data, token, token + 1);
      if (token % 7 != 0 && token != prompt) continue;
      INFO("prompt " << prompt << ", token " << token);
      CHECK(attends_right(subject, sequence, 0, data.q.part(token, 1), given));
    }
  }
}

TEST_CASE("kv_cache: a ragged batch attends like double precision, with lse and without",
          "[kv_cache][attend]") {
  using cache = zipcache::kv_cache<half, presets::paper>;
  cache subject(small_shape);
  std::vector<sequence_id> sequences;
  const std::vector<int64_t> lengths{3, 0, 1, 5};
  const std::vector<int64_t> prompts{10, 33, 200, 159};
  std::vector<token_data<half>> data;
  tensor<half> q(small_shape.num_qo_heads, 9, small_shape.head_dim);
  int64_t at = 0;
  for (size_t i = 0; i < lengths.size(); ++i) {
    data.emplace_back(small_shape, 260, 40 + i);
    sequences.push_back(subject.create());
    prefill(subject, sequences[i], data[i], prompts[i]);
    decode(subject, sequences[i], data[i], prompts[i], prompts[i] + 20);
    for (int64_t token = 0; token < lengths[i]; ++token, ++at)
      for (int32_t head = 0; head < small_shape.num_qo_heads; ++head)
        std::copy_n(&data[i].q.at(head, prompts[i] + token, 0), small_shape.head_dim,
                    &q.at(head, at, 0));
  }
  outputs<half> all(small_shape, 9);
  subject.attend(sequences, 0, q.view(), all.out.view(), all.lse, lengths);
  outputs<half> without(small_shape, 9);
  subject.attend(sequences, 0, q.view(), without.out.view(), {}, lengths);
  CHECK(same_bits(all.out.values, without.out.values));
  at = 0;
  for (size_t i = 0; i < lengths.size(); ++i) {
    outputs<half> part(small_shape, lengths[i]);
    for (int64_t token = 0; token < lengths[i]; ++token) {
      for (int32_t head = 0; head < small_shape.num_qo_heads; ++head) {
        std::copy_n(&all.out.at(head, at + token, 0), small_shape.head_dim,
                    &part.out.at(head, token, 0));
        part.lse[static_cast<size_t>(token * small_shape.num_qo_heads + head)] =
            all.lse[static_cast<size_t>((at + token) * small_shape.num_qo_heads + head)];
      }
    }
    const zipcache::tensor_view<const half> rows = std::as_const(q).part(at, lengths[i]);
    CHECK(attends_right(subject, sequences[i], 0, rows, part));
    at += lengths[i];
  }
}

TEMPLATE_TEST_CASE("kv_cache: uncompressed tokens are the inputs in 16 bits", "[kv_cache][attend]",
                   float, half, zipcache::bfloat16) {
  using cache = zipcache::kv_cache<TestType, presets::uncompressed>;
  using storage = typename cache::storage;
  const token_data<TestType> data(small_shape, 150, 33);
  cache subject(small_shape);
  const auto sequence = subject.create();
  prefill(subject, sequence, data, 70);
  const auto given = decode(subject, sequence, data, 70, 150);
  const auto held = dequantize_layer(subject, sequence, 0);
  REQUIRE(subject.sealed_length(sequence) == 134);
  bool exact = true;
  const auto rounded = [](TestType x) {
    return zipcache::to_float(zipcache::from_float<storage>(zipcache::to_float(x)));
  };
  for (size_t i = 0; i < held.k.values.size(); ++i) {
    exact = exact && held.k.values[i] == rounded(data.k.values[i]) &&
            held.v.values[i] == rounded(data.v.values[i]);
  }
  CHECK(exact);
  outputs<TestType> last(small_shape, 1);
  subject.attend(sequence, 0, data.q.part(149, 1), last.out.view(), last.lse);
  CHECK(attends_right(subject, sequence, 0, data.q.part(149, 1), last));
  CHECK(zipcache::to_float(last.out.values[0]) == zipcache::to_float(given.out.at(0, 79, 0)));
}

TEST_CASE("kv_cache: the softmax scale of the shape is used", "[kv_cache][attend]") {
  using cache = zipcache::kv_cache<float, presets::paper>;
  auto shape = small_shape;
  const token_data<float> data(shape, 120, 34);
  token_data<float> scaled = data;
  for (float& x : scaled.q.values) x *= 2.0f;
  cache plain(shape);
  shape.sm_scale = 2.0f * shape.softmax_scale();
  cache doubled(shape);
  const auto a = plain.create();
  const auto b = doubled.create();
  prefill(plain, a, scaled, 100);
  prefill(doubled, b, data, 100);
  CHECK((decode(plain, a, scaled, 100, 120) == decode(doubled, b, data, 100, 120)));
}

TEST_CASE("kv_cache: a query that is not finite spoils no other head and no other sequence",
          "[kv_cache][attend]") {
  using cache = zipcache::kv_cache<half, presets::paper>;
  const token_data<half> data(small_shape, 400, 35);
  token_data<half> bad = data;
  for (int64_t token = 100; token < 400; ++token)
    bad.q.at(0, token, 5) = zipcache::from_float<half>(NAN);
  cache subject(small_shape);
  const auto good_one = subject.create();
  const auto bad_one = subject.create();
  const auto beside = subject.create();
  for (const auto sequence : {good_one, bad_one, beside}) prefill(subject, sequence, data, 100);
  const auto expected = decode(subject, good_one, data, 100, 400);
  const auto spoiled = decode(subject, bad_one, bad, 100, 400);
  const auto given = decode(subject, beside, data, 100, 400);
  CHECK((given == expected));
  // Heads 2 and 3 have the other KV head.
  for (int32_t head = 2; head < 4; ++head) {
    bool same = true;
    for (int64_t token = 0; token < 300; ++token)
      for (int32_t channel = 0; channel < small_shape.head_dim; ++channel)
        same = same && spoiled.out.at(head, token, channel).bits ==
                           expected.out.at(head, token, channel).bits;
    CHECK(same);
  }
}

}  // namespace

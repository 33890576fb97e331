// A sequence as it grows: when tokens are sealed, and that sealed ones never change.
#include <algorithm>
#include <cmath>

#include "support/cache_runs.hpp"
#include "support/catch.hpp"

namespace {

using namespace zipcache_test;
using zipcache::half;
namespace presets = zipcache::presets;

constexpr zipcache::cache_shape tiny_shape{
    .num_layers = 1, .num_qo_heads = 2, .num_kv_heads = 1, .head_dim = 16};

/// Appends tokens without attending, for policies that need no probes.
template <class Cache>
void append_token(Cache& cache, zipcache::sequence_id sequence,
                  const token_data<element_of<Cache>>& data, int64_t token) {
  const int64_t wrapped = token % data.size();
  cache.append(sequence, 0, data.k.part(wrapped, 1), data.v.part(wrapped, 1));
}

TEST_CASE("stream: in 10,000 decode steps what is sealed never changes and the ratio stays",
          "[stream]") {
  using cache = zipcache::kv_cache<half, presets::paper>;
  constexpr int64_t steps = 10000;
  constexpr int64_t prompt = 400;
  constexpr int64_t interval = 160;
  auto shape = tiny_shape;
  shape.num_kv_heads = 2;
  const token_data<half> data(shape, steps + prompt, 51);
  cache subject(shape);
  const auto sequence = subject.create();
  prefill(subject, sequence, data, prompt);
  std::vector<std::string> sealed;
  std::vector<zipcache::footprint> after_flush;
  generator random(52);
  int64_t next = prompt;
  const auto check_sealed = [&] {
    const auto segments = subject.inspect(sequence, 0)->segments();
    for (size_t i = 0; i < segments.size(); ++i) {
      const std::string bytes = segment_bytes(*segments[i]);
      if (i == sealed.size()) sealed.push_back(bytes);
      REQUIRE((bytes == sealed[i]));
    }
    REQUIRE(segments.size() == sealed.size());
  };
  while (next < prompt + steps) {
    // One token at a time around every flush, longer pieces in between.
    const int64_t in_window = (next - prompt) % interval;
    int64_t count = 1;
    if (in_window > 2 && in_window < interval - 40) count = 1 + random.below(38);
    count = std::min(count, prompt + steps - next);
    decode_at_once(subject, sequence, data, next, next + count);
    next += count;
    const int64_t window = subject.length(sequence) - subject.sealed_length(sequence);
    REQUIRE(subject.length(sequence) == next);
    REQUIRE(window <= interval);
    REQUIRE(window == (next - prompt - 1) % interval + 1);
    if (window != 1) continue;
    after_flush.push_back(subject.footprint());
    if ((next / interval) % 8 == 0) check_sealed();
  }
  check_sealed();
  REQUIRE(sealed.size() == 1 + (steps - 1) / interval);
  // Every interval adds the same bytes, so the ratio of what is added never changes. (The table
  // bytes hold the queries of a probe if the window's first token happens to be one.)
  REQUIRE(after_flush.size() == sealed.size());
  bool stable = true;
  for (size_t i = 2; i < after_flush.size(); ++i) {
    const auto added = [&](size_t at) {
      return after_flush[at].total_bytes() - after_flush[at].table_bytes -
             (after_flush[at - 1].total_bytes() - after_flush[at - 1].table_bytes);
    };
    stable = stable && added(i) == added(1);
    stable = stable && after_flush[i].window_bytes == after_flush[1].window_bytes;
  }
  CHECK(stable);
}

TEST_CASE("stream: a flush comes with the first token that a full window has no room for",
          "[stream]") {
  const token_data<half> data(tiny_shape, 700, 53);
  for (const int64_t interval : {1, 31, 32, 33, 100, 160}) {
    for (const int64_t recent : {0, 1, 32, 45}) {
      for (const int64_t prompt : {0, 1, 2, 31, 32, 33, 159, 160, 161}) {
        using cache = zipcache::kv_cache<half, presets::uniform_4bit>;
        cache subject(tiny_shape, {.recompress_interval = interval, .recent_window = recent});
        const auto sequence = subject.create();
        if (prompt > 0) prefill(subject, sequence, data, prompt);
        int64_t sealed = std::max<int64_t>(0, prompt - recent);
        bool right = subject.sealed_length(sequence) == sealed;
        for (int64_t token = prompt; token < prompt + 2 * interval + recent + 3; ++token) {
          const bool full = token - sealed == interval + recent;
          right = right && subject.append_room(sequence) ==
                               (full ? interval : interval + recent - (token - sealed));
          if (full) sealed += interval;
          append_token(subject, sequence, data, token);
          right = right && subject.sealed_length(sequence) == sealed &&
                  subject.length(sequence) == token + 1;
        }
        INFO("interval " << interval << ", recent " << recent << ", prompt " << prompt);
        CHECK(right);
        // Segments lie side by side and end where the window begins.
        int64_t end = 0;
        for (const auto& segment : subject.inspect(sequence, 0)->segments()) {
          right = right && segment->first_position == end;
          end += segment->shape.num_tokens;
        }
        CHECK((right && end == sealed));
      }
    }
  }
}

TEST_CASE("stream: the same with probes, whose queries are attended in time", "[stream]") {
  const token_data<half> data(tiny_shape, 700, 54);
  for (const int64_t interval : {1, 31, 32, 33, 100, 160}) {
    for (const int64_t recent : {0, 32}) {
      for (const int64_t prompt : {1, 33, 160}) {
        using cache = zipcache::kv_cache<half, presets::paper>;
        cache subject(tiny_shape, {.recompress_interval = interval, .recent_window = recent});
        const auto sequence = subject.create();
        prefill(subject, sequence, data, prompt);
        int64_t sealed = std::max<int64_t>(0, prompt - recent);
        bool right = true;
        for (int64_t token = prompt; token < prompt + 2 * interval + recent + 3; ++token) {
          if (token - sealed == interval + recent) sealed += interval;
          decode(subject, sequence, data, token, token + 1);
          right = right && subject.sealed_length(sequence) == sealed;
        }
        INFO("interval " << interval << ", recent " << recent << ", prompt " << prompt);
        CHECK(right);
      }
    }
  }
}

TEST_CASE("stream: KIVI seals whole blocks behind its window, also of the prompt", "[stream]") {
  using cache = zipcache::kv_cache<half, presets::kivi_2bit>;
  auto shape = tiny_shape;
  shape.head_dim = 32;
  const token_data<half> data(shape, 700, 55);
  for (const int64_t prompt : {1, 31, 127, 128, 159, 160, 161, 192, 300}) {
    cache subject(shape);
    const auto sequence = subject.create();
    prefill(subject, sequence, data, prompt);
    int64_t sealed = std::max<int64_t>(0, prompt - 128) / 32 * 32;
    bool right = subject.sealed_length(sequence) == sealed;
    for (int64_t token = prompt; token < prompt + 200; ++token) {
      if (token - sealed == 160) sealed += 32;
      append_token(subject, sequence, data, token);
      right = right && subject.sealed_length(sequence) == sealed;
    }
    INFO("prompt " << prompt);
    CHECK(right);
    for (const auto& segment : subject.inspect(sequence, 0)->segments())
      CHECK(segment->shape.num_tokens % 32 == 0);
    // The newest 128 tokens are exact.
    const auto held = dequantize_layer(subject, sequence, 0);
    bool exact = true;
    for (int64_t token = std::max(sealed, held.k.tokens - 128); token < held.k.tokens; ++token)
      for (int32_t channel = 0; channel < shape.head_dim; ++channel)
        exact = exact &&
                held.k.at(0, token, channel) == zipcache::to_float(data.k.at(0, token, channel));
    CHECK(exact);
  }
}

TEST_CASE("stream: pinned sinks stay exact for ever and are in no segment", "[stream]") {
  using policies = presets::paper::with<zipcache::sink_tokens<4>>;
  using cache = zipcache::kv_cache<half, policies>;
  const token_data<half> data(tiny_shape, 400, 56);
  for (const int64_t interval : {1, 3, 32}) {
    for (const int64_t prompt : {0, 1, 2, 3, 4, 5, 40}) {
      cache subject(tiny_shape, {.recompress_interval = interval});
      const auto sequence = subject.create();
      if (prompt > 0) prefill(subject, sequence, data, prompt);
      decode_at_once(subject, sequence, data, prompt, prompt + 100);
      const auto segments = subject.inspect(sequence, 0)->segments();
      int64_t end = 4;
      for (const auto& segment : segments) {
        CHECK(segment->first_position == end);
        CHECK(segment->shape.num_tokens > 0);
        end += segment->shape.num_tokens;
      }
      INFO("interval " << interval << ", prompt " << prompt);
      CHECK(end == subject.sealed_length(sequence));
      const auto held = dequantize_layer(subject, sequence, 0);
      bool exact = true;
      for (int64_t token = 0; token < 4; ++token)
        for (int32_t channel = 0; channel < 16; ++channel)
          exact =
              exact &&
              held.k.at(0, token, channel) == zipcache::to_float(data.k.at(0, token, channel)) &&
              held.v.at(0, token, channel) == zipcache::to_float(data.v.at(0, token, channel));
      CHECK(exact);
    }
  }
}

TEST_CASE("stream: tokens come back in their order, whatever their class", "[stream]") {
  // A key and value that says its position: 4 bits keep neighbours apart in the mean of channels.
  using cache = zipcache::kv_cache<float, presets::paper>;
  token_data<float> data(tiny_shape, 500, 57);
  for (int64_t token = 0; token < 500; ++token)
    for (int32_t channel = 0; channel < 16; ++channel)
      data.k.at(0, token, channel) = data.v.at(0, token, channel) = static_cast<float>(token);
  cache subject(tiny_shape);
  const auto sequence = subject.create();
  prefill(subject, sequence, data, 161);
  decode_at_once(subject, sequence, data, 161, 500);
  const auto held = dequantize_layer(subject, sequence, 0);
  // Keys by channel: a 2-bit class spans at most 161 tokens of the prompt or 160 of an interval in
  // 3 steps, so a key is wrong by at most half a step of 161 / 3, and by 2^-10 of its magnitude
  // where step and min were rounded to 16 bits (the step's error counts 3 times).
  bool right = true;
  for (int64_t token = 0; token < 500; ++token) {
    const double bound = 0.5 * 161.0 / 3.0 + 500.0 * 4.0 * 0x1.0p-11;
    right = right && std::fabs(held.k.at(0, token, 3) - static_cast<double>(token)) <= bound;
  }
  CHECK(right);
  // Values by token: all channels of a token are equal, so the last code stands for them, and is
  // wrong by the rounding of a step of 8 bits, 1 / 16, and of c and x / c in 16 bits.
  for (int64_t token = 0; token < 500; ++token)
    right = right && std::fabs(held.v.at(0, token, 3) - static_cast<double>(token)) <=
                         static_cast<double>(token) / 16 + 500.0 * 3.0 * 0x1.0p-11;
  CHECK(right);
}

}  // namespace

TEST_CASE("stream: outlier tokens are those with the shortest keys, and stay as they came",
          "[stream]") {
  using policies = zipcache::presets::ott::with<zipcache::outlier_tokens<2, 5>>;
  constexpr int64_t prompt = 100;
  token_data<half> data(small_shape, 260, 71);
  // Keys that are far shorter than the others: four of them in the prompt.
  const std::vector<int64_t> short_keys{7, 40, 41, 90, 131, 150, 170, 200};
  for (const int64_t token : short_keys) {
    for (int32_t head = 0; head < small_shape.num_kv_heads; ++head) {
      half* key = &data.k.at(head, token, 0);
      for (int32_t channel = 0; channel < small_shape.head_dim; ++channel)
        key[channel] = zipcache::from_float<half>(0.001f * static_cast<float>(token) *
                                                  zipcache::to_float(key[channel]) / 260.0f);
    }
  }
  zipcache::kv_cache<half, policies> subject(small_shape,
                                             {.recompress_interval = 32, .recent_window = 4});
  const auto sequence = subject.create();
  prefill(subject, sequence, data, prompt);  // seals 96 = 3 intervals: 6 wanted, room for 5
  const auto* state = subject.inspect<policies>(sequence, 0);
  REQUIRE(state->sinks().size() == 5);
  decode(subject, sequence, data, prompt, 260);
  CHECK(subject.inspect<policies>(sequence, 0)->sinks().size() == 5);  // there is no more room
  const auto held = dequantize_layer(subject, sequence, 0);
  for (const int64_t token : {7, 40, 41, 90}) {
    for (int32_t head = 0; head < small_shape.num_kv_heads; ++head) {
      for (int32_t channel = 0; channel < small_shape.head_dim; ++channel) {
        CHECK(held.k.at(head, token, channel) ==
              zipcache::to_float(data.k.at(head, token, channel)));
        CHECK(held.v.at(head, token, channel) ==
              zipcache::to_float(data.v.at(head, token, channel)));
      }
    }
  }
  // The others are in their places: 2-bit values err by no more than half a step, a sixth of their
  // token's range, and by its rounding.
  for (int64_t token = 0; token < 252; ++token) {
    float lowest = INFINITY;
    float highest = -INFINITY;
    for (int32_t channel = 0; channel < small_shape.head_dim; ++channel) {
      lowest = std::min(lowest, zipcache::to_float(data.v.at(1, token, channel)));
      highest = std::max(highest, zipcache::to_float(data.v.at(1, token, channel)));
    }
    for (int32_t channel = 0; channel < small_shape.head_dim; ++channel)
      CHECK(std::fabs(held.v.at(1, token, channel) -
                      zipcache::to_float(data.v.at(1, token, channel))) <=
            1.01f * (highest - lowest) / 6);
  }
}

TEST_CASE("stream: segments say whether they are a prompt's or came out of the window",
          "[stream]") {
  using zipcache::segment_origin;
  zipcache::kv_cache<half, zipcache::presets::gear> subject(
      small_shape, {.recompress_interval = 32, .recent_window = 0});
  const token_data<half> data(small_shape, 150, 12);
  const auto sequence = subject.create();
  prefill(subject, sequence, data, 70);  // 64 tokens in a segment, 6 in the window
  decode(subject, sequence, data, 70, 140);
  const auto segments = subject.inspect(sequence, 0)->segments();
  REQUIRE(segments.size() == 3);
  using codec = zipcache::presets::gear::key_quantizer_policy::granularity;
  CHECK(segments[0]->shape.origin == segment_origin::prompt);
  for (const size_t i : {1, 2}) {
    CHECK(segments[i]->shape.origin == segment_origin::streamed);
    // Rank 2 instead of 4: 2 * 2 bytes less for each of 32 tokens and 32 channels.
    CHECK(codec::size({32, 32}).bytes() - codec::size(segments[i]->shape.block()).bytes() ==
          2 * 2 * 64);
  }
}

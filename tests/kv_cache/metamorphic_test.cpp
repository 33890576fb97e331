// Different ways to bring the same tokens must give the same bytes and the same outputs.
#include <algorithm>
#include <numeric>

#include "support/cache_runs.hpp"
#include "support/catch.hpp"

namespace {

using namespace zipcache_test;
using zipcache::cache_options;
using zipcache::half;
using zipcache::sequence_id;
namespace presets = zipcache::presets;

TEMPLATE_LIST_TEST_CASE("kv_cache: a prompt in chunks is the prompt in one call, byte for byte",
                        "[kv_cache]", cache_axes) {
  using cache = typename TestType::cache;
  using policies = typename TestType::policies;
  const auto shape = shape_for<policies>();
  const token_data<typename TestType::element> data(shape, 420, 1);

  // Short prompts: every set of cuts.
  for (const int64_t length : {1, 2, 5}) {
    cache whole(shape, options_for<policies>(shape));
    const auto reference = whole.create();
    prefill(whole, reference, data, length);
    const std::string expected = behaviour(whole, reference, data, 3);
    for (int64_t mask = 0; mask < int64_t{1} << (length - 1); ++mask) {
      std::vector<int64_t> cuts;
      for (int64_t cut = 1; cut < length; ++cut)
        if ((mask >> (cut - 1) & 1) != 0) cuts.push_back(cut);
      const auto sequence = whole.create();
      prefill_in_chunks(whole, sequence, data, length, cuts);
      CHECK((behaviour(whole, sequence, data, 3) == expected));
      whole.release(sequence);
    }
  }

  // Long ones: random cuts, a cut in front, one behind, and empty chunks.
  generator random(11);
  for (const int64_t length : {33, 160, 161, 237}) {
    cache whole(shape, options_for<policies>(shape));
    const auto reference = whole.create();
    prefill(whole, reference, data, length);
    const std::string expected = behaviour(whole, reference, data, 5);
    for (int trial = 0; trial < 4; ++trial) {
      std::vector<int64_t> cuts;
      const int64_t num_cuts = 1 + random.below(6);
      for (int64_t i = 0; i < num_cuts; ++i) cuts.push_back(random.below(length));
      if (trial == 3) cuts = {0, 1, 1, length - 1};
      std::sort(cuts.begin(), cuts.end());
      const auto sequence = whole.create();
      prefill_in_chunks(whole, sequence, data, length, cuts);
      CHECK((behaviour(whole, sequence, data, 5) == expected));
      whole.release(sequence);
    }
  }
}

TEST_CASE("kv_cache: chunks with their log-sum-exp are the prompt in one call with it",
          "[kv_cache]") {
  using cache = zipcache::kv_cache<half, presets::paper>;
  constexpr int64_t length = 197;
  const token_data<half> data(small_shape, length + 5, 2);
  // Any numbers near the true log-sum-exp do: both runs must use the same ones.
  std::vector<float> lse(static_cast<size_t>(length * small_shape.num_qo_heads));
  generator random(3);
  for (float& x : lse) x = static_cast<float>(6.0 + random.normal());
  const auto heads = static_cast<size_t>(small_shape.num_qo_heads);

  cache subject(small_shape);
  const auto whole = subject.create();
  subject.prefill(whole, 0, data.q.part(0, length), data.k.part(0, length), data.v.part(0, length),
                  {.lse = lse});
  const auto chunked = subject.create();
  int64_t first = 0;
  for (const int64_t end : {int64_t{40}, int64_t{41}, int64_t{190}, length}) {
    subject.prefill(chunked, 0, data.q.part(first, end - first), data.k.part(first, end - first),
                    data.v.part(first, end - first),
                    {.prompt_len = length,
                     .lse = std::span(lse).subspan(static_cast<size_t>(first) * heads,
                                                   static_cast<size_t>(end - first) * heads)});
    first = end;
  }
  CHECK((snapshot(subject, chunked) == snapshot(subject, whole)));
  // The given numbers were used: without them the scores, and so the selection, are others.
  const auto without = subject.create();
  prefill(subject, without, data, length);
  CHECK((snapshot(subject, without) != snapshot(subject, whole)));
}

TEMPLATE_LIST_TEST_CASE(
    "kv_cache: append_and_attend in one call is append and attend token by token", "[kv_cache]",
    cache_axes) {
  using cache = typename TestType::cache;
  using policies = typename TestType::policies;
  const auto shape = shape_for<policies>();
  const token_data<typename TestType::element> data(shape, 420, 3);
  for (const int64_t prompt : {0, 40, 161}) {
    cache subject(shape, options_for<policies>(shape));
    const auto single = subject.create();
    const auto at_once = subject.create();
    const auto in_pieces = subject.create();
    for (const sequence_id sequence : {single, at_once, in_pieces})
      if (prompt > 0) prefill(subject, sequence, data, prompt);
    const auto expected = decode(subject, single, data, prompt, 420);
    const auto given = decode_at_once(subject, at_once, data, prompt, 420);
    CHECK((snapshot(subject, at_once) == snapshot(subject, single)));
    CHECK((given == expected));
    int64_t first = prompt;
    for (const int64_t length : {1, 7, 150, 2, 99}) {
      decode_at_once(subject, in_pieces, data, first, first + length);
      first += length;
    }
    decode(subject, in_pieces, data, first, 420);
    CHECK((snapshot(subject, in_pieces) == snapshot(subject, single)));
  }
}

TEMPLATE_LIST_TEST_CASE(
    "kv_cache: a batch is its sequences one by one, whatever else the cache holds", "[kv_cache]",
    cache_axes) {
  using cache = typename TestType::cache;
  using policies = typename TestType::policies;
  using element = typename TestType::element;
  const auto shape = shape_for<policies>();
  const std::vector<int64_t> prompts{5, 33, 170, 1};
  constexpr int64_t rounds = 60;
  std::vector<token_data<element>> data;
  for (size_t i = 0; i < prompts.size(); ++i) data.emplace_back(shape, 420, 20 + i);

  // Alone, each in a cache of its own, token by token.
  std::vector<std::string> alone;
  const auto lengths_of_round = [&](int64_t round) {
    return std::vector<int64_t>{1, 1 + round % 3, round % 2, 2};
  };
  std::vector<int64_t> ends = prompts;
  for (int64_t round = 0; round < rounds; ++round)
    for (size_t i = 0; i < ends.size(); ++i) ends[i] += lengths_of_round(round)[i];
  std::vector<outputs<element>> expected;
  for (size_t i = 0; i < prompts.size(); ++i) {
    cache single(shape, options_for<policies>(shape));
    const auto sequence = single.create();
    prefill(single, sequence, data[i], prompts[i]);
    expected.push_back(decode(single, sequence, data[i], prompts[i], ends[i]));
    alone.push_back(snapshot(single, sequence));
  }

  // Together, in two orders, in a cache that has other sequences, released slots and used pages.
  for (const bool reversed : {false, true}) {
    cache batch(shape, options_for<policies>(shape));
    const token_data<element> noise(shape, 200, 99);
    const auto other = batch.create();
    prefill(batch, other, noise, 200);
    const auto released = batch.create();
    prefill(batch, released, noise, 77);
    std::vector<size_t> order(prompts.size());
    std::iota(order.begin(), order.end(), size_t{0});
    if (reversed) std::reverse(order.begin(), order.end());
    batch.release(released);
    std::vector<sequence_id> sequences;
    for (const size_t i : order) {
      sequences.push_back(batch.create());
      prefill(batch, sequences.back(), data[i], prompts[i]);
    }
    std::vector<int64_t> next = prompts;
    std::vector<outputs<element>> given;
    for (size_t i = 0; i < prompts.size(); ++i) given.emplace_back(shape, ends[i] - prompts[i]);
    const auto heads = static_cast<size_t>(shape.num_qo_heads);
    for (int64_t round = 0; round < rounds; ++round) {
      std::vector<int64_t> lengths;
      for (const size_t i : order) lengths.push_back(lengths_of_round(round)[i]);
      // Not more than every window takes: those that are nearly full go token by token.
      bool fits = true;
      for (int32_t layer = 0; layer < shape.num_layers; ++layer)
        for (size_t row = 0; row < order.size(); ++row)
          fits = fits && lengths[row] <= batch.append_room(sequences[row], layer);
      const int64_t total = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
      tensor<element> q(shape.num_qo_heads, total, shape.head_dim);
      tensor<element> k(shape.num_kv_heads, total, shape.head_dim);
      tensor<element> v(shape.num_kv_heads, total, shape.head_dim);
      int64_t at = 0;
      for (size_t row = 0; row < order.size(); ++row) {
        const size_t i = order[row];
        for (int64_t token = 0; token < lengths[row]; ++token, ++at) {
          for (int32_t channel = 0; channel < shape.head_dim; ++channel) {
            for (int32_t head = 0; head < shape.num_qo_heads; ++head)
              q.at(head, at, channel) = data[i].q.at(head, next[i] + token, channel);
            for (int32_t head = 0; head < shape.num_kv_heads; ++head) {
              k.at(head, at, channel) = data[i].k.at(head, next[i] + token, channel);
              v.at(head, at, channel) = data[i].v.at(head, next[i] + token, channel);
            }
          }
        }
      }
      outputs<element> result(shape, total);
      for (int32_t layer = 0; layer < shape.num_layers; ++layer) {
        if (fits) {
          batch.append(sequences, layer, k.view(), v.view(), lengths);
          batch.attend(sequences, layer, q.view(), result.out.view(), result.lse, lengths);
          continue;
        }
        int64_t first = 0;
        for (size_t row = 0; row < order.size(); ++row) {
          const int64_t n = lengths[row];
          batch.append_and_attend(
              sequences[row], layer, q.part(first, n), k.part(first, n), v.part(first, n),
              result.out.part(first, n),
              std::span(result.lse)
                  .subspan(static_cast<size_t>(first) * heads, static_cast<size_t>(n) * heads));
          first += n;
        }
      }
      at = 0;
      for (size_t row = 0; row < order.size(); ++row) {
        const size_t i = order[row];
        for (int64_t token = 0; token < lengths[row]; ++token, ++at, ++next[i]) {
          const int64_t target = next[i] - prompts[i];
          for (int32_t head = 0; head < shape.num_qo_heads; ++head) {
            for (int32_t channel = 0; channel < shape.head_dim; ++channel)
              given[i].out.at(head, target, channel) = result.out.at(head, at, channel);
            given[i].lse[static_cast<size_t>(target) * heads + static_cast<size_t>(head)] =
                result.lse[static_cast<size_t>(at) * heads + static_cast<size_t>(head)];
          }
        }
      }
    }
    for (size_t row = 0; row < order.size(); ++row) {
      const size_t i = order[row];
      CHECK((snapshot(batch, sequences[row]) == alone[i]));
      CHECK((given[i] == expected[i]));
    }
  }
}

TEMPLATE_LIST_TEST_CASE("kv_cache: the number of threads does not matter", "[kv_cache]",
                        cache_axes) {
  using cache = typename TestType::cache;
  using policies = typename TestType::policies;
  auto shape = shape_for<policies>();
  shape.num_qo_heads = 9;
  shape.num_kv_heads = 3;
  const token_data<typename TestType::element> data(shape, 400, 4);
  std::vector<std::string> seen;
  for (const int32_t threads : {1, 2, 3, 8}) {
    cache subject(shape, options_for<policies>(shape), {threads});
    const auto sequence = subject.create();
    prefill(subject, sequence, data, 200);
    decode_at_once(subject, sequence, data, 200, 363);
    seen.push_back(behaviour(subject, sequence, data, 10));
  }
  for (const std::string& bytes : seen) CHECK((bytes == seen[0]));
}

TEST_CASE("kv_cache: the same seed gives the same bytes, another one other probes", "[kv_cache]") {
  using cache = zipcache::kv_cache<half, presets::paper>;
  const token_data<half> data(small_shape, 400, 5);
  const auto run = [&](uint64_t seed) {
    cache subject(small_shape, {.seed = seed});
    const auto sequence = subject.create();
    prefill(subject, sequence, data, 237);
    std::string prompt = snapshot(subject, sequence);
    decode_at_once(subject, sequence, data, 237, 400);
    return std::pair{prompt, snapshot(subject, sequence)};
  };
  CHECK((run(1) == run(1)));
  CHECK((run(1).first != run(2).first));
  CHECK((run(1).second != run(2).second));
}

TEMPLATE_LIST_TEST_CASE("kv_cache: forks that diverge are runs of their own", "[kv_cache]",
                        cache_axes) {
  using cache = typename TestType::cache;
  using policies = typename TestType::policies;
  using element = typename TestType::element;
  const auto shape = shape_for<policies>();
  constexpr int64_t prompt = 100;
  constexpr int64_t branch = 130;  // inside the window under every preset
  constexpr int64_t end = 330;
  const token_data<element> common(shape, end, 6);
  const token_data<element> left(shape, end, 7);
  const token_data<element> right(shape, end, 8);

  const auto fresh = [&](const token_data<element>& tail, int64_t first, int64_t last) {
    cache single(shape, options_for<policies>(shape));
    const auto sequence = single.create();
    prefill(single, sequence, common, prompt);
    decode(single, sequence, common, prompt, branch);
    auto result = decode(single, sequence, tail, first, last);
    return std::pair{snapshot(single, sequence), result};
  };

  cache subject(shape, options_for<policies>(shape));
  const auto trunk = subject.create();
  prefill(subject, trunk, common, prompt);
  decode(subject, trunk, common, prompt, branch);
  const std::string before = snapshot(subject, trunk);
  const auto a = subject.fork(trunk);
  const auto b = subject.fork(a);  // a fork of a fork
  CHECK((snapshot(subject, a) == before));
  CHECK((snapshot(subject, b) == before));

  // Interleaved, so that a shared window would mix them up; the longer one first.
  outputs<element> first_half = decode(subject, a, left, branch, 200);
  decode(subject, b, right, branch, 160);
  outputs<element> second_half = decode(subject, a, left, 200, end);
  decode(subject, b, right, 160, end);
  CHECK((snapshot(subject, trunk) == before));
  CHECK((snapshot(subject, a) == fresh(left, branch, end).first));
  CHECK((snapshot(subject, b) == fresh(right, branch, end).first));
  CHECK((first_half == fresh(left, branch, 200).second));
  CHECK(second_half.lse.size() > 0);

  // The trunk goes on as if it had no forks.
  decode(subject, trunk, common, branch, 200);
  CHECK((snapshot(subject, trunk) == fresh(common, branch, 200).first));
}

TEST_CASE("kv_cache: a fork in the middle of a prompt completes it by itself", "[kv_cache]") {
  using cache = zipcache::kv_cache<half, presets::paper>;
  const token_data<half> data(small_shape, 210, 9);
  cache subject(small_shape);
  const auto whole = subject.create();
  prefill(subject, whole, data, 200);
  const auto first = subject.create();
  subject.prefill(first, 0, data.q.part(0, 90), data.k.part(0, 90), data.v.part(0, 90),
                  {.prompt_len = 200});
  const auto second = subject.fork(first);
  for (const sequence_id sequence : {first, second}) {
    subject.prefill(sequence, 0, data.q.part(90, 110), data.k.part(90, 110), data.v.part(90, 110),
                    {.prompt_len = 200});
    CHECK((snapshot(subject, sequence) == snapshot(subject, whole)));
  }
}

TEST_CASE("kv_cache: releasing forks in any order returns all pages", "[kv_cache]") {
  using cache = zipcache::kv_cache<half, presets::paper>;
  const token_data<half> data(small_shape, 500, 10);
  std::vector<size_t> order{0, 1, 2, 3};
  cache subject(small_shape);
  do {
    std::vector<sequence_id> sequences{subject.create()};
    prefill(subject, sequences[0], data, 150);
    decode_at_once(subject, sequences[0], data, 150, 200);
    sequences.push_back(subject.fork(sequences[0]));
    decode_at_once(subject, sequences[1], data, 200, 330);
    sequences.push_back(subject.fork(sequences[1]));
    sequences.push_back(subject.fork(sequences[0]));
    decode_at_once(subject, sequences[3], data, 200, 490);
    std::vector<std::string> expected;
    for (const auto sequence : sequences) expected.push_back(snapshot(subject, sequence));
    for (size_t i = 0; i < order.size(); ++i) {
      subject.release(sequences[order[i]]);
      for (size_t j = i + 1; j < order.size(); ++j)
        CHECK((snapshot(subject, sequences[order[j]]) == expected[order[j]]));
    }
    CHECK(subject.pool().num_used() == 0);
    CHECK(subject.num_sequences() == 0);
    CHECK(subject.footprint().total_bytes() == 0);
  } while (std::next_permutation(order.begin(), order.end()));
}

TEMPLATE_LIST_TEST_CASE("kv_cache: truncated tokens leave no trace", "[kv_cache]", cache_axes) {
  using cache = typename TestType::cache;
  using policies = typename TestType::policies;
  using element = typename TestType::element;
  const auto shape = shape_for<policies>();
  const token_data<element> data(shape, 500, 11);
  const token_data<element> draft(shape, 500, 12);
  constexpr int64_t prompt = 160;
  for (const int64_t kept : {160, 161, 170, 191}) {
    cache subject(shape, options_for<policies>(shape));
    const auto fresh = subject.create();
    const auto truncated = subject.create();
    for (const auto sequence : {fresh, truncated}) {
      prefill(subject, sequence, data, prompt);
      decode(subject, sequence, data, prompt, kept);
    }
    int64_t room = 500;
    for (int32_t layer = 0; layer < shape.num_layers; ++layer)
      room = std::min(room, subject.append_room(truncated, layer));
    decode(subject, truncated, draft, kept, kept + std::min<int64_t>(room, 32));
    int64_t least = 0;
    for (int32_t layer = 0; layer < shape.num_layers; ++layer)
      least = std::max(least, subject.sealed_length(truncated, layer));
    if (least > kept) continue;  // sealed meanwhile: an error, tested below
    subject.truncate(truncated, kept);
    CHECK((snapshot(subject, truncated) == snapshot(subject, fresh)));
    const auto expected = decode(subject, fresh, data, kept, 400);
    const auto given = decode(subject, truncated, data, kept, 400);
    CHECK((snapshot(subject, truncated) == snapshot(subject, fresh)));
    CHECK((given == expected));
  }
}

TEST_CASE("kv_cache: a sequence that is truncated to nothing takes a prompt again", "[kv_cache]") {
  using cache = zipcache::kv_cache<half, presets::paper>;
  const token_data<half> data(small_shape, 330, 13);
  const token_data<half> other(small_shape, 330, 14);
  cache subject(small_shape);
  const auto sequence = subject.create();
  decode(subject, sequence, other, 0, 100);
  subject.truncate(sequence, 0);
  CHECK(subject.pool().num_used() == 0);
  prefill(subject, sequence, data, 150);
  const auto fresh = subject.create();
  prefill(subject, fresh, data, 150);
  CHECK((behaviour(subject, sequence, data, 170) == behaviour(subject, fresh, data, 170)));
}

// A window of a prompt whose rows were not kept as probes: tokens that come after a truncation are
// new, and their queries count again.
TEST_CASE("kv_cache: tokens after a truncation into the prompt's window are probes again",
          "[kv_cache]") {
  using blocks =
      presets::paper::with<zipcache::blocks_behind_window<32, 64>>::with<zipcache::all_probes>;
  using cache = zipcache::kv_cache<half, blocks>;
  const token_data<half> data(small_shape, 200, 15);
  cache subject(small_shape);
  const auto fresh = subject.create();
  prefill(subject, fresh, data, 70);
  const auto truncated = subject.create();
  prefill(subject, truncated, data, 90);
  REQUIRE(subject.sealed_length(truncated) == 0);
  subject.truncate(truncated, 70);
  const auto expected = decode(subject, fresh, data, 70, 200);
  const auto given = decode(subject, truncated, data, 70, 200);
  CHECK((snapshot(subject, truncated) == snapshot(subject, fresh)));
  CHECK((given == expected));
}

TEMPLATE_LIST_TEST_CASE("kv_cache: strided views give the bytes of packed ones", "[kv_cache]",
                        cache_axes) {
  using cache = typename TestType::cache;
  using policies = typename TestType::policies;
  using element = typename TestType::element;
  const auto shape = shape_for<policies>();
  constexpr int64_t length = 190;
  constexpr int64_t prompt = 150;
  const token_data<element> data(shape, length, 16);
  cache subject(shape, options_for<policies>(shape));
  const auto packed = subject.create();
  prefill(subject, packed, data, prompt);
  const auto expected = decode_at_once(subject, packed, data, prompt, length);

  // [tokens, heads, channels] with room between tokens, rows at odd offsets, and one buffer for
  // all three; what lies between is NaN.
  const int64_t row = shape.head_dim + 3;
  const int32_t all_heads = shape.num_qo_heads + 2 * shape.num_kv_heads;
  std::vector<element> fused(static_cast<size_t>(length * all_heads * row + 1),
                             zipcache::from_float<element>(NAN));
  const auto slice = [&](int32_t first_head, const tensor<element>& from) {
    const zipcache::tensor_view<element> view{
        fused.data() + 1 + first_head * row, from.heads, length, from.dim, row, all_heads * row};
    for (int32_t head = 0; head < from.heads; ++head)
      for (int64_t token = 0; token < length; ++token)
        std::copy_n(&from.at(head, token, 0), from.dim, view.row(head, token));
    return view;
  };
  const auto q = slice(0, data.q);
  const auto k = slice(shape.num_qo_heads, data.k);
  const auto v = slice(shape.num_qo_heads + shape.num_kv_heads, data.v);
  std::vector<element> out(static_cast<size_t>((length - prompt) * shape.num_qo_heads * row),
                           zipcache::from_float<element>(-7.0f));
  const zipcache::tensor_view<element> out_view{
      out.data(), shape.num_qo_heads,      length - prompt, shape.head_dim,
      row,        shape.num_qo_heads * row};
  const auto strided = subject.create();
  outputs<element> given(shape, length - prompt);
  for (int32_t layer = 0; layer < shape.num_layers; ++layer) {
    subject.prefill(strided, layer, q.tokens(0, prompt), k.tokens(0, prompt), v.tokens(0, prompt));
    subject.append_and_attend(strided, layer, q.tokens(prompt, length - prompt),
                              k.tokens(prompt, length - prompt), v.tokens(prompt, length - prompt),
                              out_view, given.lse);
  }
  bool gaps_kept = true;
  for (int32_t head = 0; head < shape.num_qo_heads; ++head) {
    for (int64_t token = 0; token < length - prompt; ++token) {
      std::copy_n(out_view.row(head, token), shape.head_dim, &given.out.at(head, token, 0));
      for (int64_t gap = shape.head_dim; gap < row; ++gap)
        gaps_kept = gaps_kept && zipcache::to_float(out_view.row(head, token)[gap]) == -7.0f;
    }
  }
  CHECK((snapshot(subject, strided) == snapshot(subject, packed)));
  CHECK((given == expected));
  CHECK(gaps_kept);
}

// Heads do not know of each other under per_kv_head, so heads in another order give the same
// outputs in that order.
TEST_CASE("kv_cache: heads in another order give the same outputs in that order", "[kv_cache]") {
  using cache = zipcache::kv_cache<half, presets::paper>;
  zipcache::cache_shape shape = small_shape;
  shape.num_kv_heads = 3;
  shape.num_qo_heads = 6;
  constexpr int64_t length = 340;
  const token_data<half> data(shape, length, 17);
  token_data<half> rotated = data;
  const auto rotate = [](const tensor<half>& from, tensor<half>& to, int32_t by) {
    for (int32_t head = 0; head < from.heads; ++head)
      for (int64_t token = 0; token < from.tokens; ++token)
        std::copy_n(&from.at(head, token, 0), from.dim, &to.at((head + by) % from.heads, token, 0));
  };
  rotate(data.q, rotated.q, 2);
  rotate(data.k, rotated.k, 1);
  rotate(data.v, rotated.v, 1);
  cache subject(shape);
  const auto plain = subject.create();
  const auto turned = subject.create();
  prefill(subject, plain, data, 100);
  prefill(subject, turned, rotated, 100);
  const auto expected = decode_at_once(subject, plain, data, 100, length);
  const auto given = decode_at_once(subject, turned, rotated, 100, length);
  tensor<half> back = expected.out;
  rotate(expected.out, back, 2);
  CHECK(same_bits(back.values, given.out.values));
}

// A power of two scales steps and minima exactly (no subnormals here), so codes stay what they are.
TEST_CASE("kv_cache: keys twice as large and queries half as large change no output",
          "[kv_cache]") {
  using cache = zipcache::kv_cache<float, presets::paper>;
  constexpr int64_t length = 340;
  const token_data<float> data(small_shape, length, 18);
  token_data<float> scaled = data;
  for (float& x : scaled.q.values) x *= 0.5f;
  for (float& x : scaled.k.values) x *= 2.0f;
  cache subject(small_shape);
  const auto plain = subject.create();
  const auto other = subject.create();
  prefill(subject, plain, data, 100);
  prefill(subject, other, scaled, 100);
  CHECK((decode_at_once(subject, plain, data, 100, length) ==
         decode_at_once(subject, other, scaled, 100, length)));
}

}  // namespace

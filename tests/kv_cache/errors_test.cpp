// Every refused call: the right exception, a message that says which argument, what was given and
// what is allowed, and a cache that is as it was.
#include <string>

#include "support/cache_runs.hpp"
#include "support/catch.hpp"

namespace {

using namespace zipcache_test;
using zipcache::argument_error;
using zipcache::cache_options;
using zipcache::cache_shape;
using zipcache::half;
using zipcache::sequence_id;
using zipcache::state_error;
using zipcache::tensor_view;
namespace presets = zipcache::presets;

/// The message of the `Error` that `call` throws; what happened instead otherwise.
template <class Error, class Call>
std::string refusal(Call&& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  } catch (const std::exception& error) {
    return std::string("another exception: ") + error.what();
  }
  return "no exception";
}

bool says(const std::string& message, std::initializer_list<const char*> words) {
  for (const char* word : words)
    if (message.find(word) == std::string::npos) {
      UNSCOPED_INFO("\"" << message << "\" lacks \"" << word << "\"");
      return false;
    }
  return message.rfind("zipcache: ", 0) == 0;
}

/// A cache with two layers, two sequences, one in the middle of its prompt and one released.
template <class Element>
struct stage {
  static constexpr cache_shape shape{
      .num_layers = 2, .num_qo_heads = 4, .num_kv_heads = 2, .head_dim = 32};
  using cache_type = zipcache::kv_cache<Element, presets::paper>;
  token_data<Element> data{shape, 120, 71};
  cache_type cache{shape, {.recompress_interval = 32}};
  sequence_id a, b, waiting, released;

  stage() {
    a = cache.create();
    b = cache.create();
    waiting = cache.create();
    released = cache.create();
    prefill(cache, a, data, 40);
    decode(cache, a, data, 40, 45);
    prefill(cache, b, data, 33);
    decode(cache, b, data, 33, 65);  // its window is full
    for (int32_t layer = 0; layer < 2; ++layer)
      cache.prefill(waiting, layer, data.q.part(0, 10), data.k.part(0, 10), data.v.part(0, 10),
                    {.prompt_len = 30});
    cache.release(released);
  }

  std::string all() {
    const std::vector<sequence_id> sequences{a, b, waiting};
    std::string seen = cache_snapshot(cache, sequences);
    seen += behaviour(cache, a, data, 40);
    seen += behaviour(cache, b, data, 40);
    const sequence_id twin = cache.fork(waiting);
    for (int32_t layer = 0; layer < 2; ++layer)
      cache.prefill(twin, layer, data.q.part(10, 20), data.k.part(10, 20), data.v.part(10, 20),
                    {.prompt_len = 30});
    seen += behaviour(cache, twin, data, 40);
    cache.release(twin);
    return seen;
  }

  /// `call` throws `Error` with these words and nothing changes.
  template <class Error, class Call>
  void refuses(std::initializer_list<const char*> words, Call&& call) {
    const std::string before = all();
    CHECK(says(refusal<Error>(call), words));
    CHECK((all() == before));
  }
};

using half_stage = stage<half>;

TEMPLATE_TEST_CASE("kv_cache: keys and values that are not finite are refused",
                   "[kv_cache][errors]", float, half, zipcache::bfloat16) {
  using element = TestType;
  stage<element> s;
  std::vector<float> bad{NAN, INFINITY, -INFINITY};
  if (std::is_same_v<element, float>) bad.insert(bad.end(), {65505.0f, -3e38f});
  for (const float x : bad) {
    tensor<element> k = random_tensor<element>(2, 2, 32, 72);
    const tensor<element> v = random_tensor<element>(2, 2, 32, 73);
    const tensor<element> q = random_tensor<element>(4, 2, 32, 74);
    outputs<element> given(s.shape, 2);
    k.at(1, 1, 31) = zipcache::from_float<element>(x);
    const auto key_words = {"k is", "head 1", "token 1", "channel 31", "finite"};
    const auto value_words = {"v is", "head 1", "token 1", "channel 31", "finite"};
    s.template refuses<argument_error>(key_words,
                                       [&] { s.cache.append(s.a, 0, k.view(), v.view()); });
    s.template refuses<argument_error>(value_words,
                                       [&] { s.cache.append(s.a, 0, v.view(), k.view()); });
    // The other sequence of the batch is not touched either, though its window is full.
    const std::vector<sequence_id> both{s.b, s.a};
    s.template refuses<argument_error>(key_words,
                                       [&] { s.cache.append(both, 0, k.view(), v.view()); });
    s.template refuses<argument_error>(key_words, [&] {
      s.cache.append_and_attend(s.b, 0, q.view(), k.view(), v.view(), given.out.view());
    });
    const auto fresh = s.cache.create();
    s.template refuses<argument_error>(
        key_words, [&] { s.cache.prefill(fresh, 0, q.view(), k.view(), v.view()); });
    s.template refuses<argument_error>(value_words, [&] {
      s.cache.prefill(s.waiting, 1, q.view(), v.view(), k.view(), {.prompt_len = 30});
    });
    CHECK(s.cache.length(fresh) == 0);
    s.cache.release(fresh);
  }
}

TEST_CASE("kv_cache: the largest numbers of 16 bits are taken", "[kv_cache][errors]") {
  zipcache::kv_cache<float, presets::paper> subject(small_shape, {.recompress_interval = 2});
  token_data<float> data(small_shape, 6, 75);
  for (float& x : data.k.values) x = x > 0.0f ? 65504.0f : -65504.0f;
  const auto sequence = subject.create();
  prefill(subject, sequence, data, 2);
  decode_at_once(subject, sequence, data, 2, 6);
  const auto held = dequantize_layer(subject, sequence, 0);
  for (const float x : held.k.values) REQUIRE(zipcache::is_finite(x));
}

TEST_CASE("kv_cache: a probe query that is not finite is refused, another one not looked at",
          "[kv_cache][errors]") {
  half_stage s;
  const auto fresh = s.cache.create();
  token_data<half> data(s.shape, 50, 76);
  data.q.at(3, 49, 7) = zipcache::from_float<half>(NAN);
  s.refuses<argument_error>({"q is not finite", "head 3", "token 49", "channel 7"}, [&] {
    s.cache.prefill(fresh, 0, data.q.view(), data.k.view(), data.v.view());
  });
  CHECK(s.cache.length(fresh) == 0);
  // Without random probes only the last rows are looked at.
  zipcache::kv_cache<half, presets::paper> subject(s.shape, {.random_probe_fraction = 0.0});
  const auto sequence = subject.create();
  data.q.at(3, 49, 7) = data.q.at(3, 49, 8);
  data.q.at(3, 20, 7) = zipcache::from_float<half>(NAN);
  subject.prefill(sequence, 0, data.q.view(), data.k.view(), data.v.view());
  CHECK(subject.length(sequence) == 50);
}

TEST_CASE("kv_cache: tensors of a wrong shape are refused", "[kv_cache][errors]") {
  half_stage s;
  const token_data<half>& d = s.data;
  const auto fresh = s.cache.create();
  const auto q = d.q.part(0, 4);
  const auto k = d.k.part(0, 4);
  const auto v = d.v.part(0, 4);
  const auto with = [](tensor_view<const half> x, auto change) {
    change(x);
    return x;
  };
  const auto wide = [&](auto x) { return with(x, [](auto& y) { y.head_dim = 64; }); };
  const auto more_heads = [&](auto x) { return with(x, [](auto& y) { y.num_heads = 5; }); };
  const auto shorter = [&](auto x) { return with(x, [](auto& y) { y.num_tokens = 3; }); };
  const auto null = [&](auto x) { return with(x, [](auto& y) { y.data = nullptr; }); };
  const auto negative = [&](auto x) { return with(x, [](auto& y) { y.num_tokens = -1; }); };

  const auto prefill_with = [&](auto pq, auto pk, auto pv) {
    return [&, pq, pk, pv] { s.cache.prefill(fresh, 0, pq, pk, pv); };
  };
  s.refuses<argument_error>({"k.head_dim is 64", "32"}, prefill_with(q, wide(k), v));
  s.refuses<argument_error>({"v.head_dim is 64", "32"}, prefill_with(q, k, wide(v)));
  s.refuses<argument_error>({"q has 4 heads of 64", "4 of 32"}, prefill_with(wide(q), k, v));
  s.refuses<argument_error>({"k.num_heads is 5", "2"}, prefill_with(q, more_heads(k), v));
  s.refuses<argument_error>({"v.num_heads is 5", "2"}, prefill_with(q, k, more_heads(v)));
  s.refuses<argument_error>({"q has 5 heads", "4 of 32"}, prefill_with(more_heads(q), k, v));
  s.refuses<argument_error>({"v.num_tokens is 3", "4"}, prefill_with(q, k, shorter(v)));
  s.refuses<argument_error>({"q.num_tokens is 3", "4"}, prefill_with(shorter(q), k, v));
  s.refuses<argument_error>({"q.num_tokens is 0", "4"},
                            prefill_with(tensor_view<const half>{}, k, v));
  s.refuses<argument_error>({"q is null"}, prefill_with(null(q), k, v));
  s.refuses<argument_error>({"null"}, prefill_with(q, null(k), v));
  s.refuses<argument_error>({"null"}, prefill_with(q, k, null(v)));
  s.refuses<argument_error>({"k.num_tokens is -1"}, prefill_with(q, negative(k), negative(v)));

  const auto append_with = [&](auto pk, auto pv) {
    return [&, pk, pv] { s.cache.append(s.b, 1, pk, pv); };
  };
  s.refuses<argument_error>({"k.head_dim is 64", "32"}, append_with(wide(k), v));
  s.refuses<argument_error>({"v.num_heads is 5", "2"}, append_with(k, more_heads(v)));
  s.refuses<argument_error>({"v.num_tokens is 3", "4"}, append_with(k, shorter(v)));
  s.refuses<argument_error>({"null"}, append_with(null(k), v));

  outputs<half> given(s.shape, 4);
  const auto attend_with = [&](auto pq, auto out) {
    return [&, pq, out] { s.cache.attend(s.b, 1, pq, out); };
  };
  auto out = given.out.view();
  s.refuses<argument_error>({"q has 5 heads", "4 of 32"}, attend_with(more_heads(q), out));
  s.refuses<argument_error>({"q is null"}, attend_with(null(q), out));
  s.refuses<argument_error>({"out.num_tokens is 4", "3"}, attend_with(shorter(q), out));
  auto narrow = out;
  narrow.head_dim = 16;
  s.refuses<argument_error>({"out has 4 heads of 16", "4 of 32"}, attend_with(q, narrow));
  s.refuses<argument_error>({"lse.size() is 15", "16"}, [&] {
    s.cache.attend(s.b, 1, q, out, std::span(given.lse).first(15));
  });

  const auto both_with = [&](auto pq, auto pk, auto pv, auto o) {
    return [&, pq, pk, pv, o] { s.cache.append_and_attend(s.b, 0, pq, pk, pv, o); };
  };
  s.refuses<argument_error>({"q has 5 heads", "4 of 32"}, both_with(more_heads(q), k, v, out));
  s.refuses<argument_error>({"k.head_dim is 64", "32"}, both_with(q, wide(k), v, out));
  s.refuses<argument_error>({"out has 4 heads of 16", "4 of 32"}, both_with(q, k, v, narrow));
  s.refuses<argument_error>({"q.num_tokens is 3", "4"}, both_with(shorter(q), k, v, out));
  s.refuses<argument_error>({"lse.size() is 15", "16"}, [&] {
    s.cache.append_and_attend(s.b, 0, q, k, v, out, std::span(given.lse).first(15));
  });

  tensor<float> small(2, 44, 32);
  tensor<float> right(2, 45, 32);
  s.refuses<argument_error>({"num_tokens is 44", "45"},
                            [&] { s.cache.dequantize(s.a, 0, small.view(), right.view()); });
  const std::vector<float> lse(15);
  s.refuses<argument_error>({"lse.size() is 15", "16"},
                            [&] { s.cache.prefill(fresh, 0, q, k, v, {.lse = lse}); });
}

TEST_CASE("kv_cache: sequences that are not there are refused", "[kv_cache][errors]") {
  half_stage s;
  const token_data<half>& d = s.data;
  outputs<half> given(s.shape, 2);
  tensor<float> held(2, 1, 32);
  // A new sequence in the released one's slot: the old id still names nothing.
  const auto reused = s.cache.create();
  REQUIRE(reused.index == s.released.index);
  const sequence_id foreign{s.a.index, s.a.generation + 1};
  for (const sequence_id bad : {sequence_id{}, s.released, foreign, sequence_id{77, 0}}) {
    const auto check = [&](auto&& call) {
      s.refuses<argument_error>({"sequence", "not in this cache"}, call);
    };
    check([&] { s.cache.append(bad, 0, d.k.part(0, 1), d.v.part(0, 1)); });
    check([&] { s.cache.prefill(bad, 0, d.q.part(0, 1), d.k.part(0, 1), d.v.part(0, 1)); });
    check([&] { s.cache.attend(bad, 0, d.q.part(0, 1), given.out.part(0, 1)); });
    check([&] {
      s.cache.append_and_attend(bad, 0, d.q.part(0, 1), d.k.part(0, 1), d.v.part(0, 1),
                                given.out.part(0, 1));
    });
    check([&] {
      const std::vector<sequence_id> batch{s.b, bad};
      s.cache.append(batch, 0, d.k.part(0, 2), d.v.part(0, 2));
    });
    check([&] {
      const std::vector<sequence_id> batch{s.b, bad};
      s.cache.attend(batch, 0, d.q.part(0, 2), given.out.view());
    });
    check([&] { (void)s.cache.fork(bad); });
    check([&] { s.cache.release(bad); });
    check([&] { s.cache.truncate(bad, 0); });
    check([&] { s.cache.dequantize(bad, 0, held.view(), held.view()); });
    check([&] { (void)s.cache.length(bad); });
    check([&] { (void)s.cache.sealed_length(bad); });
    check([&] { (void)s.cache.append_room(bad); });
    check([&] { (void)s.cache.footprint(bad); });
    check([&] { (void)s.cache.inspect(bad, 0); });
  }
}

TEST_CASE("kv_cache: layers that are not there are refused", "[kv_cache][errors]") {
  half_stage s;
  const token_data<half>& d = s.data;
  outputs<half> given(s.shape, 1);
  for (const int32_t layer : {-1, 2, 1000000}) {
    const auto check = [&](auto&& call) {
      s.refuses<argument_error>({"layer is", "between 0 and 1"}, call);
    };
    check([&] { s.cache.append(s.a, layer, d.k.part(0, 1), d.v.part(0, 1)); });
    check([&] { s.cache.prefill(s.a, layer, d.q.part(0, 1), d.k.part(0, 1), d.v.part(0, 1)); });
    check([&] { s.cache.attend(s.a, layer, d.q.part(0, 1), given.out.view()); });
    check([&] {
      s.cache.append_and_attend(s.a, layer, d.q.part(0, 1), d.k.part(0, 1), d.v.part(0, 1),
                                given.out.view());
    });
    check([&] { (void)s.cache.length(s.a, layer); });
    check([&] { (void)s.cache.inspect(s.a, layer); });
  }
}

TEST_CASE("kv_cache: calls that the state of a sequence does not allow are refused",
          "[kv_cache][errors]") {
  half_stage s;
  const token_data<half>& d = s.data;
  const auto prefill_at = [&](sequence_id sequence, int64_t count,
                              zipcache::prefill_options options) {
    return [&s, &d, sequence, count, options] {
      s.cache.prefill(sequence, 0, d.q.part(0, count), d.k.part(0, count), d.v.part(0, count),
                      options);
    };
  };
  s.refuses<state_error>({"prefill needs an empty sequence", "45"}, prefill_at(s.a, 3, {}));
  s.refuses<state_error>({"prefill needs an empty sequence", "45"}, prefill_at(s.a, 0, {}));
  s.refuses<state_error>({"prompt is complete", "10 of 30"},
                         [&] { s.cache.append(s.waiting, 0, d.k.part(0, 1), d.v.part(0, 1)); });
  outputs<half> given(s.shape, 40);
  s.refuses<state_error>({"prompt is complete", "10 of 30"}, [&] {
    s.cache.append_and_attend(s.waiting, 0, d.q.part(0, 1), d.k.part(0, 1), d.v.part(0, 1),
                              given.out.part(0, 1));
  });
  s.refuses<state_error>({"prompt is complete"}, [&] { s.cache.truncate(s.waiting, 5); });
  // A batch in which one sequence cannot: the other one, with a full window, stays as it was.
  const std::vector<sequence_id> batch{s.b, s.waiting};
  s.refuses<state_error>({"10 of 30"},
                         [&] { s.cache.append(batch, 0, d.k.part(0, 2), d.v.part(0, 2)); });

  s.refuses<argument_error>({"k.num_tokens is 21", "at most 20"},
                            prefill_at(s.waiting, 21, {.prompt_len = 30}));
  s.refuses<argument_error>({"prompt_len is 31", "30"},
                            prefill_at(s.waiting, 5, {.prompt_len = 31}));
  s.refuses<argument_error>({"prompt_len is 5", "30"}, prefill_at(s.waiting, 5, {}));
  s.refuses<argument_error>({"prompt_len is -1"}, prefill_at(s.waiting, 5, {.prompt_len = -1}));
  const std::vector<float> lse(20 * 4);
  s.refuses<argument_error>({"lse must be given with every chunk of a prompt or with none"},
                            prefill_at(s.waiting, 20, {.prompt_len = 30, .lse = lse}));
  const std::vector<int64_t> rows{1, 2};
  s.refuses<argument_error>({"probe_rows", "given_probes"},
                            prefill_at(s.waiting, 20, {.prompt_len = 30, .probe_rows = rows}));

  s.refuses<argument_error>({"the number of appended tokens is 28", "at most 27"},
                            [&] { s.cache.append(s.a, 0, d.k.part(0, 28), d.v.part(0, 28)); });
  s.refuses<argument_error>({"the number of appended tokens is 33", "at most 32"},
                            [&] { s.cache.append(s.b, 0, d.k.part(0, 33), d.v.part(0, 33)); });
  const std::vector<sequence_id> both{s.b, s.a};
  const std::vector<int64_t> lengths{1, 28};
  s.refuses<argument_error>({"the number of appended tokens is 28", "at most 27"}, [&] {
    s.cache.append(both, 0, d.k.part(0, 29), d.v.part(0, 29), lengths);
  });
  s.refuses<argument_error>({"the number of query tokens is 6", "at most 5"},
                            [&] { s.cache.attend(s.a, 0, d.q.part(0, 6), given.out.part(0, 6)); });
  const std::vector<int64_t> queries{2, 6};
  s.refuses<argument_error>({"the number of query tokens is 6", "at most 5"}, [&] {
    s.cache.attend(both, 0, d.q.part(0, 8), given.out.part(0, 8), {}, queries);
  });
}

TEST_CASE("kv_cache: a full window whose probes were not attended is refused, until they are",
          "[kv_cache][errors]") {
  half_stage s;
  const token_data<half>& d = s.data;
  const auto lazy = s.cache.create();
  const auto diligent = s.cache.create();
  for (int32_t layer = 0; layer < 2; ++layer)
    for (const auto sequence : {lazy, diligent})
      s.cache.append(sequence, layer, d.k.part(0, 32), d.v.part(0, 32));
  outputs<half> given(s.shape, 32);
  for (int32_t layer = 0; layer < 2; ++layer)
    s.cache.attend(diligent, layer, d.q.part(0, 32), given.out.view());
  s.refuses<state_error>({"window is full", "0 of its", "probe queries were attended"},
                         [&] { s.cache.append(lazy, 0, d.k.part(32, 1), d.v.part(32, 1)); });
  const std::vector<sequence_id> batch{s.b, lazy};
  s.refuses<state_error>({"window is full"},
                         [&] { s.cache.append(batch, 0, d.k.part(32, 2), d.v.part(32, 2)); });
  // Some of them are not enough.
  s.cache.attend(lazy, 0, d.q.part(31, 1), given.out.part(0, 1));
  s.refuses<state_error>({"window is full", "1 of its"},
                         [&] { s.cache.append(lazy, 0, d.k.part(32, 1), d.v.part(32, 1)); });
  for (int32_t layer = 0; layer < 2; ++layer)
    s.cache.attend(lazy, layer, d.q.part(0, 32), given.out.view());
  CHECK((behaviour(s.cache, lazy, d, 40) == behaviour(s.cache, diligent, d, 40)));
  // No token, no need for them.
  s.cache.append(lazy, 0, d.k.part(32, 0), d.v.part(32, 0));
  CHECK(s.cache.sealed_length(lazy) == 0);
}

TEST_CASE("kv_cache: a batch that does not add up is refused", "[kv_cache][errors]") {
  half_stage s;
  const token_data<half>& d = s.data;
  outputs<half> given(s.shape, 8);
  const auto check = [&](std::initializer_list<const char*> words,
                         std::vector<sequence_id> sequences, std::vector<int64_t> lengths,
                         int64_t tokens) {
    s.refuses<argument_error>(words, [&] {
      s.cache.append(sequences, 0, d.k.part(0, tokens), d.v.part(0, tokens), lengths);
    });
    s.refuses<argument_error>(words, [&] {
      s.cache.attend(sequences, 0, d.q.part(0, tokens), given.out.part(0, tokens), {}, lengths);
    });
  };
  check({"lengths.size() is 1", "2"}, {s.a, s.b}, {2}, 2);
  check({"length", "is 3", "between 0 and 1"}, {s.a, s.b}, {1, 3}, 2);
  check({"number of tokens", "is 4", "3"}, {s.a, s.b}, {1, 2}, 4);
  check({"length", "is -1"}, {s.a, s.b}, {-1, 3}, 2);
  check({"number of tokens", "is 1", "0"}, {}, {}, 1);
  check({"number of tokens", "is 3", "2"}, {s.a, s.b}, {}, 3);
  const std::vector<sequence_id> twice{s.b, s.a, s.b};
  s.refuses<argument_error>({"sequence 1 is in the batch twice"},
                            [&] { s.cache.append(twice, 0, d.k.part(0, 3), d.v.part(0, 3)); });
}

TEST_CASE("kv_cache: a truncation into sealed tokens or beyond the end is refused in all layers",
          "[kv_cache][errors]") {
  half_stage s;
  s.refuses<argument_error>({"len is 39", "between 40 and 45"}, [&] { s.cache.truncate(s.a, 39); });
  s.refuses<argument_error>({"len is 46", "between 40 and 45"}, [&] { s.cache.truncate(s.a, 46); });
  s.refuses<argument_error>({"len is -1", "between 40 and 45"}, [&] { s.cache.truncate(s.a, -1); });
  // Only the second layer is too short.
  s.cache.append(s.a, 0, s.data.k.part(45, 1), s.data.v.part(45, 1));
  const std::string first = snapshot(s.cache, s.a, 0);
  CHECK(says(refusal<argument_error>([&] { s.cache.truncate(s.a, 46); }),
             {"len is 46", "between 40 and 45"}));
  CHECK((snapshot(s.cache, s.a, 0) == first));
}

TEST_CASE("kv_cache: empty batches and calls of no tokens succeed and change nothing",
          "[kv_cache][errors]") {
  half_stage s;
  const token_data<half>& d = s.data;
  outputs<half> given(s.shape, 1);
  const std::string before = s.all();
  s.cache.append(std::vector<sequence_id>{}, 0, d.k.part(0, 0), d.v.part(0, 0));
  s.cache.attend(std::vector<sequence_id>{}, 0, d.q.part(0, 0), given.out.part(0, 0));
  for (const auto sequence : {s.a, s.b}) {
    s.cache.append(sequence, 0, d.k.part(0, 0), d.v.part(0, 0));
    s.cache.attend(sequence, 0, d.q.part(0, 0), given.out.part(0, 0));
    s.cache.append_and_attend(sequence, 0, d.q.part(0, 0), d.k.part(0, 0), d.v.part(0, 0),
                              given.out.part(0, 0));
    s.cache.truncate(sequence, s.cache.length(sequence));
  }
  // Null tensors of no tokens, too.
  const tensor_view<const half> none{nullptr, 2, 0, 32, 0, 0};
  s.cache.append(s.a, 0, none, none);
  s.cache.prefill(s.waiting, 0, d.q.part(0, 0), none, none, {.prompt_len = 30});
  CHECK((s.all() == before));
  const auto fresh = s.cache.create();
  s.cache.prefill(fresh, 0, {}, none, none);
  CHECK(s.cache.length(fresh) == 0);
  prefill(s.cache, fresh, d, 20);
  CHECK(s.cache.length(fresh) == 20);
}

TEST_CASE("kv_cache: shapes out of range are refused", "[kv_cache][errors]") {
  const auto make = [](cache_shape shape) {
    return [shape] { zipcache::kv_cache<half, presets::paper> subject(shape); };
  };
  for (const int32_t dim : {0, -16, 8, 24, 272})
    CHECK(says(refusal<argument_error>(make({1, 4, 2, dim})),
               {"head_dim is", std::to_string(dim).c_str(), "a multiple of 16 from 16 to 256"}));
  CHECK(says(refusal<argument_error>(make({1, 5, 2, 32})), {"num_qo_heads is 5", "multiple", "2"}));
  CHECK(says(refusal<argument_error>(make({0, 4, 2, 32})), {"num_layers is 0"}));
  CHECK(says(refusal<argument_error>(make({1, 0, 2, 32})), {"num_qo_heads is 0"}));
  CHECK(says(refusal<argument_error>(make({1, 4, 0, 32})), {"num_kv_heads is 0"}));
  CHECK(says(refusal<argument_error>(make({1, 1, 2, 32})), {"num_qo_heads is 1"}));
  CHECK(says(refusal<argument_error>(make({1, 4, 2, 32, NAN})), {"sm_scale"}));
  CHECK(says(refusal<argument_error>(make({1, 4, 2, 32, -1.0f})), {"sm_scale"}));
  CHECK(says(refusal<argument_error>(make({1, 4, 2, 32, INFINITY})), {"sm_scale"}));
  // Groups of 32 channels do not divide 48.
  CHECK(says(refusal<argument_error>([] {
               zipcache::kv_cache<half, presets::kivi_2bit> subject({1, 4, 2, 48});
             }),
             {"divide head_dim", "48"}));
}

TEST_CASE("kv_cache: options out of range are refused", "[kv_cache][errors]") {
  const auto check = [](std::initializer_list<const char*> words, const cache_options& options,
                        zipcache::cpu_backend backend = {}) {
    CHECK(says(refusal<argument_error>([&] {
                 zipcache::kv_cache<half, presets::paper> subject(small_shape, options, backend);
               }),
               words));
  };
  check({"salient_ratio is", "between 0 and 1"}, {.salient_ratio = NAN});
  check({"salient_ratio is 1.5", "between 0 and 1"}, {.salient_ratio = 1.5});
  check({"salient_ratio is -0.1", "between 0 and 1"}, {.salient_ratio = -0.1});
  check({"recent_probe_fraction is", "between 0 and 1"}, {.recent_probe_fraction = NAN});
  check({"random_probe_fraction is 2", "between 0 and 1"}, {.random_probe_fraction = 2.0});
  check({"recompress_interval is 0", "between 1"}, {.recompress_interval = 0});
  check({"recompress_interval is -5", "between 1"}, {.recompress_interval = -5});
  check({"recompress_interval is 2147483648"}, {.recompress_interval = int64_t{1} << 31});
  check({"recent_window is -1", "between 0"}, {.recent_window = -1});
  check({"salient_count is -1", "between 0"}, {.salient_count = -1});
  check({"max_probes is -1", "between 0"}, {.max_probes = -1});
  check({"max_pages is -1", "between 0"}, {.max_pages = -1});
  check({"page_bytes is 16", "a multiple of 16"}, {.page_bytes = 16});
  check({"page_bytes is -4096", "a multiple of 16"}, {.page_bytes = -4096});
  check({"page_bytes is 4100", "a multiple of 16"}, {.page_bytes = 4100});
  check({"page_bytes is 1099511627776", "256 KiB"}, {.page_bytes = int64_t{1} << 40});
  check({"layer_policy.size() is 2", "1"}, {.layer_policy = {0, 0}});
  check({"layer_policy is 1", "between 0 and 0"}, {.layer_policy = {1}});
  check({"layer_policy is -1", "between 0 and 0"}, {.layer_policy = {-1}});
  check({"num_threads is 0", "between 1"}, {}, {0});
  check({"num_threads is -3", "between 1"}, {}, {-3});
  // The smallest page there is works.
  const auto least = [] {
    using shape = zipcache::segment_shape<presets::paper>;
    return std::max<int64_t>(shape::salient_tile_bytes(32), 4 * 32);
  }();
  zipcache::kv_cache<half, presets::paper> subject(small_shape, {.page_bytes = least});
  CHECK(subject.page_bytes() == least);
  check({"page_bytes is", std::to_string(least).c_str()}, {.page_bytes = least - 16});
}

TEST_CASE("kv_cache: a layer's policies are those that the table names", "[kv_cache][errors]") {
  cache_shape shape = small_shape;
  shape.num_layers = 3;
  zipcache::kv_cache<half, mixed_table> subject(shape, {.layer_policy = {2, 0, 1}});
  const auto sequence = subject.create();
  CHECK(subject.inspect<presets::uncompressed>(sequence, 0) != nullptr);
  CHECK(subject.inspect<presets::paper>(sequence, 0) == nullptr);
  CHECK(subject.inspect<presets::paper>(sequence, 1) != nullptr);
  CHECK(subject.inspect<presets::kivi_2bit>(sequence, 2) != nullptr);
  zipcache::kv_cache<half, mixed_table> plain(shape);
  CHECK(plain.inspect<presets::paper>(plain.create(), 2) != nullptr);
}

TEST_CASE("kv_cache: rows of given_probes that make no sense are refused", "[kv_cache][errors]") {
  using policies = presets::paper::with<zipcache::given_probes>;
  zipcache::kv_cache<half, policies> subject(small_shape);
  const token_data<half> data(small_shape, 20, 77);
  const auto sequence = subject.create();
  const auto check = [&](std::initializer_list<const char*> words, std::vector<int64_t> rows) {
    CHECK(says(refusal<argument_error>([&] {
                 subject.prefill(sequence, 0, data.q.view(), data.k.view(), data.v.view(),
                                 {.probe_rows = rows});
               }),
               words));
    CHECK(subject.length(sequence) == 0);
    CHECK(subject.pool().num_used() == 0);
  };
  check({"probe_rows must name at least one row"}, {});
  check({"probe row is 20", "between 0 and 19"}, {3, 20});
  check({"probe row is -1", "between 0 and 19"}, {-1});
  check({"ascending"}, {3, 3});
  check({"ascending"}, {4, 3});
}

}  // namespace

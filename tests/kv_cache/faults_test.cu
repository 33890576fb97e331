// What goes wrong on CUDA: calls that the host refuses before any launch and that leave the cache
// as it was, faults that only the device sees and `check` reports, and a pool beyond 4 GiB.
#define ZIPCACHE_HEAD_DIMS 64

#include <limits>

#include "support/catch.hpp"
#include "support/device_cache.cuh"

using namespace zipcache_test;
using zipcache::argument_error;
using zipcache::cache_options;
using zipcache::capacity_error;
using zipcache::device_limits;
using zipcache::sequence_id;
using zipcache::state_error;
using f16 = zipcache::half;
using paper = zipcache::presets::paper;
using cache_type = device_cache<f16, paper>;

namespace {

constexpr zipcache::cache_shape shape{
    .num_layers = 1, .num_qo_heads = 4, .num_kv_heads = 2, .head_dim = 64};
constexpr int64_t q_row = 4 * 64, k_row = 2 * 64;

/// Tokens of two sequences side by side, [tokens, 2, heads, dim], as a batch of both takes them.
struct pair_tokens {
  device_array<f16> q, k, v;
  std::vector<f16> host_k;

  pair_tokens(const token_data<f16>& a, const token_data<f16>& b, int64_t spoilt_token = -1,
              float spoilt_value = 0.0f) {
    const auto merge = [](const tensor<f16>& x, const tensor<f16>& y) {
      const std::vector<f16> first = by_token(x), second = by_token(y);
      const auto row = static_cast<ptrdiff_t>(x.heads * x.dim);
      std::vector<f16> both;
      for (ptrdiff_t token = 0; token < x.tokens; ++token) {
        both.insert(both.end(), first.begin() + token * row, first.begin() + (token + 1) * row);
        both.insert(both.end(), second.begin() + token * row, second.begin() + (token + 1) * row);
      }
      return both;
    };
    host_k = merge(a.k, b.k);
    if (spoilt_token >= 0)
      host_k[static_cast<size_t>(spoilt_token * 2 * k_row + 70)] =
          zipcache::from_float<f16>(spoilt_value);
    q = upload(merge(a.q, b.q));
    k = upload(host_k);
    v = upload(merge(a.v, b.v));
  }
};

/// Appends tokens [first, last) to both sequences of the batch and attends.
outputs<f16> decode_pair(cache_type& cache, const zipcache::sequence_list& batch,
                         const pair_tokens& tokens, int64_t first, int64_t last) {
  auto out = poisoned<f16>(static_cast<size_t>((last - first) * 2 * q_row));
  auto lse = poisoned<float>(static_cast<size_t>((last - first) * 2 * shape.num_qo_heads));
  for (int64_t token = first; token < last; ++token) {
    cache.append(batch, 0, tokens.k.data() + token * 2 * k_row,
                 tokens.v.data() + token * 2 * k_row);
    cache.attend(batch, 0, tokens.q.data() + token * 2 * q_row,
                 out.data() + (token - first) * 2 * q_row,
                 lse.data() + (token - first) * 2 * shape.num_qo_heads);
  }
  return outputs_of<f16>(shape, 2 * (last - first), download(out), download(lse));
}

/// Sequence `which` of the pair's outputs.
outputs<f16> half_of(const outputs<f16>& both, int64_t which) {
  outputs<f16> one(shape, both.out.tokens / 2);
  for (int64_t token = 0; token < one.out.tokens; ++token) {
    for (int32_t head = 0; head < shape.num_qo_heads; ++head) {
      for (int32_t channel = 0; channel < shape.head_dim; ++channel)
        one.out.at(head, token, channel) = both.out.at(head, 2 * token + which, channel);
      one.lse[static_cast<size_t>(token * shape.num_qo_heads + head)] =
          both.lse[static_cast<size_t>((2 * token + which) * shape.num_qo_heads + head)];
    }
  }
  return one;
}

template <class Error, class Call>
std::string message_of(Call&& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  } catch (const std::exception& error) {
    return std::string("another exception: ") + error.what();
  }
  return "no exception";
}
bool says(const std::string& message, const char* words) {
  if (message.rfind("zipcache: ", 0) == 0 && message.find(words) != std::string::npos) return true;
  UNSCOPED_INFO("\"" << message << "\" lacks \"" << words << "\"");
  return false;
}

}  // namespace

TEST_CASE("kv_cache: a value that is not finite is reported on CUDA and stays with its sequence",
          "[kv_cache][cuda][faults]") {
  const token_data<f16> a(shape, 300, 1), b(shape, 300, 2);
  for (const float value :
       {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
    const pair_tokens fine(a, b), spoilt(a, b, 7, value), zeroed(a, b, 7, 0.0f);
    const auto run = [&](const pair_tokens& tokens, bool faulty, outputs<f16>& result) {
      cache_type cache(shape, {.max_sequences = 2, .max_tokens = 300});
      const std::vector<sequence_id> ids{cache.create(), cache.create()};
      result = decode_pair(cache, cache.make_batch(ids), tokens, 0, 300);
      if (faulty) REQUIRE(says(message_of<argument_error>([&] { cache.check(); }), "not finite"));
      cache.check();
      return std::vector<std::string>{device_snapshot(cache, ids[0]),
                                      device_snapshot(cache, ids[1])};
    };
    outputs<f16> fine_out(shape, 0), spoilt_out(shape, 0), zeroed_out(shape, 0);
    const auto fine_bytes = run(fine, false, fine_out);
    const auto spoilt_bytes = run(spoilt, true, spoilt_out);
    const auto zeroed_bytes = run(zeroed, false, zeroed_out);
    const bool other_unaffected =
        fine_bytes[1] == spoilt_bytes[1] && half_of(fine_out, 1) == half_of(spoilt_out, 1);
    REQUIRE(other_unaffected);
    const bool zero_in_its_place =
        zeroed_bytes[0] == spoilt_bytes[0] && half_of(zeroed_out, 0) == half_of(spoilt_out, 0);
    REQUIRE(zero_in_its_place);
  }
}

TEST_CASE("kv_cache: probe queries that were not attended are reported on CUDA",
          "[kv_cache][cuda][faults]") {
  const token_data<f16> data(shape, 400, 3);
  const device_tokens<f16> tokens(data);
  cache_type cache(shape, {.max_sequences = 2, .max_tokens = 400});
  const sequence_id id = cache.create(), other = cache.create();
  const auto batch = cache.make_batch(std::span(&id, 1));
  const int64_t pages = cache.num_available_pages();
  for (int64_t token = 0; token < 160; ++token)
    cache.append(batch, 0, tokens.k_row(token), tokens.v_row(token));
  cache.check();
  cache.append(batch, 0, tokens.k_row(160), tokens.v_row(160));
  REQUIRE(says(message_of<state_error>([&] { cache.check(); }), "attend"));
  REQUIRE(cache.read_length(id, 0) == 160);
  decode(cache, other, tokens, 0, 330);  // not affected
  cache.check();
  REQUIRE(cache.read_length(other, 0) == 330);
  cache.release(id);
  cache.release(other);
  REQUIRE(cache.num_available_pages() == pages);
  const sequence_id again = cache.create();
  decode(cache, again, tokens, 0, 330);
  cache.check();
}

TEST_CASE("kv_cache: what does not fit on CUDA is refused when the cache is made",
          "[kv_cache][cuda][errors]") {
  const auto refused = [](const zipcache::cache_shape& given, const device_limits& limits,
                          const cache_options& options) {
    return message_of<argument_error>([&] { cache_type(given, limits, options); });
  };
  REQUIRE(says(refused(shape, {.max_sequences = 0}, {}), "max_sequences"));
  REQUIRE(says(refused(shape, {.max_tokens = 0}, {}), "max_tokens"));
  REQUIRE(says(refused({1, 4, 2, 72}, {}, {}), "head_dim"));
  REQUIRE(says(refused({1, 4, 2, 96}, {}, {}), "ZIPCACHE_HEAD_DIMS"));  // not compiled here
  REQUIRE(says(refused({1, 4, 3, 64}, {}, {}), "num_qo_heads"));
  REQUIRE(says(refused(shape, {}, {.layer_policy = {0}}), "policy_table"));
  REQUIRE(says(refused(shape, {}, {.page_bytes = 64}), "page_bytes"));
  REQUIRE(says(refused(shape, {}, {.page_bytes = 8704 + 8}), "page_bytes"));
  REQUIRE(says(refused(shape, {}, {.salient_ratio = 1.5}), "salient_ratio"));
  REQUIRE(says(refused(shape, {}, {.recompress_interval = 100000}), "recompress_interval"));
  REQUIRE(says(refused(shape, {}, {.max_pages = -1}), "max_pages"));
}

TEST_CASE("kv_cache: refused calls on CUDA change nothing", "[kv_cache][cuda][errors]") {
  const token_data<f16> data(shape, 400, 4);
  const device_tokens<f16> tokens(data);
  cache_type cache(shape, {.max_sequences = 2, .max_tokens = 200});
  const sequence_id id = cache.create(), released = cache.create();
  cache.release(released);
  prefill(cache, id, tokens, 190);
  decode(cache, id, tokens, 190, 195);
  const std::string before = device_snapshot(cache, id);
  const int64_t pages = cache.num_available_pages();
  const auto batch = cache.make_batch(std::span(&id, 1));
  std::vector<f16> on_host(400 * q_row);
  auto out = poisoned<f16>(q_row);
  float host_lse[4];
  const auto refused = [&](auto&& call) { return message_of<argument_error>(call); };
  const auto view = [](const f16* data_at, int32_t heads, int64_t count, int32_t dim = 64) {
    return zipcache::nhd(data_at, count, heads, dim);
  };

  REQUIRE(says(refused([&] { cache.append(batch, 0, on_host.data(), tokens.v_row(0)); }),
               "host memory"));
  REQUIRE(says(refused([&] { cache.append(batch, 0, tokens.k_row(0), nullptr); }), "null"));
  REQUIRE(
      says(refused([&] { cache.append(batch, 1, tokens.k_row(0), tokens.v_row(0)); }), "layer"));
  REQUIRE(
      says(refused([&] { cache.attend(batch, 0, on_host.data(), out.data()); }), "host memory"));
  REQUIRE(says(refused([&] { cache.attend(batch, 0, tokens.q_row(0), on_host.data()); }),
               "host memory"));
  REQUIRE(says(refused([&] { cache.attend(batch, 0, tokens.q_row(0), out.data(), host_lse); }),
               "host memory"));
  REQUIRE(says(message_of<state_error>([&] {
                 cache.prefill(id, 0, tokens.q_part(0, 5), tokens.k_part(0, 5),
                               tokens.v_part(0, 5));
               }),
               "empty sequence"));
  REQUIRE(says(refused([&] { cache.reserve(id, 201); }), "num_tokens"));
  REQUIRE(says(refused([&] { cache.truncate(id, 189); }), "len"));
  REQUIRE(says(refused([&] { cache.truncate(id, 196); }), "len"));

  const sequence_id twice[] = {id, id};
  REQUIRE(says(refused([&] { cache.make_batch(twice); }), "twice"));
  const sequence_id foreign{7, 0};
  for (const sequence_id bad : {released, foreign, sequence_id{}}) {
    REQUIRE(says(refused([&] { cache.make_batch(std::span(&bad, 1)); }), "not in this cache"));
    REQUIRE(says(refused([&] { cache.release(bad); }), "not in this cache"));
    REQUIRE(says(refused([&] { cache.fork(bad); }), "not in this cache"));
    REQUIRE(says(refused([&] { (void)cache.length(bad); }), "not in this cache"));
  }

  const sequence_id fresh = cache.create();
  REQUIRE(says(message_of<capacity_error>([&] { cache.create(); }), "max_sequences"));
  REQUIRE(says(message_of<capacity_error>([&] { cache.fork(id); }), "max_sequences"));
  REQUIRE(says(refused([&] {
                 cache.prefill(fresh, 0, tokens.q_part(0, 201), tokens.k_part(0, 201),
                               tokens.v_part(0, 201));
               }),
               "k.num_tokens"));
  REQUIRE(says(refused([&] {
                 cache.prefill(fresh, 0, view(on_host.data(), 4, 9), tokens.k_part(0, 9),
                               tokens.v_part(0, 9));
               }),
               "host memory"));
  REQUIRE(says(refused([&] {
                 cache.prefill(fresh, 0, tokens.q_part(0, 9), view(on_host.data(), 2, 9),
                               tokens.v_part(0, 9));
               }),
               "host memory"));
  REQUIRE(says(refused([&] {
                 cache.prefill(fresh, 0, tokens.q_part(0, 9), tokens.k_part(0, 9),
                               tokens.v_part(0, 8));
               }),
               "num_tokens"));
  REQUIRE(says(refused([&] {
                 cache.prefill(fresh, 0, tokens.q_part(0, 9), tokens.k_part(0, 9),
                               tokens.v_part(0, 9), {.prompt_len = 8});
               }),
               "at most 8, which is what the prompt still lacks"));
  REQUIRE(says(refused([&] {
                 cache.prefill(fresh, 0, tokens.q_part(0, 9), tokens.k_part(0, 9),
                               tokens.v_part(0, 9), {.prompt_len = 201});
               }),
               "prompt_len"));
  REQUIRE(says(refused([&] {
                 cache.prefill(fresh, 0, tokens.q_part(0, 9), tokens.k_part(0, 9),
                               tokens.v_part(0, 9), {.prompt_len = -1});
               }),
               "prompt_len is -1"));
  REQUIRE(cache.length(fresh) == 0);
  REQUIRE(cache.read_length(fresh, 0) == 0);

  decode(cache, id, tokens, 195, 200);
  REQUIRE(says(refused([&] { cache.append(batch, 0, tokens.k_row(0), tokens.v_row(0)); }),
               "max_tokens"));
  cache.truncate(id, 195);
  cache.check();
  REQUIRE(cache.num_available_pages() == pages);
  const bool unchanged = device_snapshot(cache, id) == before;
  REQUIRE(unchanged);
}

TEST_CASE("kv_cache: a prompt that is not complete on CUDA takes its chunks and nothing else",
          "[kv_cache][cuda][errors]") {
  const token_data<f16> data(shape, 200, 8);
  const device_tokens<f16> tokens(data);
  cache_type cache(shape, {.max_sequences = 2, .max_tokens = 200});
  const sequence_id whole = cache.create(), waiting = cache.create();
  prefill(cache, whole, tokens, 180);
  const auto bring = [&](int64_t first, int64_t count, const zipcache::prefill_options& options) {
    return [&cache, &tokens, waiting, first, count, options] {
      cache.prefill(waiting, 0, tokens.q_part(first, count), tokens.k_part(first, count),
                    tokens.v_part(first, count), options);
    };
  };
  bring(0, 110, {.prompt_len = 180})();
  REQUIRE(cache.length(waiting) == 110);
  REQUIRE(cache.sealed_length(waiting) == 0);
  REQUIRE(cache.footprint().num_tokens == 290);
  const int64_t pages = cache.num_available_pages();

  const auto batch = cache.make_batch(std::span(&waiting, 1));
  auto out = poisoned<f16>(static_cast<size_t>(q_row));
  auto floats = poisoned<float>(static_cast<size_t>(110 * k_row));
  const auto all = zipcache::hnd(floats.data(), shape.num_kv_heads, 110, shape.head_dim);
  const auto too_early = [&](auto&& call) { return message_of<state_error>(call); };
  REQUIRE(says(too_early([&] { cache.append(batch, 0, tokens.k_row(0), tokens.v_row(0)); }),
               "append before the prompt is complete: 110 of 180 tokens are there"));
  REQUIRE(says(too_early([&] { cache.attend(batch, 0, tokens.q_row(0), out.data()); }),
               "attend before the prompt is complete"));
  REQUIRE(says(too_early([&] { cache.truncate(waiting, 5); }),
               "truncate before the prompt is complete"));
  REQUIRE(says(too_early([&] { cache.dequantize(waiting, 0, all, all); }),
               "dequantize before the prompt is complete"));
  REQUIRE(says(too_early([&] { cache.read_layer(waiting, 0); }), "before its prompt is complete"));

  const std::vector<float> zeros(static_cast<size_t>(70 * shape.num_qo_heads));
  const device_array<float> lse = upload(zeros);
  const std::vector<int64_t> rows{1, 2};
  const auto refused = [&](auto&& call) { return message_of<argument_error>(call); };
  REQUIRE(says(refused(bring(110, 71, {.prompt_len = 180})), "at most 70"));
  REQUIRE(says(refused(bring(110, 70, {.prompt_len = 181})), "the same in every chunk"));
  REQUIRE(says(refused(bring(110, 70, {})), "prompt_len is 70"));
  REQUIRE(says(
      refused(bring(110, 70,
                    {.prompt_len = 180, .lse = std::span<const float>(lse.data(), lse.size())})),
      "lse must be given with every chunk of a prompt or with none"));
  REQUIRE(says(refused(bring(110, 70, {.prompt_len = 180, .probe_rows = rows})), "given_probes"));
  REQUIRE(cache.length(waiting) == 110);
  REQUIRE(cache.num_available_pages() == pages);

  bring(110, 70, {.prompt_len = 180})();
  REQUIRE(says(too_early(bring(180, 1, {})), "needs an empty sequence; this one has 180 tokens"));
  const bool same = device_snapshot(cache, waiting) == device_snapshot(cache, whole);
  REQUIRE(same);
  cache.check();
}

TEST_CASE("kv_cache: chunks on CUDA that no pages are left for wait on",
          "[kv_cache][cuda][errors]") {
  const token_data<f16> data(shape, 400, 9);
  const device_tokens<f16> tokens(data);
  cache_type cache(shape, {.max_sequences = 2, .max_tokens = 400}, {.max_pages = 7});
  const sequence_id other = cache.create(), waiting = cache.create();
  prefill(cache, other, tokens, 160);
  const auto bring = [&](int64_t first, int64_t count) {
    cache.prefill(waiting, 0, tokens.q_part(first, count), tokens.k_part(first, count),
                  tokens.v_part(first, count), {.prompt_len = 400});
  };
  bring(0, 300);
  const int64_t pages = cache.num_available_pages();
  REQUIRE(says(message_of<capacity_error>([&] { bring(300, 100); }), "max_pages"));
  REQUIRE(cache.num_available_pages() == pages);
  REQUIRE(cache.length(waiting) == 300);
  cache.release(other);
  bring(300, 100);
  REQUIRE(cache.read_length(waiting, 0) == 400);
  cache.check();
}

TEST_CASE("kv_cache: a pool that is exhausted on CUDA refuses and keeps what is there",
          "[kv_cache][cuda][errors]") {
  const token_data<f16> a(shape, 400, 5), b(shape, 400, 6);
  const pair_tokens both(a, b);
  const device_tokens<f16> tokens(a);
  // Room for one flush of one sequence and half of another's.
  cache_type cache(shape, {.max_sequences = 3, .max_tokens = 1000}, {.max_pages = 3});
  const std::vector<sequence_id> ids{cache.create(), cache.create()};
  const auto batch = cache.make_batch(ids);
  decode_pair(cache, batch, both, 0, 160);
  const std::string before[] = {device_snapshot(cache, ids[0]), device_snapshot(cache, ids[1])};
  REQUIRE(says(message_of<capacity_error>([&] {
                 cache.append(batch, 0, both.k.data() + 160 * 2 * k_row,
                              both.v.data() + 160 * 2 * k_row);
               }),
               "max_pages"));
  REQUIRE(cache.num_available_pages() == 3);
  for (int i = 0; i < 2; ++i) {
    REQUIRE(cache.length(ids[static_cast<size_t>(i)]) == 160);
    const bool unchanged = device_snapshot(cache, ids[static_cast<size_t>(i)]) == before[i];
    REQUIRE(unchanged);
  }
  const sequence_id prompt = cache.create();
  REQUIRE(
      says(message_of<capacity_error>([&] { prefill(cache, prompt, tokens, 400); }), "max_pages"));
  REQUIRE(cache.num_available_pages() == 3);
  REQUIRE(cache.length(prompt) == 0);
  REQUIRE(says(message_of<capacity_error>([&] { cache.reserve(prompt, 1000); }), "max_pages"));
  prefill(cache, prompt, tokens, 100);  // fits
  REQUIRE(cache.num_available_pages() == 1);
  cache.release(prompt);
  cache.release(ids[1]);
  decode(cache, ids[0], tokens, 160, 200);
  cache.check();
  REQUIRE(cache.length(ids[0]) == 200);
}

TEST_CASE("kv_cache: pages beyond 4 GiB on CUDA are as good as the first",
          "[kv_cache][cuda][large]") {
  size_t free_bytes = 0, total_bytes = 0;
  zipcache::detail::check_cuda("cudaMemGetInfo", cudaMemGetInfo(&free_bytes, &total_bytes));
  if (free_bytes < size_t{16} << 30) {
    WARN("skipped: needs 16 GiB of free device memory");
    return;
  }
  constexpr int64_t page_bytes = int64_t{256} << 10;
  constexpr int64_t pages = int64_t{6} << 30 >> 18;
  constexpr int64_t prompt = 3000, last = 3400;
  const token_data<f16> data(shape, last, 7);
  const device_tokens<f16> tokens(data);
  const auto run = [&](int64_t max_pages, bool at_the_end) {
    cache_type cache(shape, {.max_sequences = 2, .max_tokens = 160 * (pages / 2)},
                     {.max_pages = max_pages, .page_bytes = page_bytes});
    const sequence_id dummy = cache.create(), id = cache.create();
    if (at_the_end) {
      cache.reserve(dummy, 160 * ((pages - 200) / 2));
      REQUIRE(cache.num_available_pages() <= 202);
    }
    prefill(cache, id, tokens, prompt);
    auto result = decode(cache, id, tokens, prompt, last);
    cache.check();
    if (at_the_end) {
      const auto& layer = cache.layer(0);
      const auto index = static_cast<int32_t>(id.index);
      const auto entry = fetch(layer.table_of(index, 1), 1)[0];
      REQUIRE(static_cast<int64_t>(entry.page) * layer.page_code_bytes > int64_t{5} << 30);
    }
    return std::pair{std::move(result), device_snapshot(cache, id)};
  };
  const auto near = run(200, false);
  const auto far = run(pages, true);
  const bool same_out = near.first == far.first;
  REQUIRE(same_out);
  const bool same_bytes = near.second == far.second;
  REQUIRE(same_bytes);
}

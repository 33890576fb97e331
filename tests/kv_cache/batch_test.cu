// Many sequences in one cache on CUDA: ragged batches, reused slots, forks, truncation. A
// sequence's bytes do not depend on the others. Its outputs are those of the sequence alone up to
// the order of sums, since how a launch is divided over the GPU depends on the whole batch; in
// launches of the same shape they are the same bit for bit.
#define ZIPCACHE_HEAD_DIMS 64

#include <map>
#include <numeric>

#include "decode_equality.cuh"

using namespace zipcache_test;
using f16 = zipcache::half;
using paper = zipcache::presets::paper;

namespace {

constexpr zipcache::cache_shape shape{
    .num_layers = 1, .num_qo_heads = 8, .num_kv_heads = 2, .head_dim = 64};
constexpr int64_t prompts[] = {0, 1, 31, 33, 100, 1000, 5000};
constexpr int32_t num_prompts = 7;
constexpr int64_t steps = 170;

const token_data<f16>& data_of(int32_t i) {
  static std::map<int32_t, token_data<f16>> all;
  auto found = all.find(i);
  if (found == all.end()) {
    found = all.emplace(i, separated_tokens<f16>(shape, prompts[i] + steps,
                                                 static_cast<uint64_t>(100 + i), {3, 5}))
                .first;
  }
  return found->second;
}

/// What one sequence of a batch gave.
struct sequence_result {
  outputs<f16> first;  ///< of attention before anything was appended
  outputs<f16> decoded;
  std::string bytes;
};

/// Prefills and decodes some of the prompts in one cache and one batch, in the order given.
std::map<int32_t, sequence_result> run(const std::vector<int32_t>& members) {
  device_cache<f16, paper> cache(
      shape, {.max_sequences = num_prompts + 1, .max_tokens = prompts[num_prompts - 1] + steps});
  const auto count = static_cast<int64_t>(members.size());
  std::vector<device_tokens<f16>> data;
  std::vector<zipcache::sequence_id> ids;
  for (const int32_t i : members) {
    data.emplace_back(data_of(i));
    ids.push_back(cache.create());
    if (prompts[i] > 0) prefill(cache, ids.back(), data.back(), prompts[i]);
  }
  const zipcache::sequence_list batch = cache.make_batch(ids);
  const int64_t q_row = int64_t{shape.num_qo_heads} * shape.head_dim;
  const int64_t k_row = int64_t{shape.num_kv_heads} * shape.head_dim;
  auto q = poisoned<f16>(static_cast<size_t>(count * q_row));
  auto k = poisoned<f16>(static_cast<size_t>(count * k_row));
  auto v = poisoned<f16>(static_cast<size_t>(count * k_row));
  // One more row of outputs, for attention before the first step.
  auto out = poisoned<f16>(static_cast<size_t>((steps + 1) * count * q_row));
  auto lse = poisoned<float>(static_cast<size_t>((steps + 1) * count * shape.num_qo_heads));
  const auto copy = [](f16* to, const f16* from, int64_t elements) {
    zipcache::detail::check_cuda(
        "cudaMemcpyAsync", cudaMemcpyAsync(to, from, static_cast<size_t>(elements) * sizeof(f16),
                                           cudaMemcpyDeviceToDevice, nullptr));
  };
  for (int64_t step = -1; step < steps; ++step) {
    for (int64_t item = 0; item < count; ++item) {
      const auto& tokens = data[static_cast<size_t>(item)];
      const int64_t token =
          prompts[members[static_cast<size_t>(item)]] + std::max<int64_t>(step, 0);
      copy(q.data() + item * q_row, tokens.q_row(token), q_row);
      copy(k.data() + item * k_row, tokens.k_row(token), k_row);
      copy(v.data() + item * k_row, tokens.v_row(token), k_row);
    }
    if (step >= 0) cache.append(batch, 0, k.data(), v.data());
    cache.attend(batch, 0, q.data(), out.data() + (step + 1) * count * q_row,
                 lse.data() + (step + 1) * count * shape.num_qo_heads);
  }
  cache.check();
  const auto all_out = download(out);
  const auto all_lse = download(lse);
  std::map<int32_t, sequence_result> results;
  for (int64_t item = 0; item < count; ++item) {
    std::vector<f16> own_out;
    std::vector<float> own_lse;
    for (int64_t step = 0; step <= steps; ++step) {
      const auto o = all_out.begin() + (step * count + item) * q_row;
      const auto l = all_lse.begin() + (step * count + item) * shape.num_qo_heads;
      own_out.insert(own_out.end(), o, o + q_row);
      own_lse.insert(own_lse.end(), l, l + shape.num_qo_heads);
    }
    const std::vector<f16> later_out(own_out.begin() + q_row, own_out.end());
    const std::vector<float> later_lse(own_lse.begin() + shape.num_qo_heads, own_lse.end());
    own_out.resize(static_cast<size_t>(q_row));
    own_lse.resize(static_cast<size_t>(shape.num_qo_heads));
    results.emplace(members[static_cast<size_t>(item)],
                    sequence_result{outputs_of<f16>(shape, 1, own_out, own_lse),
                                    outputs_of<f16>(shape, steps, later_out, later_lse),
                                    device_snapshot(cache, ids[static_cast<size_t>(item)])});
  }
  return results;
}

void check_same(int32_t i, const sequence_result& a, const sequence_result& b) {
  INFO("prompt of " << prompts[i]);
  const token_data<f16>& data = data_of(i);
  const magnitudes<f16> largest(data);
  check_outputs(shape, data, largest, prompts[i], a.decoded, b.decoded);
  const bool same_bytes = a.bytes == b.bytes;
  REQUIRE(same_bytes);
}

/// A cache that has room for anything below.
device_cache<f16, paper> make_cache(int32_t sequences = 4) {
  return device_cache<f16, paper>(shape, {.max_sequences = sequences, .max_tokens = 1200});
}

/// The tokens of `head` up to `first`, then those of `tail`.
token_data<f16> joined(const token_data<f16>& head, const token_data<f16>& tail, int64_t first) {
  token_data<f16> data = tail;
  const auto copy = [first](const tensor<f16>& from, tensor<f16>& to) {
    for (int32_t h = 0; h < from.heads; ++h) {
      for (int64_t token = 0; token < first; ++token) {
        for (int32_t channel = 0; channel < from.dim; ++channel)
          to.at(h, token, channel) = from.at(h, token, channel);
      }
    }
  };
  copy(head.q, data.q);
  copy(head.k, data.k);
  copy(head.v, data.v);
  return data;
}

/// Outputs of tokens [prompt, last) of a sequence alone in its cache, and its bytes at the end.
std::pair<outputs<f16>, std::string> fresh_run(const token_data<f16>& data, int64_t prompt,
                                               int64_t last) {
  auto cache = make_cache();
  const device_tokens<f16> tokens(data);
  const zipcache::sequence_id id = cache.create();
  prefill(cache, id, tokens, prompt);
  outputs<f16> result = decode(cache, id, tokens, prompt, last);
  cache.check();
  return {std::move(result), device_snapshot(cache, id)};
}

/// Rows [first, ...) of some outputs.
outputs<f16> tail_of(const outputs<f16>& all, int64_t first) {
  outputs<f16> tail(shape, all.out.tokens - first);
  for (int32_t head = 0; head < shape.num_qo_heads; ++head) {
    for (int64_t token = 0; token < tail.out.tokens; ++token) {
      for (int32_t channel = 0; channel < shape.head_dim; ++channel)
        tail.out.at(head, token, channel) = all.out.at(head, first + token, channel);
    }
  }
  std::copy(all.lse.begin() + first * shape.num_qo_heads, all.lse.end(), tail.lse.begin());
  return tail;
}

}  // namespace

TEST_CASE("kv_cache: a ragged batch on CUDA gives what its sequences give alone",
          "[kv_cache][cuda][batch]") {
  std::vector<int32_t> all(num_prompts);
  std::iota(all.begin(), all.end(), 0);
  const auto together = run(all);
  for (const int32_t i : all) {
    const auto alone = run({i});
    check_same(i, together.at(i), alone.at(i));
  }
  // The empty sequence attended before it had a token.
  const sequence_result& empty = together.at(0);
  const bool zeros = std::all_of(empty.first.out.values.begin(), empty.first.out.values.end(),
                                 [](f16 x) { return x.bits == 0; });
  REQUIRE(zeros);
  const bool no_mass = std::all_of(empty.first.lse.begin(), empty.first.lse.end(), [](float x) {
    return x == -std::numeric_limits<float>::infinity();
  });
  REQUIRE(no_mass);
}

// With more (sequences, KV heads) than blocks, a block begins with the next one where its ring of
// tiles happens to be.
TEST_CASE("kv_cache: a batch of more sequences than blocks on CUDA gives what they give alone",
          "[kv_cache][cuda][batch]") {
  const int32_t num_items =
      zipcache::detail::num_multiprocessors() * zipcache::detail::most_attend_blocks;
  auto cache = make_cache(num_items);
  const int32_t originals[] = {5, 4, 3};
  std::vector<device_tokens<f16>> data;
  std::vector<zipcache::sequence_id> ids;
  for (const int32_t i : originals) {
    data.emplace_back(data_of(i));
    ids.push_back(cache.create());
    prefill(cache, ids.back(), data.back(), prompts[i]);
  }
  while (ids.size() < static_cast<size_t>(num_items))
    ids.push_back(cache.fork(ids[ids.size() % 3]));
  const int64_t row = int64_t{shape.num_qo_heads} * shape.head_dim;
  const auto attend = [&](const std::vector<zipcache::sequence_id>& members, size_t first) {
    const auto count = static_cast<int64_t>(members.size());
    auto q = poisoned<f16>(static_cast<size_t>(count * row));
    auto out = poisoned<f16>(static_cast<size_t>(count * row));
    auto lse = poisoned<float>(static_cast<size_t>(count * shape.num_qo_heads));
    for (int64_t item = 0; item < count; ++item) {
      const size_t i = (first + static_cast<size_t>(item)) % 3;
      zipcache::detail::check_cuda(
          "cudaMemcpy",
          cudaMemcpy(q.data() + item * row, data[i].q_row(prompts[originals[i]]),
                     static_cast<size_t>(row) * sizeof(f16), cudaMemcpyDeviceToDevice));
    }
    cache.attend(cache.make_batch(members), 0, q.data(), out.data(), lse.data());
    cache.check();
    return std::pair(download(out), download(lse));
  };
  const auto together = attend(ids, 0);
  for (size_t i = 0; i < 3; ++i) {
    const auto alone = attend({ids[i]}, i);
    const outputs<f16> expected = outputs_of<f16>(shape, 1, alone.first, alone.second);
    const token_data<f16>& tokens = data_of(originals[i]);
    const magnitudes<f16> largest(tokens);
    for (size_t item = i; item < ids.size(); item += 3) {
      INFO("item " << item);
      const auto out = together.first.begin() + static_cast<int64_t>(item) * row;
      const auto lse = together.second.begin() + static_cast<int64_t>(item) * shape.num_qo_heads;
      check_outputs(shape, tokens, largest, prompts[originals[i]],
                    outputs_of<f16>(shape, 1, {out, out + row}, {lse, lse + shape.num_qo_heads}),
                    expected);
    }
  }
}

TEST_CASE("kv_cache: the order of a batch on CUDA does not matter", "[kv_cache][cuda][batch]") {
  const auto ascending = run({0, 1, 2, 3, 4, 5, 6});
  const auto shuffled = run({5, 0, 3, 6, 1, 4, 2});
  for (int32_t i = 0; i < num_prompts; ++i) check_same(i, ascending.at(i), shuffled.at(i));
}

TEST_CASE("kv_cache: a run on CUDA is repeated bit for bit", "[kv_cache][cuda][batch]") {
  const auto first = run({5, 4, 6});
  for (int repetition = 0; repetition < 2; ++repetition) {
    const auto again = run({5, 4, 6});
    for (const int32_t i : {4, 5, 6}) {
      const bool same =
          first.at(i).decoded == again.at(i).decoded && first.at(i).bytes == again.at(i).bytes;
      REQUIRE(same);
    }
  }
}

TEST_CASE("kv_cache: a slot that was used before is as good as new on CUDA",
          "[kv_cache][cuda][batch]") {
  const token_data<f16> before(shape, 700, 21);
  const token_data<f16> after(shape, 450, 22);
  auto cache = make_cache(1);
  const int64_t pages = cache.num_available_pages();
  const zipcache::sequence_id old = cache.create();
  const device_tokens<f16> old_tokens(before);
  prefill(cache, old, old_tokens, 500);
  decode(cache, old, old_tokens, 500, 700);
  cache.release(old);
  REQUIRE(cache.num_available_pages() == pages);
  const zipcache::sequence_id id = cache.create();
  REQUIRE(id.index == old.index);
  const device_tokens<f16> tokens(after);
  prefill(cache, id, tokens, 100);
  const auto expected = fresh_run(after, 100, 450);
  const bool same_out = decode(cache, id, tokens, 100, 450) == expected.first;
  REQUIRE(same_out);
  const bool same_bytes = device_snapshot(cache, id) == expected.second;
  REQUIRE(same_bytes);
}

TEST_CASE("kv_cache: a fork on CUDA shares pages and goes its own way", "[kv_cache][cuda][batch]") {
  constexpr int64_t prompt = 300, forked = 390, last = 700;
  const token_data<f16> data(shape, last, 31);
  const token_data<f16> other = joined(data, token_data<f16>(shape, last, 32), forked);
  const device_tokens<f16> tokens(data), other_tokens(other);
  auto cache = make_cache();
  const int64_t all_pages = cache.num_available_pages();
  const zipcache::sequence_id original = cache.create();
  prefill(cache, original, tokens, prompt);
  decode(cache, original, tokens, prompt, forked);
  const int64_t pages = cache.num_available_pages();
  const zipcache::footprint bytes = cache.footprint();
  const zipcache::sequence_id copy = cache.fork(original);
  REQUIRE(cache.num_available_pages() == pages);
  REQUIRE(cache.footprint().code_bytes == bytes.code_bytes);
  REQUIRE(cache.footprint().padding_bytes == bytes.padding_bytes);
  REQUIRE(cache.footprint().num_tokens == 2 * bytes.num_tokens);
  const bool same = device_snapshot(cache, copy) == device_snapshot(cache, original);
  REQUIRE(same);

  // Turn by turn, so that each could spoil the other.
  const auto expected = fresh_run(data, prompt, last);
  const auto other_expected = fresh_run(other, prompt, last);
  for (int64_t first = forked; first < last; first += 31) {
    const int64_t end = std::min(first + 31, last);
    const auto part = decode(cache, original, tokens, first, end);
    const auto other_part = decode(cache, copy, other_tokens, first, end);
    const auto rows = [&](const outputs<f16>& x) {
      outputs<f16> all = tail_of(x, first - prompt);
      outputs<f16> some(shape, end - first);
      for (int32_t head = 0; head < shape.num_qo_heads; ++head) {
        for (int64_t token = 0; token < end - first; ++token) {
          for (int32_t channel = 0; channel < shape.head_dim; ++channel)
            some.out.at(head, token, channel) = all.out.at(head, token, channel);
        }
      }
      std::copy_n(all.lse.begin(), some.lse.size(), some.lse.begin());
      return some;
    };
    const bool same_out = part == rows(expected.first);
    REQUIRE(same_out);
    const bool same_other_out = other_part == rows(other_expected.first);
    REQUIRE(same_other_out);
  }
  cache.check();
  const bool same_bytes = device_snapshot(cache, original) == expected.second;
  REQUIRE(same_bytes);
  cache.release(original);
  const bool same_other_bytes = device_snapshot(cache, copy) == other_expected.second;
  REQUIRE(same_other_bytes);
  cache.release(copy);
  REQUIRE(cache.num_available_pages() == all_pages);
}

TEST_CASE("kv_cache: what was truncated on CUDA leaves no trace", "[kv_cache][cuda][batch]") {
  constexpr int64_t prompt = 200, last = 600;
  for (const int64_t cut : {200, 201, 231, 232, 299}) {
    const token_data<f16> data(shape, last, 41);
    const token_data<f16> other = joined(data, token_data<f16>(shape, last, 42), cut);
    const device_tokens<f16> tokens(data), other_tokens(other);
    auto cache = make_cache();
    const zipcache::sequence_id id = cache.create();
    prefill(cache, id, tokens, prompt);
    decode(cache, id, tokens, prompt, 300);
    cache.truncate(id, cut);
    REQUIRE(cache.length(id) == cut);
    REQUIRE(cache.read_length(id, 0) == cut);
    const auto result = decode(cache, id, other_tokens, cut, last);
    const auto expected = fresh_run(other, prompt, last);
    INFO("cut at " << cut);
    const bool same_out = result == tail_of(expected.first, cut - prompt);
    REQUIRE(same_out);
    cache.check();
    const bool same_bytes = device_snapshot(cache, id) == expected.second;
    REQUIRE(same_bytes);
  }
}

TEST_CASE("kv_cache: truncation into the prompt's part of the window equals the CPU's on CUDA",
          "[kv_cache][cuda][batch]") {
  // Rows of the prompt that come again as new ones are probes then.
  using policies = paper::with<zipcache::blocks_behind_window<32, 128>>;
  const auto data = separated_tokens<f16>(shape, 400, 51, {3, 5});
  const device_tokens<f16> tokens(data);
  zipcache::kv_cache<f16, policies> cpu(shape);
  device_cache<f16, policies> gpu(shape, {.max_sequences = 1, .max_tokens = 400});
  const zipcache::sequence_id cpu_id = cpu.create(), gpu_id = gpu.create();
  prefill(cpu, cpu_id, data, 155);
  prefill(gpu, gpu_id, tokens, 155);
  cpu.truncate(cpu_id, 135);
  gpu.truncate(gpu_id, 135);
  const auto expected = decode(cpu, cpu_id, data, 135, 400);
  check_outputs(shape, data, magnitudes<f16>(data), 135, expected,
                decode(gpu, gpu_id, tokens, 135, 400));
  gpu.check();
  const bool same = device_snapshot(gpu, gpu_id) == snapshot(cpu, cpu_id);
  REQUIRE(same);
}

namespace {

/// Prompts cut at all kinds of places, against the same prompts in one call.
template <class Policies>
void check_chunks() {
  INFO(Policies::name());
  zipcache::cache_shape two_layers = shape;
  two_layers.num_layers = 2;
  const token_data<f16> data(two_layers, 420, 61);
  const device_tokens<f16> tokens(data);
  for (const int64_t length : {1, 33, 160, 399}) {
    device_cache<f16, Policies> cache(two_layers, {.max_sequences = 2, .max_tokens = 420});
    const int64_t pages = cache.num_available_pages();
    const zipcache::sequence_id whole = cache.create();
    prefill(cache, whole, tokens, length);
    const int64_t pages_left = cache.num_available_pages();
    const std::string expected = device_snapshot(cache, whole);
    const auto expected_out = decode(cache, whole, tokens, length, length + 20);
    // Somewhere in the middle, behind the first token, before the last one, and empty chunks.
    const std::vector<std::vector<int64_t>> all_cuts{
        {length / 2}, {0, 1, 1}, {length - 1}, {length / 3, length / 3, length / 2, length - 1}};
    for (std::vector<int64_t> cuts : all_cuts) {
      std::erase_if(cuts, [length](int64_t cut) { return cut >= length; });
      INFO(length << " tokens, " << cuts.size() << " cuts");
      const zipcache::sequence_id chunked = cache.create();
      prefill_in_chunks(cache, chunked, tokens, length, cuts);
      REQUIRE(cache.length(chunked) == length);
      REQUIRE(cache.read_length(chunked, 1) == length);
      const bool same = device_snapshot(cache, chunked) == expected;
      REQUIRE(same);
      const bool same_out = decode(cache, chunked, tokens, length, length + 20) == expected_out;
      REQUIRE(same_out);
      cache.release(chunked);
    }
    cache.check();
    REQUIRE(cache.num_available_pages() <= pages_left);
    cache.release(whole);
    REQUIRE(cache.num_available_pages() == pages);
  }
}

}  // namespace

TEST_CASE("kv_cache: a prompt in chunks on CUDA is the prompt in one call, byte for byte",
          "[kv_cache][cuda][batch]") {
  check_chunks<paper>();
  check_chunks<paper::with<zipcache::sink_tokens<4>>>();
  check_chunks<zipcache::presets::kivi_2bit>();
  check_chunks<zipcache::presets::uncompressed>();
}

TEST_CASE("kv_cache: chunks with their log-sum-exp on CUDA are the prompt in one call with it",
          "[kv_cache][cuda][batch]") {
  constexpr int64_t length = 197;
  const token_data<f16> data(shape, length, 62);
  const device_tokens<f16> tokens(data);
  // Any numbers near the true log-sum-exp do: both runs must use the same ones.
  std::vector<float> host_lse(static_cast<size_t>(length * shape.num_qo_heads));
  generator random(63);
  for (float& x : host_lse) x = static_cast<float>(6.0 + random.normal());
  const device_array<float> lse = upload(host_lse);
  auto cache = make_cache();
  const zipcache::sequence_id whole = cache.create(), chunked = cache.create();
  cache.prefill(whole, 0, tokens.q_part(0, length), tokens.k_part(0, length),
                tokens.v_part(0, length), {.lse = std::span(lse.data(), lse.size())});
  prefill_in_chunks(cache, chunked, tokens, length, std::vector<int64_t>{40, 41, 190}, lse.data());
  const std::string expected = device_snapshot(cache, whole);
  const bool same = device_snapshot(cache, chunked) == expected;
  REQUIRE(same);
  // The given numbers were used: without them the scores, and so the selection, are others.
  const zipcache::sequence_id without = cache.create();
  prefill(cache, without, tokens, length);
  const bool differs = device_snapshot(cache, without) != expected;
  REQUIRE(differs);
  cache.check();
}

TEST_CASE("kv_cache: a fork in the middle of a prompt on CUDA completes it by itself",
          "[kv_cache][cuda][batch]") {
  const token_data<f16> data(shape, 200, 64);
  const device_tokens<f16> tokens(data);
  auto cache = make_cache();
  const zipcache::sequence_id whole = cache.create();
  prefill(cache, whole, tokens, 200);
  const zipcache::sequence_id first = cache.create();
  const auto bring = [&](zipcache::sequence_id id, int64_t from, int64_t count) {
    cache.prefill(id, 0, tokens.q_part(from, count), tokens.k_part(from, count),
                  tokens.v_part(from, count), {.prompt_len = 200});
  };
  bring(first, 0, 90);
  const zipcache::sequence_id second = cache.fork(first);
  REQUIRE(cache.length(second) == 90);
  bring(first, 90, 110);
  cache.release(first);
  bring(second, 90, 30);
  bring(second, 120, 80);
  const bool same = device_snapshot(cache, second) == device_snapshot(cache, whole);
  REQUIRE(same);
  // A sequence that is released in the middle of its prompt leaves nothing behind.
  const zipcache::sequence_id dropped = cache.create();
  bring(dropped, 0, 150);
  cache.release(dropped);
  const zipcache::sequence_id again = cache.create();
  REQUIRE(cache.length(again) == 0);
  prefill(cache, again, tokens, 200);
  const bool same_again = device_snapshot(cache, again) == device_snapshot(cache, whole);
  REQUIRE(same_again);
  cache.check();
}

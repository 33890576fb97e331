// Sequences that move between the CPU and the GPU.
#define ZIPCACHE_HEAD_DIMS 64

#include <zipcache/store/transfer.cuh>

#include "decode_equality.cuh"

using namespace zipcache_test;
using f16 = zipcache::half;
using paper = zipcache::presets::paper;

namespace {

constexpr int64_t steps = 200;

struct place {
  int64_t prompt;
  int64_t decoded;
};

/// A sequence that has come so far on the CPU goes up, and one that has come so far on the GPU goes
/// down; the bytes are the same, and so is all that follows.
template <class Policies>
void check_transfer(const place& where, const zipcache::cache_options& options = {}) {
  INFO(Policies::name() << ": after a prompt of " << where.prompt << " and " << where.decoded
                        << " more tokens");
  zipcache::cache_shape shape = group_shape(2, 64);
  shape.num_layers = 2;
  const int64_t first = where.prompt + where.decoded;
  const auto data = separated_tokens<f16>(shape, first + steps, 3, strong_tokens_of<Policies>());
  const device_tokens<f16> on_device(data);
  const magnitudes<f16> largest(data);
  zipcache::kv_cache<f16, Policies> cpu(shape, options);
  device_cache<f16, Policies> gpu(shape, {.max_sequences = 4, .max_tokens = first + steps},
                                  options);
  const zipcache::sequence_id made_on_cpu = cpu.create();
  const zipcache::sequence_id made_on_gpu = gpu.create();
  if (where.prompt > 0) {
    prefill(cpu, made_on_cpu, data, where.prompt);
    prefill(gpu, made_on_gpu, on_device, where.prompt);
  }
  decode(cpu, made_on_cpu, data, where.prompt, first);
  decode(gpu, made_on_gpu, on_device, where.prompt, first);

  const zipcache::sequence_id up = zipcache::upload(cpu, made_on_cpu, gpu);
  const zipcache::sequence_id down = zipcache::download(gpu, made_on_gpu, cpu);
  REQUIRE(gpu.length(up) == first);
  REQUIRE(gpu.sealed_length(up, 1) == cpu.sealed_length(made_on_cpu, 1));
  const bool same_up = device_snapshot(gpu, up) == snapshot(cpu, made_on_cpu);
  REQUIRE(same_up);
  const bool same_down = snapshot(cpu, down) == device_snapshot(gpu, made_on_gpu);
  REQUIRE(same_down);
  // There and back again.
  const zipcache::sequence_id back = zipcache::download(gpu, up, cpu);
  const bool same_back = snapshot(cpu, back) == snapshot(cpu, made_on_cpu);
  REQUIRE(same_back);

  // On the CPU a sequence that was away continues bit for bit; between backends within rounding.
  const auto expected = decode(cpu, made_on_cpu, data, first, first + steps);
  REQUIRE(decode(cpu, back, data, first, first + steps) == expected);
  check_outputs(shape, data, largest, first, decode(cpu, down, data, first, first + steps),
                expected);
  check_outputs(shape, data, largest, first, expected,
                decode(gpu, up, on_device, first, first + steps));
  check_outputs(shape, data, largest, first, expected,
                decode(gpu, made_on_gpu, on_device, first, first + steps));
  gpu.check();
  const std::string last = snapshot(cpu, made_on_cpu);
  const bool all_same = snapshot(cpu, down) == last && device_snapshot(gpu, up) == last &&
                        device_snapshot(gpu, made_on_gpu) == last;
  REQUIRE(all_same);
}

}  // namespace

TEST_CASE("transfer: a sequence moves byte for byte and continues on either side",
          "[transfer][cuda]") {
  for (const place& where : {place{0, 0}, place{0, 100}, place{0, 161}, place{200, 0},
                             place{200, 77}, place{200, 160}, place{200, 330}})
    check_transfer<paper>(where);
}

TEST_CASE("transfer: sinks, a window of recent tokens and its ring move as well",
          "[transfer][cuda]") {
  using with_sinks = paper::with<zipcache::sink_tokens<4>>;
  zipcache::cache_options options;
  options.recent_window = 32;
  for (const place& where : {place{3, 0}, place{3, 250}, place{100, 5}, place{100, 400}})
    check_transfer<with_sinks>(where, options);
}

TEST_CASE("transfer: refuses caches whose sequences could not continue alike", "[transfer][cuda]") {
  const zipcache::cache_shape shape = group_shape(2, 64);
  const token_data<f16> data(shape, 300, 1);
  zipcache::kv_cache<f16> cpu(shape);
  const zipcache::sequence_id id = cpu.create();
  prefill(cpu, id, data, 300);
  const auto refuses = [&](const zipcache::device_limits& limits,
                           const zipcache::cache_options& options) {
    device_cache<f16, paper> other(shape, limits, options);
    REQUIRE_THROWS_AS(zipcache::upload(cpu, id, other), zipcache::argument_error);
    other.create();  // the only slot is free
  };
  refuses({1, 299}, {});
  refuses({1, 1000}, {.seed = 1});
  refuses({1, 1000}, {.salient_ratio = 0.5});
  refuses({1, 1000}, {.recompress_interval = 64});
  refuses({1, 1000}, {.page_bytes = 8192});

  device_cache<f16, paper> full(shape, {1, 1000}, {.max_pages = 3});
  REQUIRE_THROWS_AS(zipcache::upload(cpu, id, full), zipcache::capacity_error);
  REQUIRE(full.num_available_pages() == 3);
  full.create();
  REQUIRE_THROWS_AS(zipcache::upload(cpu, id, full), zipcache::capacity_error);

  const zipcache::sequence_id chunked = cpu.create();
  cpu.prefill(chunked, 0, data.q.part(0, 10), data.k.part(0, 10), data.v.part(0, 10),
              {.prompt_len = 20});
  device_cache<f16, paper> gpu(shape, {2, 1000});
  REQUIRE_THROWS_AS(zipcache::upload(cpu, chunked, gpu), zipcache::state_error);
  const zipcache::sequence_id moved = zipcache::upload(cpu, id, gpu);
  gpu.release(moved);
  REQUIRE_THROWS_AS(zipcache::download(gpu, moved, cpu), zipcache::argument_error);
}

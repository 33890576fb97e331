// Attention by every instruction set of this processor (layouts: attend_test.cpp). Bounds:
// support/attention_check.hpp, and a relative L2 error of 2e-4 against attention in double over the
// values that the codes stand for.
#include <cmath>
#include <string>
#include <vector>

#include <zipcache/attend/attend.hpp>
#include <zipcache/attend/attend_packed.hpp>
#include <zipcache/policy/presets.hpp>

#include "support/attention_check.hpp"
#include "support/every_cpu.hpp"

using namespace zipcache;
using zipcache_test::check_attention;
using zipcache_test::content;
using zipcache_test::sealed_tokens;
using zipcache_test::with_every_cpu;
namespace oracle = zipcache_test::oracle;

namespace {

/// ||attention - exact|| / ||exact|| over all query rows of one KV head, queries `q_scale` times
/// standard normal.
template <class Policies>
double relative_error(content keys, content values, int64_t num_tokens, float q_scale) {
  constexpr int32_t dim = 128, group = 4;
  const sealed_tokens<Policies, half> tokens(
      {1, num_tokens, num_tokens * 6 / 10, dim, keys, values}, 5);
  std::vector<float> q = zipcache_test::make_values(content::gaussian, group, 1, dim, 9);
  for (float& x : q) x *= q_scale;
  const float sm_scale = 1.0f / std::sqrt(static_cast<float>(dim));
  const auto got = zipcache_test::attend_segment(tokens, q, group, 1, sm_scale);
  const auto floats = tokens.dequantized();
  const auto same = [](float x) { return x; };
  const std::vector<double> k = oracle::widen(floats.k, same), v = oracle::widen(floats.v, same);
  const std::vector<double> wide_q = oracle::widen(q, same);
  double error = 0.0, norm = 0.0;
  for (int32_t head = 0; head < group; ++head) {
    const auto expected =
        oracle::attend(wide_q.data() + head * dim, k.data(), v.data(), num_tokens, dim,
                       static_cast<double>(sm_scale), [](int64_t) { return true; });
    for (int32_t channel = 0; channel < dim; ++channel) {
      const double exact = expected.out[static_cast<size_t>(channel)];
      const double x = static_cast<double>(got.out[static_cast<size_t>(head * dim + channel)]);
      error += (x - exact) * (x - exact);
      norm += exact * exact;
    }
  }
  return std::sqrt(error / norm);
}

}  // namespace

TEST_CASE("attend: every instruction set takes one to many query rows", "[attend][vector]") {
  with_every_cpu([] {
    for (const int32_t group : {1, 2, 3, 5, 8})
      for (const int64_t qo_len : {1, 2, 5})
        check_attention<presets::paper>({1, 70, 40, 64}, group, qo_len);
    for (const int32_t head_dim : {16, 48, 80})
      check_attention<presets::paper>({1, 77, 41, head_dim}, 4);
    check_attention<presets::paper, bfloat16>({2, 70, 40, 128}, 4);
  });
}

TEST_CASE(
    "attend: every instruction set keeps to the bounds with outliers, sinks and other contents",
    "[attend][vector]") {
  with_every_cpu([] {
    for (const content what :
         {content::sinks, content::outlier_channels, content::token_norms,
          content::constant_channels, content::denormals, content::off_centre, content::tiny_range})
      check_attention<presets::paper>({1, 100, 60, 64, content::gaussian, what}, 4);
    for (const content what : {content::outlier_channels, content::sinks, content::off_centre})
      check_attention<presets::paper>({1, 100, 60, 64, what, content::gaussian}, 4);
  });
}

TEST_CASE("attend: relative L2 error is at most 2e-4, outlier channels and sinks included",
          "[attend][vector]") {
  with_every_cpu([] {
    for (const content keys : {content::gaussian, content::outlier_channels, content::sinks}) {
      for (const content values : {content::gaussian, content::sinks, content::token_norms}) {
        for (const float q_scale : {1.0f, 4.0f}) {
          INFO("keys " << zipcache_test::name_of(keys) << ", values "
                       << zipcache_test::name_of(values) << ", queries x " << q_scale);
          CHECK(relative_error<presets::paper>(keys, values, 1024, q_scale) <= 2e-4);
        }
      }
    }
    CHECK(relative_error<presets::mikv>(content::gaussian, content::gaussian, 1024, 1.0f) <= 2e-4);
    CHECK(relative_error<presets::uniform_4bit>(content::outlier_channels, content::gaussian, 1024,
                                                1.0f) <= 2e-4);
  });
}

#if ZIPCACHE_X86_VECTORS
TEST_CASE("attend: scores by AVX-512 are sums of rounded queries, wherever third digits are met",
          "[attend][vector]") {
  using detail::third_digits;
  if (detail::supported_cpu() < detail::cpu_level::avx512) return;
  constexpr int32_t dim = 128, rows = 4;
  const auto [outliers, place] = GENERATE(table<int32_t, third_digits>(
      {{0, third_digits::none}, {7, third_digits::gathered}, {50, third_digits::in_place}}));
  std::vector<float> q = zipcache_test::make_values(content::gaussian, rows, 1, dim, 3);
  for (int32_t row = 0; row < rows; ++row) {
    for (int32_t channel = 0; channel < dim; ++channel)
      q[static_cast<size_t>(row * dim + channel)] *= channel * 5 % dim < outliers ? 3.0f : 0.01f;
  }
  std::vector<uint32_t> tile(static_cast<size_t>(code_tile<key_layout, 4>::words(dim)));
  const auto code = [](int32_t token, int32_t channel) {
    return static_cast<uint32_t>(mix64(static_cast<uint64_t>(token * dim + channel)) >> 60);
  };
  for (int32_t token = 0; token < tile_tokens; ++token) {
    for (int32_t channel = 0; channel < dim; ++channel)
      code_tile<key_layout, 4>::save(tile.data(), dim, token, channel, code(token, channel));
  }
  detail::packed_scratch scratch;
  detail::split_queries<4>(q.data(), rows, dim, scratch);
  scratch.reset(rows, dim);
  REQUIRE(scratch.third[0] == place);
  detail::score_packed_keys<4, rows>(tile.data(), dim, scratch.key_digits.data(),
                                     detail::third_digit_view(scratch, 0), scratch.scales,
                                     scratch.scores.data());
  for (int32_t row = 0; row < rows; ++row) {
    for (int32_t token = 0; token < tile_tokens; ++token) {
      double exact = 0.0, allowed = 0.0;
      for (int32_t channel = 0; channel < dim; ++channel) {
        const double value = static_cast<double>(q[static_cast<size_t>(row * dim + channel)]);
        exact += value * code(token, channel);
        // Half a unit of the integer, and what sums of up to 24 bits lose as floats.
        allowed += (0.5 * static_cast<double>(scratch.scales[row]) + 0x1p-22 * std::fabs(value)) *
                   code(token, channel);
      }
      const auto got = static_cast<double>(scratch.scores.data()[row * tile_tokens + token]);
      REQUIRE(std::fabs(got - exact) <= allowed);
    }
  }
}
#endif

TEST_CASE("attend: ZIPCACHE_CPU names an instruction set, and other names are refused",
          "[attend][vector]") {
  CHECK(detail::requested_cpu(nullptr) == detail::supported_cpu());
  CHECK(detail::requested_cpu("") == detail::supported_cpu());
  CHECK(detail::requested_cpu("scalar") == detail::cpu_level::scalar);
  CHECK_THROWS_AS(detail::requested_cpu("avx"), argument_error);
  CHECK_THROWS_WITH(detail::requested_cpu("AVX2"),
                    "zipcache: ZIPCACHE_CPU is \"AVX2\", but must be scalar, avx2, avx512 or amx");
}

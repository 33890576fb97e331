// Attention on packed codes. Bounds: support/attention_check.hpp.
#include <zipcache/attend/attend.hpp>
#include <zipcache/store/row_store.hpp>

#include "support/attention_check.hpp"
#include "support/axes.hpp"
#include "support/every_cpu.hpp"

using namespace zipcache;
using zipcache_test::check_attention;
using zipcache_test::content;
using zipcache_test::with_every_cpu;
namespace axes = zipcache_test::axes;

TEMPLATE_LIST_TEST_CASE("attend: every preset equals attention over the dequantized values",
                        "[attend]", axes::all_presets) {
  for (const auto& [num_tokens, num_salient] : zipcache_test::segment_sizes) {
    check_attention<TestType>({1, num_tokens, num_salient, 32}, 2);
  }
  with_every_cpu([] {
    check_attention<TestType>({2, 100, 60, 128}, 4);
    for (const int32_t head_dim : {32, 64, 96, 256})
      check_attention<TestType>({1, 77, 41, head_dim}, 4);
  });
}

TEMPLATE_LIST_TEST_CASE("attend: every number of key bits", "[attend]", axes::key_bits) {
  with_every_cpu([] {
    check_attention<TestType>({1, 100, 60, 64}, 2);
    check_attention<TestType>({1, 70, 10, 48}, 1);
  });
}
TEMPLATE_LIST_TEST_CASE("attend: every number of value bits", "[attend]", axes::value_bits) {
  with_every_cpu([] {
    check_attention<TestType>({1, 100, 60, 64}, 2);
    check_attention<TestType>({1, 70, 10, 48}, 1);
  });
}
TEMPLATE_LIST_TEST_CASE("attend: every key layout", "[attend]", axes::key_layouts) {
  with_every_cpu([] {
    check_attention<TestType>({1, 100, 60, 64}, 2);
    check_attention<TestType>({2, 70, 10, 48}, 3);
  });
}
TEMPLATE_LIST_TEST_CASE("attend: every value layout", "[attend]", axes::value_layouts) {
  with_every_cpu([] {
    check_attention<TestType>({1, 100, 60, 64}, 2);
    check_attention<TestType>({2, 70, 10, 48}, 3);
  });
}

TEMPLATE_LIST_TEST_CASE("attend: rotated layouts", "[attend]", axes::rotated_layouts) {
  with_every_cpu([] {
    check_attention<TestType>({1, 100, 60, 64}, 2);
    check_attention<TestType>({2, 70, 10, 48}, 3, 2);
    check_attention<TestType>({1, 33, 33, 128}, 4);
  });
}

TEST_CASE("attend: every head_dim under the paper's policies", "[attend]") {
  for (int32_t head_dim = 16; head_dim <= 256; head_dim += 16)
    check_attention<presets::paper>({1, 80, 45, head_dim}, 2);
}

TEST_CASE("attend: groups of 1 to 8 query heads, one and several query rows", "[attend]") {
  for (const int32_t group : {1, 2, 3, 4, 7, 8}) {
    check_attention<presets::paper>({2, 70, 40, 32}, group, 1);
    check_attention<presets::paper>({1, 70, 40, 32}, group, 3);
  }
}

TEST_CASE("attend: lengths around pages", "[attend]") {
  // Pages of one to three salient tiles, so that tokens end before, at and behind a page.
  for (const int64_t tiles : {1, 2, 3}) {
    for (const int64_t length : {95, 96, 97, 191, 192, 193}) {
      check_attention<presets::paper>(
          {1, length, length, 16, content::gaussian, content::gaussian, tiles});
      check_attention<presets::paper>(
          {1, length, length / 2, 16, content::gaussian, content::gaussian, tiles});
    }
  }
}

TEST_CASE("attend: sinks, outlier channels and other contents", "[attend]") {
  for (const content what :
       {content::sinks, content::outlier_channels, content::token_norms, content::constant_channels,
        content::signed_zeros, content::denormals, content::off_centre, content::tiny_range}) {
    check_attention<presets::paper>({1, 100, 60, 32, content::gaussian, what}, 2);
    // Larger keys make a softmax of one token, whose rounding bound is too wide to say anything.
    if (what != content::outlier_channels && what != content::token_norms &&
        what != content::constant_channels)
      check_attention<presets::paper>({1, 100, 60, 32, what, content::gaussian}, 2);
  }
  check_attention<presets::paper>({1, 100, 60, 32, content::outlier_channels}, 2);
}

TEST_CASE("attend: bfloat16 storage", "[attend]") {
  check_attention<presets::paper, bfloat16>({1, 100, 60, 64}, 2);
  check_attention<presets::uncompressed, bfloat16>({1, 100, 60, 64}, 2);
}

TEST_CASE("attend: a row that sees nothing gives zeros and lse -inf", "[attend]") {
  // Under H2O regular tokens are evicted: with none salient, nothing is left.
  check_attention<presets::h2o>({1, 40, 0, 32}, 2);
  const std::vector<float> q(32, 1.0f);
  std::vector<float> out(32, 5.0f);
  std::vector<float> lse(2, 5.0f);
  attend_rows rows;
  load_queries<float>(hnd(q.data(), 2, 1, 16), 0, 2, 1.0f, rows);
  const auto none = [](int64_t) { return static_cast<const half*>(nullptr); };
  attend(cpu_backend{}, none, none, 0, 0, 2, rows);
  store_output(rows, 0, 2, hnd(out.data(), 2, 1, 16), lse.data(), 2);
  for (const float x : out) CHECK(x == 0.0f);
  for (const float x : lse) CHECK(x == -std::numeric_limits<float>::infinity());
}

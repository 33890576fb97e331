// Sealing tokens into pages: what comes back is what the oracle makes of each class by itself,
// under every preset, layout and number of bits.
//
// Tolerance. Values come back within half a step, the step being the range of the token's group
// over the number of steps. The range is rounded to 16 bits (u = 2^-11 for half), which moves the
// first code by u of the smallest and the last by u of the range; with channel magnitudes c_j,
// everything is in units of c_j. So |x^ - x| <= c_j * (range / steps / 2 + 2u * (|smallest| +
// range)).
#include <algorithm>
#include <cmath>
#include <set>
#include <vector>

#include <zipcache/store/store.hpp>

#include "support/axes.hpp"
#include "support/catch.hpp"
#include "support/oracle.hpp"
#include "support/sealed_tokens.hpp"

using namespace zipcache;
using zipcache_test::content;
using zipcache_test::sealed_tokens;
using zipcache_test::token_shape;
namespace axes = zipcache_test::axes;

namespace {

/// What z loses at most to a pair of 12 bits: half of a step that is 1/16 too large, or, near the
/// ends, what steps 1/16 too small leave out and half a unit of the minimum.
double compact_bound(double z, double low, double high, int bits) {
  const double steps = std::ldexp(1.0, bits) - 1.0;
  const double lowest = std::fmin(low, 0.0), highest = std::fmax(high, 0.0);
  const double step = (highest - lowest) / steps;
  const double subnormal_steps = (steps + 1) * 0x1p-18;
  const double at_ends = step * (std::ldexp(17.0 / 32, bits - 4) + steps / 16) + subnormal_steps;
  const bool inside = z >= lowest + at_ends && z <= highest - at_ends;
  const double rounding = step * 17.0 / 32 + subnormal_steps;
  return inside ? rounding : std::fmax(rounding, at_ends);
}

/// One side (keys or values) of one head: the oracle's bound for every value.
template <class Quantizer, class Tokens, class Storage>
void check_side(const Tokens& tokens, int32_t head, const std::vector<Storage>& x,
                const std::vector<float>& back) {
  using granularity = typename Quantizer::granularity;
  const token_shape& shape = tokens.shape;
  const int32_t dim = shape.head_dim;
  const double unit = std::is_same_v<Storage, half> ? 0x1p-11 : 0x1p-8;
  const auto value = [&](int64_t token, int32_t channel) {
    return static_cast<double>(
        to_float(x[static_cast<size_t>((head * shape.num_tokens + token) * dim + channel)]));
  };
  std::vector<double> magnitudes(static_cast<size_t>(dim), 1.0);
  if (granularity::has_channel_magnitudes) {
    for (int32_t channel = 0; channel < dim; ++channel) {
      double largest = 0.0;
      for (int64_t token = 0; token < shape.num_tokens; ++token)
        largest = std::fmax(largest, std::fabs(value(token, channel)));
      if (largest > 0.0) magnitudes[static_cast<size_t>(channel)] = std::sqrt(largest);
    }
  }
  for (const bool salient : {true, false}) {
    const int bits = salient ? Quantizer::template bits<token_class::salient>
                             : Quantizer::template bits<token_class::regular>;
    std::vector<int64_t> members;
    for (int64_t token = 0; token < shape.num_tokens; ++token)
      if (tokens.is_salient(head, token) == salient) members.push_back(token);
    for (size_t rank = 0; rank < members.size(); ++rank) {
      for (int32_t channel = 0; channel < dim; ++channel) {
        const double exact = value(members[rank], channel);
        const double got = static_cast<double>(
            back[static_cast<size_t>((head * shape.num_tokens + members[rank]) * dim + channel)]);
        INFO("token " << members[rank] << ", channel " << channel << ", " << bits << " bits");
        if (bits == 0 || bits == 16) {
          REQUIRE(got == (bits == 0 ? 0.0 : exact));
          continue;
        }
        // The group of this value, by the definition of the layout.
        double low = zipcache_test::oracle::infinity, high = -zipcache_test::oracle::infinity;
        const auto extend = [&](int64_t token, int32_t of_channel) {
          const double z = value(token, of_channel) / magnitudes[static_cast<size_t>(of_channel)];
          low = std::fmin(low, z);
          high = std::fmax(high, z);
        };
        if (granularity::axis == parameter_axis::token) {
          const int32_t size = granularity::group_size == 0 ? dim : granularity::group_size;
          for (int32_t i = 0; i < size; ++i) extend(members[rank], channel / size * size + i);
        } else {
          const bool whole = granularity::home == parameter_home::segment;
          const size_t first = whole ? 0 : rank / 32 * 32;
          const size_t end = whole ? members.size() : std::min(members.size(), first + 32);
          for (size_t other = first; other < end; ++other) extend(members[other], channel);
        }
        const double steps = std::ldexp(1.0, bits) - 1.0;
        const double magnitude = magnitudes[static_cast<size_t>(channel)];
        double half_step = (high - low) / steps / 2;
        if constexpr (has_compact_pairs<granularity>)
          half_step = compact_bound(exact / magnitude, low, high, bits);
        const double bound =
            magnitude * (half_step + 2 * unit * (std::fabs(low) + high - low)) * (1.0 + 2 * unit) +
            // subnormal steps and magnitudes of half
            magnitude * std::ldexp(steps, -25) + std::fabs(exact) * 2 * unit +
            // and float's own rounding
            0x1p-22 * (std::fabs(exact) + magnitude * (std::fabs(low) + std::fabs(high)));
        REQUIRE(std::fabs(got - exact) <= bound);
      }
    }
  }
}

template <class Policies, class Storage = half>
void check_segment(const token_shape& shape) {
  INFO(Policies::name() << ": " << shape.num_salient << " of " << shape.num_tokens << " tokens of "
                        << shape.head_dim << " channels, " << name_of(shape.keys) << ", "
                        << name_of(shape.values));
  const sealed_tokens<Policies, Storage> tokens(shape, 7);
  for (int32_t head = 0; head < shape.num_kv_heads; ++head)
    for (int64_t token = 0; token < shape.num_tokens; ++token)
      REQUIRE(tokens.sealed->is_salient(head, token) == tokens.is_salient(head, token));
  auto values = tokens.dequantized();
  for (int32_t head = 0; head < shape.num_kv_heads; ++head) {
    for (int64_t token = 0; token < shape.num_tokens; ++token) {
      // A class is evicted on both sides.
      const size_t row = static_cast<size_t>((head * shape.num_tokens + token) * shape.head_dim);
      if (tokens.is_evicted(head, token)) REQUIRE(values.k[row] == 0.0f);
    }
    check_side<typename Policies::key_quantizer_policy>(tokens, head, tokens.k, values.k);
    check_side<typename Policies::value_quantizer_policy>(tokens, head, tokens.v, values.v);
  }
}

}  // namespace

TEMPLATE_LIST_TEST_CASE("store: every preset's tokens come back within their bound", "[store]",
                        axes::all_presets) {
  for (const auto& [num_tokens, num_salient] : zipcache_test::segment_sizes) {
    check_segment<TestType>({2, num_tokens, num_salient, 32});
  }
  check_segment<TestType>({1, 100, 60, 128, content::outlier_channels, content::token_norms});
}

TEMPLATE_LIST_TEST_CASE("store: every number of key bits comes back within its bound", "[store]",
                        axes::key_bits) {
  check_segment<TestType>({1, 100, 60, 48, content::outlier_channels});
}
TEMPLATE_LIST_TEST_CASE("store: every number of value bits comes back within its bound", "[store]",
                        axes::value_bits) {
  check_segment<TestType>({1, 100, 60, 48, content::gaussian, content::outlier_channels});
}
TEMPLATE_LIST_TEST_CASE("store: every key layout comes back within its bound", "[store]",
                        axes::key_layouts) {
  check_segment<TestType>({1, 100, 60, 48, content::outlier_channels});
}
TEMPLATE_LIST_TEST_CASE("store: every value layout comes back within its bound", "[store]",
                        axes::value_layouts) {
  check_segment<TestType>({1, 100, 60, 48, content::gaussian, content::outlier_channels});
}

TEST_CASE("store: every head_dim under the paper's policies", "[store]") {
  for (int32_t head_dim = 16; head_dim <= 256; head_dim += 16)
    check_segment<presets::paper>({1, 50, 30, head_dim, content::outlier_channels});
}

TEST_CASE("store: all contents under the paper's policies, in half and bfloat16", "[store]") {
  for (const content what : zipcache_test::all_contents) {
    check_segment<presets::paper>({1, 70, 40, 32, what, what});
    check_segment<presets::paper, bfloat16>({1, 70, 40, 32, what, what});
  }
}

TEST_CASE("store: constant and zero channels come back exactly from channelwise keys", "[store]") {
  const sealed_tokens<presets::paper> tokens({1, 70, 40, 32, content::constant_channels});
  const auto values = tokens.dequantized();
  for (size_t i = 0; i < values.k.size(); ++i)
    if (i % 32 % 2 == 0) REQUIRE(values.k[i] == to_float(tokens.k[i]));
}

TEST_CASE("store: a segment of no tokens has no pages", "[store]") {
  const sealed_tokens<presets::paper> tokens({2, 0, 0, 32});
  CHECK(tokens.sealed->pages.size() == 0);
  CHECK(tokens.pool->num_used() == 0);
}

TEST_CASE("store: the number of threads and the bytes that were there change no byte", "[store]") {
  const token_shape shape{3, 150, 70, 48};
  const sealed_tokens<presets::paper> a(shape, 3, 1);
  const sealed_tokens<presets::paper> b(shape, 3, 3);
  CHECK(a.sealed->records == b.sealed->records);
  CHECK(a.sealed->salient_bitmap == b.sealed->salient_bitmap);
  CHECK(a.page_bytes() == b.page_bytes());
}

TEST_CASE("store: unused tokens of a last tile are zeros as written", "[store]") {
  sealed_tokens<presets::paper> tokens({1, 37, 1, 16}, 5);
  const std::vector<std::byte> written = tokens.page_bytes();
  tokens.poison(0, 0xa5);  // zeros in the unused tokens, the pool's old bytes behind the tiles
  CHECK(tokens.page_bytes() == written);
}

TEST_CASE("store: pages go back with the segment, and when the pool is exhausted", "[store]") {
  {
    const sealed_tokens<presets::paper> tokens({2, 160, 96, 32});
    CHECK(tokens.pool->num_used() == tokens.sealed->pages.size());
    std::set<uint32_t> pages;
    for (const page_entry& entry : tokens.sealed->table) pages.insert(entry.page);
    CHECK(static_cast<int64_t>(pages.size()) == tokens.sealed->pages.size());
  }
  const std::vector<half> x = zipcache_test::make_tensor<half>(content::gaussian, 2, 160, 32, 1);
  const auto view = hnd<const half>(x.data(), 2, 160, 32);
  page_pool pool(segment_shape<presets::paper>::salient_tile_bytes(32), 3);
  CHECK_THROWS_AS((store<presets::paper, half, half>(cpu_backend{}, pool, view, view, {}, 0, 0)),
                  capacity_error);
  CHECK(pool.num_used() == 0);
}

TEST_CASE("store: salient lists that are not ascending tokens are refused", "[store]") {
  const std::vector<half> x = zipcache_test::make_tensor<half>(content::gaussian, 2, 8, 32, 1);
  const auto view = hnd<const half>(x.data(), 2, 8, 32);
  page_pool pool(4096, 0);
  const auto sealed = [&](std::vector<int32_t> salient, int64_t num_salient) {
    store<presets::paper, half, half>(cpu_backend{}, pool, view, view, salient, num_salient, 0);
  };
  CHECK_NOTHROW(sealed({0, 7, 6, 7}, 2));
  CHECK_THROWS_AS(sealed({0, 8, 0, 1}, 2), argument_error);
  CHECK_THROWS_AS(sealed({-1, 1, 0, 1}, 2), argument_error);
  CHECK_THROWS_AS(sealed({1, 1, 0, 1}, 2), argument_error);
  CHECK_THROWS_AS(sealed({0, 1, 3, 2}, 2), argument_error);
  CHECK_THROWS_AS(sealed({0, 1, 2}, 2), argument_error);
  CHECK_THROWS_AS(sealed({}, -1), argument_error);
  CHECK_THROWS_AS(sealed(std::vector<int32_t>(18), 9), argument_error);
  CHECK(pool.num_used() == 0);
}

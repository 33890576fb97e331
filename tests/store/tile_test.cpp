// Byte sizes and offsets of tiles and segment records, worked out by hand.
#include <zipcache/policy/presets.hpp>
#include <zipcache/store/segment.hpp>
#include <zipcache/store/tile.hpp>

#include "support/axes.hpp"
#include "support/catch.hpp"

using namespace zipcache;

namespace {

constexpr token_class salient = token_class::salient;
constexpr token_class regular = token_class::regular;

template <class Policies, token_class Class>
bool is_tile(int32_t head_dim, int64_t values_at, int64_t code_bytes, int64_t value_pairs_at,
             int64_t pair_bytes) {
  using tile = tile_record<Policies, Class>;
  return tile::value_codes_offset(head_dim) == values_at &&
         tile::code_bytes(head_dim) == code_bytes &&
         tile::value_pairs_offset(head_dim) == value_pairs_at &&
         tile::pair_bytes(head_dim) == pair_bytes &&
         tile::bytes(head_dim) == code_bytes + pair_bytes;
}

}  // namespace

TEST_CASE("store: the paper's tiles at 128 channels are the documented ones", "[store][tile]") {
  CHECK(is_tile<presets::paper, salient>(128, 2048, 4096, 0, 48));
  CHECK(is_tile<presets::paper, regular>(128, 1024, 2048, 0, 48));
}

TEST_CASE("store: parameters lie with the tile where the layout says", "[store][tile]") {
  // MiKV: a pair for each token on both sides.
  CHECK(is_tile<presets::mikv, salient>(128, 2048, 4096, 128, 256));
  // KIVI: 128 channel pairs of the keys, 4 groups of 32 channels of the values.
  CHECK(is_tile<presets::kivi_2bit, regular>(128, 1024, 2048, 512, 1024));
  // 16 bits and evicted tokens have none.
  CHECK(is_tile<presets::uncompressed, salient>(128, 8192, 16384, 0, 0));
  CHECK(is_tile<presets::h2o, salient>(64, 4096, 8192, 0, 0));
  CHECK(is_tile<presets::h2o, regular>(64, 0, 0, 0, 0));
}

TEST_CASE("store: a segment record holds what belongs to all tokens, padded to 16 bytes",
          "[store][tile]") {
  using paper = segment_record<presets::paper>;
  CHECK(paper::key_pairs_offset<salient>(128) == 0);
  CHECK(paper::key_pairs_offset<regular>(128) == 512);
  CHECK(paper::value_magnitudes_offset(128) == 1024);
  CHECK(paper::bytes(128) == 1024 + 256);
  CHECK(segment_record<presets::uncompressed>::bytes(128) == 0);
  CHECK(segment_record<presets::h2o>::bytes(128) == 0);
  CHECK(segment_record<presets::mikv>::bytes(128) == 0);
  CHECK(segment_record<presets::kivi_2bit>::bytes(128) == 0);
  // A class of 16 bits has no pairs; values by channel have pairs of both classes.
  CHECK(segment_record<presets::paper::with<keys<channelwise, 16, 4>>>::bytes(16) == 64 + 32);
  using by_channel = segment_record<presets::paper::with<values<channelwise, 4, 2>>>;
  CHECK(by_channel::value_pairs_offset<salient>(16) == 128);
  CHECK(by_channel::value_pairs_offset<regular>(16) == 192);
  CHECK(by_channel::bytes(16) == 256);
  using separable_keys =
      segment_record<presets::paper::with<keys<channel_separable_tokenwise, 4, 2>>>;
  CHECK(separable_keys::key_magnitudes_offset(16) == 0);
  CHECK(separable_keys::value_magnitudes_offset(16) == 32);
}

TEMPLATE_LIST_TEST_CASE("store: codes of a tile are multiples of 128 bytes, its pairs of 16",
                        "[store][tile]", zipcache_test::axes::all_presets) {
  for (int32_t head_dim = 16; head_dim <= 256; head_dim += 16) {
    if (head_dim % 32 != 0 && std::is_same_v<TestType, presets::kivi_2bit>) continue;
    CHECK(tile_record<TestType, salient>::code_bytes(head_dim) % 128 == 0);
    CHECK(tile_record<TestType, regular>::code_bytes(head_dim) % 128 == 0);
    CHECK(tile_record<TestType, salient>::pair_bytes(head_dim) % 16 == 0);
    CHECK(tile_record<TestType, regular>::pair_bytes(head_dim) % 16 == 0);
    CHECK(segment_record<TestType>::bytes(head_dim) % 16 == 0);
  }
}

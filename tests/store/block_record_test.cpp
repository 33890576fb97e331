// Where blocks lie in pages, and that a segment's rows are what the codec makes of the same rows by
// itself.
#include <set>
#include <vector>

#include <zipcache/store/block_record.hpp>
#include <zipcache/store/store.hpp>
#include <zipcache/stream/options.hpp>

#include "support/axes.hpp"
#include "support/catch.hpp"
#include "support/sealed_tokens.hpp"

using namespace zipcache;
using zipcache_test::content;
using zipcache_test::sealed_tokens;
using zipcache_test::token_shape;
namespace axes = zipcache_test::axes;

namespace {

/// Values of one side of one head as the codec alone gives them back, in token order.
template <class Codec, class Tokens, class Storage>
std::vector<float> by_codec(const Tokens& tokens, int32_t head, const std::vector<Storage>& x) {
  const token_shape& shape = tokens.shape;
  const int32_t dim = shape.head_dim;
  std::vector<int64_t> order;
  for (const bool salient : {true, false})
    for (int64_t token = 0; token < shape.num_tokens; ++token)
      if (tokens.is_salient(head, token) == salient) order.push_back(token);
  std::vector<float> rows;
  for (const int64_t token : order) {
    std::vector<float> row(static_cast<size_t>(dim));
    for (int32_t channel = 0; channel < dim; ++channel)
      row[static_cast<size_t>(channel)] =
          to_float(x[static_cast<size_t>((head * shape.num_tokens + token) * dim + channel)]);
    if (is_rotated<Codec>) rotate_channels(row.data(), dim);
    rows.insert(rows.end(), row.begin(), row.end());
  }
  const block_shape block{shape.num_tokens, dim};
  std::vector<std::byte> bytes(static_cast<size_t>(Codec::size(block).bytes()));
  Codec::template encode<Storage>(rows.data(), block, bytes.data());
  Codec::template decode<Storage>(bytes.data(), block, 0, shape.num_tokens, rows.data());
  std::vector<float> values(rows.size());
  for (size_t rank = 0; rank < order.size(); ++rank) {
    float* row = rows.data() + rank * static_cast<size_t>(dim);
    if (is_rotated<Codec>) rotate_channels(row, dim);
    std::copy_n(row, dim, values.begin() + order[rank] * dim);
  }
  return values;
}

template <class Policies, class Storage>
void check_sides(const token_shape& shape) {
  INFO(Policies::name() << ": " << shape.num_salient << " of " << shape.num_tokens << " tokens, "
                        << shape.tiles_in_page << " tiles in a page");
  const sealed_tokens<Policies, Storage> tokens(shape, 7);
  const auto values = tokens.dequantized();
  using blocks = block_record<Policies>;
  const auto check = [&]<class Quantizer>(const Quantizer*, const std::vector<Storage>& x,
                                          const std::vector<float>& back) {
    if constexpr (codes_blocks<Quantizer>) {
      const int64_t size = shape.num_tokens * shape.head_dim;
      for (int32_t head = 0; head < shape.num_kv_heads; ++head) {
        const auto expected = by_codec<typename Quantizer::granularity>(tokens, head, x);
        REQUIRE(std::equal(expected.begin(), expected.end(), back.begin() + head * size));
      }
    }
  };
  check(static_cast<typename blocks::key_quantizer*>(nullptr), tokens.k, values.k);
  check(static_cast<typename blocks::value_quantizer*>(nullptr), tokens.v, values.v);
}

}  // namespace

TEMPLATE_LIST_TEST_CASE("store: rows of a segment are what the codec makes of them by itself",
                        "[store][block_record]", axes::block_codecs) {
  for (const auto& [num_tokens, num_salient] :
       {std::pair<int64_t, int64_t>{160, 96}, {1, 0}, {1, 1}, {33, 0}, {130, 130}, {65, 33}})
    check_sides<TestType, half>({2, num_tokens, num_salient, 32});
  check_sides<TestType, bfloat16>({1, 100, 60, 64, content::outlier_channels});
  for (const int64_t tiles_in_page : {1, 2, 20}) {
    token_shape shape{2, 150, 50, 48};
    shape.tiles_in_page = tiles_in_page;
    check_sides<TestType, half>(shape);
  }
}

TEMPLATE_LIST_TEST_CASE("store: blocks fill what tiles leave free and need no page more than that",
                        "[store][block_record]", axes::block_codecs) {
  for (const auto& [num_tokens, num_salient] :
       {std::pair<int64_t, int64_t>{1, 0}, {32, 0}, {33, 10}, {160, 96}, {1000, 600}}) {
    for (const int64_t page_bytes : {4096, 5184, 65536}) {
      const segment_shape<TestType> shape{2, 64, num_tokens, num_salient};
      const int64_t tiles =
          ceil_div<int64_t>(num_salient, 32) * shape.salient_tile_bytes(64) +
          ceil_div<int64_t>(num_tokens - num_salient, 32) * shape.regular_tile_bytes(64);
      const int64_t needed = tiles + block_record<TestType>::bytes(shape.block());
      const int64_t pages = shape.pages_per_head(page_bytes);
      REQUIRE(pages * page_bytes >= needed);
      REQUIRE(pages >= shape.plan(page_bytes).num_pages);
      if (pages > shape.plan(page_bytes).num_pages) REQUIRE((pages - 1) * page_bytes < needed);
      REQUIRE(shape.num_pages(page_bytes) == 2 * pages);
    }
  }
}

TEST_CASE("store: tiles and pieces of a head's blocks overlap nowhere", "[store][block_record]") {
  token_shape given{2, 300, 0, 64};
  given.tiles_in_page = 2;  // of 640 bytes, and 64 bytes that no tile fits into
  sealed_tokens<presets::kitty> tokens(given);
  auto pool = page_pool(2 * 640 + 64, 0);
  const auto view = tokens.view(tokens.k);
  const auto sealed = store<presets::kitty, half, half>(cpu_backend{}, pool, view, view, {}, 0, 0);
  std::set<const std::byte*> taken;
  for (int32_t head = 0; head < 2; ++head) {
    const auto take = [&](const std::byte* bytes, int64_t count) {
      for (int64_t i = 0; i < count; ++i) REQUIRE(taken.insert(bytes + i).second);
    };
    int64_t pieces = 0;
    sealed->for_each_tile<token_class::regular>(head, [&](tile_place tile, int32_t) {
      take(tile.codes, 512);
      take(tile.pairs, 128);
    });
    sealed->for_each_block_piece(head, [&](const std::byte* piece, int64_t count) {
      take(piece, count);
      ++pieces;
    });
    CHECK(pieces == sealed->pages_per_head);
  }
  const int64_t bytes = 10 * 640 + block_record<presets::kitty>::bytes({300, 64});
  CHECK(static_cast<int64_t>(taken.size()) == 2 * bytes);
  CHECK(sealed->pages_per_head == ceil_div<int64_t>(bytes, 2 * 640 + 64));
}

TEST_CASE("store: an interval of a policy with block codecs is one page of each head",
          "[store][block_record]") {
  const auto check = []<class Policies>(const Policies*, int64_t interval) {
    const auto options = detail::resolve<Policies>({});
    const segment_shape<Policies> shape{1, 128, interval, 0, segment_origin::streamed};
    const int64_t page_bytes = detail::natural_page_bytes<Policies>(options, 128);
    CHECK(shape.pages_per_head(page_bytes) == 1);
    CHECK(shape.pages_per_head(page_bytes - 64) == 2);
  };
  check(static_cast<presets::kitty*>(nullptr), 128);
  check(static_cast<presets::oaken*>(nullptr), 160);
  check(static_cast<presets::gear*>(nullptr), 64);
  check(static_cast<presets::gear_l*>(nullptr), 64);
}

TEST_CASE("store: blocks depend neither on threads nor on the bytes that were there",
          "[store][block_record]") {
  const token_shape shape{3, 150, 0, 48};
  sealed_tokens<presets::gear> a(shape, 3, 1);
  sealed_tokens<presets::gear> b(shape, 3, 3);
  a.poison(0, 0x11);
  b.poison(0, 0x11);
  CHECK(a.page_bytes() == b.page_bytes());
  std::set<uint32_t> pages;
  for (const page_entry& entry : a.sealed->table) pages.insert(entry.page);
  CHECK(static_cast<int64_t>(pages.size()) == a.sealed->pages.size());
}

TEST_CASE("store: a segment of no tokens has no blocks", "[store][block_record]") {
  const sealed_tokens<presets::oaken> tokens({2, 0, 0, 32});
  CHECK(tokens.sealed->pages.size() == 0);
  CHECK(block_record<presets::oaken>::bytes({0, 32}) == 0);
}

TEST_CASE("store: sides that are coded in blocks have nothing in tiles and records",
          "[store][block_record]") {
  CHECK(tile_record<presets::oaken, token_class::regular>::bytes(128) == 0);
  CHECK(segment_record<presets::oaken>::bytes(128) == 0);
  // Values of 2 bits tokenwise, 32 pairs.
  CHECK(tile_record<presets::kitty, token_class::regular>::bytes(128) == 1024 + 128);
  CHECK(segment_record<presets::kitty>::bytes(128) == 0);
}

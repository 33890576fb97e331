// The page that a cache takes if it is not told another.
#include <zipcache/policy/presets.hpp>
#include <zipcache/store/tile.hpp>
#include <zipcache/stream/options.hpp>

#include "support/catch.hpp"

using namespace zipcache;

namespace {

template <class Policies>
int64_t page_of(int64_t interval, int32_t head_dim) {
  cache_options options;
  options.recompress_interval = interval;
  return detail::natural_page_bytes<Policies>(detail::resolve<Policies>(options), head_dim);
}

template <class Policies>
tile_size planes_of(int64_t interval, int32_t head_dim) {
  return page_layout_of<Policies>(head_dim).planes(page_of<Policies>(interval, head_dim));
}

}  // namespace

TEST_CASE("stream: a page is an interval of a head, or half of it where that wastes nothing",
          "[stream][page]") {
  using presets::paper;
  // 96 and 64 tokens: (1 + 2) and 2 tiles in two pages.
  CHECK(page_of<paper>(160, 128) == 4144 + 2 * 2096);
  CHECK(page_of<paper>(320, 128) == 3 * 4144 + 2 * 2096);
  // Small flushes are one page: 2096 and 1072 bytes a tile.
  CHECK(page_of<paper>(160, 64) == 3 * 2096 + 2 * 1072);
  // Five equal tiles have no half.
  CHECK(page_of<presets::keys_4_values_2>(160, 128) == 5 * 3120);
  // Large intervals are many pages of at most 16 tiles.
  CHECK(page_of<paper>(20000, 128) == 16 * 4144);
  // One tile at least, also where a flush is one tile and large enough to be halved.
  CHECK(page_of<paper>(1, 128) == 4144);
  CHECK(page_of<presets::uncompressed>(32, 128) == 32 * 128 * 4);
  CHECK(page_of<presets::uncompressed>(32, 256) == 32 * 256 * 4);
}

TEST_CASE("stream: the planes of a page on CUDA take what a page in one block takes",
          "[stream][page]") {
  using presets::paper;
  CHECK(planes_of<paper>(160, 128).codes == 8192);
  CHECK(planes_of<paper>(160, 128).pairs == 144);
  CHECK(planes_of<paper>(160, 128).bytes() == page_of<paper>(160, 128));
  for (const int32_t head_dim : {64, 80, 96, 128, 256}) {
    CHECK(planes_of<presets::keys_4_values_2>(160, head_dim).bytes() ==
          page_of<presets::keys_4_values_2>(160, head_dim));
    CHECK(planes_of<presets::uniform_4bit>(160, head_dim).bytes() ==
          page_of<presets::uniform_4bit>(160, head_dim));
    CHECK(planes_of<presets::h2o>(160, head_dim).pairs == 0);
    // A page of small regular tiles alone would have a few more pairs.
    CHECK(planes_of<paper>(160, head_dim).bytes() <= page_of<paper>(160, head_dim) * 1012 / 1000);
  }
}

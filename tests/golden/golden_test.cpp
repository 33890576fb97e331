// The byte format: a small segment of each preset's kind, byte for byte. A change of the format
// shows here as a diff of pages.hex, and nowhere else by chance.
//
// To write the file anew after an intended change:
//   ZIPCACHE_WRITE_GOLDEN=1 <build folder>/tests/zipcache_golden_tests
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include <zipcache/policy/presets.hpp>
#include <zipcache/store/store.hpp>

#include "support/catch.hpp"

using namespace zipcache;

namespace {

constexpr int32_t head_dim = 16;
constexpr int64_t num_tokens = 40;

/// Integers only, so that no library function can make a difference: multiples of 1/64 in [-8, 8),
/// with one channel 16 times larger.
std::vector<half> tokens_of(uint32_t seed) {
  std::vector<half> values;
  uint32_t state = seed;
  for (int64_t i = 0; i < num_tokens * head_dim; ++i) {
    state = state * 1664525u + 1013904223u;
    const int32_t x = static_cast<int32_t>(state >> 22) - 512;
    const float scale = i % head_dim == 5 ? 0.25f : 1.0f / 64.0f;
    values.push_back(from_float<half>(static_cast<float>(x) * scale));
  }
  return values;
}

/// Lines of 32 bytes in hex.
std::string hex(const std::string& title, const std::byte* bytes, int64_t count) {
  static const char digits[] = "0123456789abcdef";
  std::string text = title + " (" + std::to_string(count) + " bytes)";
  for (int64_t i = 0; i < count; ++i) {
    if (i % 32 == 0) text += "\n ";
    if (i % 4 == 0) text += ' ';
    const unsigned value = std::to_integer<unsigned>(bytes[i]);
    text += digits[value / 16];
    text += digits[value % 16];
  }
  return text + "\n";
}

/// The segment's table, bitmap, record and tiles. Unused bytes behind the tiles are left out: they
/// may hold anything.
template <class Policies>
std::string describe(const std::string& title) {
  const std::vector<half> k = tokens_of(1);
  const std::vector<half> v = tokens_of(2);
  std::vector<int32_t> salient;
  for (int32_t token = 0; token < num_tokens; token += 2) salient.push_back(token);
  using sizes = segment_shape<Policies>;
  const page_layout layout = page_layout_of<Policies>(head_dim);
  page_pool pool(sizes::salient_tile_bytes(head_dim) + 2 * sizes::regular_tile_bytes(head_dim), 0);
  const auto sealed = store<Policies, half, half>(
      cpu_backend{}, pool, hnd<const half>(k.data(), 1, num_tokens, head_dim),
      hnd<const half>(v.data(), 1, num_tokens, head_dim), salient,
      static_cast<int64_t>(salient.size()), 0);
  std::string text = "== " + title + ": " + Policies::name() + "\n";
  for (const page_entry& entry : sealed->table) {
    text += "page " + std::to_string(entry.page) + " with " + std::to_string(entry.salient_tokens) +
            " salient and " + std::to_string(entry.regular_tokens) + " regular tokens\n";
  }
  text += hex("bitmap", reinterpret_cast<const std::byte*>(sealed->salient_bitmap.data()),
              static_cast<int64_t>(sealed->salient_bitmap.size()) * 4);
  text += hex("record", sealed->record(0), static_cast<int64_t>(sealed->records.size()));
  for (const page_entry& entry : sealed->table) {
    const tile_size used = layout.size(entry);
    text += hex("codes", pool.data(entry.page), used.codes);
    text += hex("pairs", pool.data(entry.page) + used.codes, used.pairs);
  }
  return text;
}

std::string golden_file() {
  const std::string here = __FILE__;
  return here.substr(0, here.find_last_of("/\\") + 1) + "pages.hex";
}

}  // namespace

TEST_CASE("golden: pages and records are byte for byte those of pages.hex", "[golden][store]") {
  const std::string text =
      describe<presets::paper>("4 and 2 bits") +
      describe<presets::paper::with<keys<channelwise, 8, 3>>::with<values<tokenwise, 1, 16>>>(
          "8, 3, 1 and 16 bits");
  if (std::getenv("ZIPCACHE_WRITE_GOLDEN") != nullptr) {
    std::ofstream(golden_file(), std::ios::binary) << text;
    WARN("wrote " << golden_file());
    return;
  }
  std::ifstream file(golden_file(), std::ios::binary);
  REQUIRE(file.is_open());
  std::stringstream golden;
  golden << file.rdbuf();
  std::istringstream expected(golden.str()), got(text);
  std::string expected_line, got_line;
  int line = 0;
  while (std::getline(expected, expected_line)) {
    ++line;
    got_line.clear();
    std::getline(got, got_line);
    INFO("line " << line << " of pages.hex");
    REQUIRE(got_line == expected_line);
  }
  CHECK(golden.str().size() == text.size());
}

// One code by hand, so that the file is not only what the library once said. Key channel 5 of the
// salient tokens at 4 bits: its pair is entry 5 of the record, and the code of token 0 of the tile
// lies at key_layout<4>'s place for (0, 5): lane 0 * 4 + 5 / 4 = 1, byte 1, low nibble.
TEST_CASE("golden: one key code worked out by hand", "[golden][store]") {
  const std::vector<half> k = tokens_of(1);
  std::vector<int32_t> salient;
  for (int32_t token = 0; token < num_tokens; token += 2) salient.push_back(token);
  page_pool pool(4096, 0);
  const auto view = hnd<const half>(k.data(), 1, num_tokens, head_dim);
  const auto sealed = store<presets::paper, half, half>(cpu_backend{}, pool, view, view, salient,
                                                        static_cast<int64_t>(salient.size()), 0);
  float low = 1e9f, high = -1e9f;
  for (const int32_t token : salient) {
    const float x = to_float(k[static_cast<size_t>(token * head_dim + 5)]);
    low = x < low ? x : low;
    high = x > high ? x : high;
  }
  const half step = from_float<half>((high - low) / 15.0f);
  const std::byte* pair = sealed->record(0) + 5 * 4;
  CHECK(std::to_integer<unsigned>(pair[0]) == (step.bits & 0xffu));
  CHECK(std::to_integer<unsigned>(pair[1]) == step.bits >> 8);
  CHECK(std::to_integer<unsigned>(pair[2]) == (from_float<half>(low).bits & 0xffu));
  CHECK(std::to_integer<unsigned>(pair[3]) == from_float<half>(low).bits >> 8);
  const double code =
      std::nearbyint((static_cast<double>(to_float(k[5])) - static_cast<double>(low)) /
                     static_cast<double>(to_float(step)));
  // At head_dim 16 a lane has two words, so they lie in pairs: word 0 of lane 1 is word 2.
  const std::byte* tile = pool.data(sealed->table[0].page);
  CHECK(std::to_integer<unsigned>(tile[2 * 4 + 1]) % 16 == static_cast<unsigned>(code));
}

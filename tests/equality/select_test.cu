// Selection on both backends: the same tokens for the same scores.
#include <cmath>
#include <limits>
#include <vector>

#include <zipcache/select/select.cuh>

#include "support/catch.hpp"
#include "support/device.cuh"
#include "support/generators.hpp"

using namespace zipcache_test;
using zipcache::selection_size;

namespace {

constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();

void check_select(const std::vector<float>& scores, int32_t num_heads, selection_size size) {
  INFO("num_tokens " << size.num_tokens << ", num_salient " << size.num_salient << ", num_recent "
                     << size.num_recent);
  std::vector<int32_t> wanted(static_cast<size_t>(num_heads * size.num_salient));
  zipcache::select(zipcache::cpu_backend{}, scores, num_heads, size, wanted);
  const int64_t words = (size.num_tokens + 31) / 32;
  std::vector<uint32_t> wanted_bitmap(static_cast<size_t>(num_heads * words));
  for (size_t i = 0; i < wanted.size(); ++i) {
    const int64_t head = static_cast<int64_t>(i) / size.num_salient;
    wanted_bitmap[static_cast<size_t>(head * words + wanted[i] / 32)] |= 1u << (wanted[i] % 32);
  }
  const auto device_scores = upload(scores);
  const auto salient = poisoned<int32_t>(wanted.size() + 1);
  const auto bitmap = poisoned<uint32_t>(wanted_bitmap.size() + 1);
  const auto lone_bitmap = poisoned<uint32_t>(wanted_bitmap.size() + 1);
  zipcache::select(zipcache::cuda_backend{}, device_scores.data(), num_heads, size, salient.data(),
                   bitmap.data());
  zipcache::select(zipcache::cuda_backend{}, device_scores.data(), num_heads, size, nullptr,
                   lone_bitmap.data());
  wanted.push_back(static_cast<int32_t>(0xa5a5a5a5u));
  wanted_bitmap.push_back(0xa5a5a5a5u);
  CHECK(download(salient) == wanted);
  CHECK(download(bitmap) == wanted_bitmap);
  CHECK(download(lone_bitmap) == wanted_bitmap);
}

std::vector<float> random_scores(int64_t count, uint64_t seed) {
  random_numbers random(seed);
  std::vector<float> scores;
  for (int64_t i = 0; i < count; ++i) {
    // Attention mass: positive, over many magnitudes.
    scores.push_back(static_cast<float>(std::exp(3.0 * random.normal())));
  }
  return scores;
}

}  // namespace

TEST_CASE("select: both backends choose the same tokens at any size", "[equality][select]") {
  for (const int64_t num_tokens : {1, 31, 32, 33, 100, 1000, 1024, 1025, 4097, 20000}) {
    const std::vector<float> scores = random_scores(3 * num_tokens, 7);
    for (const double share : {0.0, 0.01, 0.6, 1.0}) {
      const auto num_salient = static_cast<int64_t>(share * static_cast<double>(num_tokens));
      check_select(scores, 3, {num_tokens, num_salient, 0});
      check_select(scores, 3, {num_tokens, num_salient, num_salient / 2});
      check_select(scores, 3, {num_tokens, num_salient, num_salient});
    }
  }
}

TEST_CASE("select: ties go to the lower index on both backends", "[equality][select]") {
  for (const int64_t num_tokens : {33, 1000, 5000}) {
    const auto size = static_cast<size_t>(num_tokens);
    check_select(std::vector<float>(size, 0.25f), 1, {num_tokens, num_tokens / 3, 0});
    check_select(std::vector<float>(size, 0.0f), 1, {num_tokens, num_tokens / 2, num_tokens / 7});
    // Few different values, and zeros of both signs.
    random_numbers random(3);
    std::vector<float> scores(size);
    for (float& score : scores) {
      const int64_t pick = random.below(5);
      score = pick == 0 ? 0.0f : pick == 1 ? -0.0f : static_cast<float>(pick) * 0.1f;
    }
    for (const int64_t num_salient : {int64_t{1}, num_tokens / 5, num_tokens / 2, num_tokens - 1})
      check_select(scores, 1, {num_tokens, num_salient, 0});
  }
}

TEST_CASE("select: NaN ranks last, and infinities and negative scores in their order",
          "[equality][select]") {
  const float infinity = std::numeric_limits<float>::infinity();
  const float special[] = {not_a_number, -not_a_number, infinity, -infinity, 0.0f,    -0.0f,
                           1e-42f,       -1e-42f,       -3.0f,    3.4e38f,   -3.4e38f};
  random_numbers random(11);
  std::vector<float> scores(700);
  for (float& score : scores) score = special[random.below(11)];
  for (int64_t num_salient = 0; num_salient <= 700; num_salient += 35)
    check_select(scores, 1, {700, num_salient, 0});
  check_select(std::vector<float>(100, not_a_number), 1, {100, 60, 10});
}

TEST_CASE("select: more heads than a grid of blocks at once", "[equality][select]") {
  check_select(random_scores(300 * 40, 5), 300, {40, 24, 3});
}

TEST_CASE("select: wrong arguments are refused before anything is launched", "[equality][select]") {
  std::vector<float> host(64);
  const auto scores = upload(host);
  const auto salient = poisoned<int32_t>(64);
  const auto bitmap = poisoned<uint32_t>(2);
  const auto refused = [&](const float* from, int32_t heads, selection_size size, int32_t* list,
                           uint32_t* bits) {
    CHECK_THROWS_AS(zipcache::select(zipcache::cuda_backend{}, from, heads, size, list, bits),
                    zipcache::argument_error);
  };
  std::vector<uint32_t> host_bitmap(2);
  refused(host.data(), 1, {64, 32, 0}, salient.data(), bitmap.data());
  refused(nullptr, 1, {64, 32, 0}, salient.data(), bitmap.data());
  refused(scores.data(), 1, {64, 32, 0}, salient.data(), nullptr);
  refused(scores.data(), 1, {64, 32, 0}, salient.data(), host_bitmap.data());
  refused(scores.data(), -1, {64, 32, 0}, salient.data(), bitmap.data());
  refused(scores.data(), 1, {64, 65, 0}, salient.data(), bitmap.data());
  refused(scores.data(), 1, {64, 32, 33}, salient.data(), bitmap.data());
  refused(scores.data(), 1, {-1, 0, 0}, salient.data(), bitmap.data());
  CHECK(download(bitmap)[0] == 0xa5a5a5a5u);
}

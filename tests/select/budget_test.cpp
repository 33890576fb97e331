#include <vector>

#include <zipcache/select/budget.hpp>

#include "support/catch.hpp"

using namespace zipcache;

TEST_CASE("select: a share is the nearest number of tokens, halves up", "[select][budget]") {
  const auto count = [](int64_t tokens, double ratio) {
    return salient_share<60>::num_salient(tokens, {.salient_ratio = ratio});
  };
  CHECK(count(160, 0.6) == 96);
  CHECK(count(100, 0.6) == 60);
  CHECK(count(1, 0.6) == 1);
  CHECK(count(1, 0.4) == 0);
  CHECK(count(5, 0.5) == 3);
  CHECK(count(0, 0.6) == 0);
  CHECK(count(1000, 0.0) == 0);
  CHECK(count(1000, 1.0) == 1000);
}

TEST_CASE("select: a share of 4096 tokens and more is whole tiles, rounded down",
          "[select][budget]") {
  const auto count = [](int64_t tokens, double ratio) {
    return salient_share<60>::num_salient(tokens, {.salient_ratio = ratio});
  };
  CHECK(count(4095, 0.6) == 2457);
  CHECK(count(4096, 0.6) == 2432);
  CHECK(count(4096, 0.5) == 2048);
  CHECK(count(4101, 1.0) == 4101);
  CHECK(count(131072, 0.6) == 78624);
  CHECK(heavy_and_recent_share<40>::num_salient(4096, {.salient_ratio = 0.4}) == 1632);
  CHECK(heavy_and_recent_share<40>::num_recent(4096, {.salient_ratio = 0.4}) == 819);
}

TEST_CASE("select: a count is capped by the tokens there are", "[select][budget]") {
  CHECK(salient_count::num_salient(100, {.salient_count = 30}) == 30);
  CHECK(salient_count::num_salient(20, {.salient_count = 30}) == 20);
  CHECK(salient_count::num_salient(20, {}) == 0);
}

TEST_CASE("select: H2O's recent tokens are half of its share", "[select][budget]") {
  using h2o = heavy_and_recent_share<40>;
  const budget_options options{.salient_ratio = 0.4};
  CHECK(h2o::num_salient(160, options) == 64);
  CHECK(h2o::num_recent(160, options) == 32);
  for (int64_t tokens = 0; tokens < 50; ++tokens)
    CHECK(h2o::num_recent(tokens, options) * 2 <= h2o::num_salient(tokens, options));
  CHECK(salient_share<60>::num_recent(160, options) == 0);
}

TEST_CASE("select: one-class budgets take all or none", "[select][budget]") {
  CHECK(all_salient::num_salient(77, {}) == 77);
  CHECK(all_regular::num_salient(77, {.salient_ratio = 0.9}) == 0);
}

TEST_CASE("select: a share of the mass is held by the fewest tokens that can", "[select][budget]") {
  const std::vector<float> mass{1.0f, 0.0f, 5.0f, 2.0f, 2.0f};  // 10 together
  const auto count = [&](double share) {
    return mass_share<975>::num_salient_by_mass(mass, {.salient_ratio = share});
  };
  CHECK(count(0.0) == 0);
  CHECK(count(0.01) == 1);
  CHECK(count(0.5) == 1);
  CHECK(count(0.51) == 2);
  CHECK(count(0.9) == 3);
  CHECK(count(0.91) == 4);
  CHECK(count(1.0) == 4);  // a token without mass adds nothing
  CHECK(mass_share<975>::num_salient_by_mass({}, {.salient_ratio = 0.9}) == 0);
  const std::vector<float> nothing(7, 0.0f);
  CHECK(mass_share<975>::num_salient_by_mass(nothing, {.salient_ratio = 1.0}) == 0);
  CHECK(mass_share<975>::default_ratio == 0.975);
}

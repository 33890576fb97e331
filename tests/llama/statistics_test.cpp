#include "statistics.hpp"

#include "sampler.hpp"
#include "support/catch.hpp"

using namespace zipcache_llama;

TEST_CASE("statistics: perplexity, divergence and agreement have their closed forms",
          "[llama][statistics]") {
  const std::vector<float> uniform(8, 3.0F);
  CHECK(log_probability(uniform, 5) == Approx(-std::log(8.0)));
  CHECK(perplexity(std::vector<double>(10, -std::log(8.0))) == Approx(8.0));

  // p = (3/4, 1/4), q = (1/2, 1/2)
  const std::vector<float> p = {static_cast<float>(std::log(3.0)), 0.0F};
  const std::vector<float> q = {0.0F, 0.0F};
  CHECK(kl_divergence(p, q) == Approx(0.75 * std::log(1.5) + 0.25 * std::log(0.5)));
  CHECK(kl_divergence(p, p) == 0.0);
  CHECK(top1_agrees(p, q));
  CHECK_FALSE(top1_agrees(p, std::vector<float>{0.0F, 1.0F}));
}

TEST_CASE("statistics: large logits neither overflow nor lose the difference",
          "[llama][statistics]") {
  const std::vector<float> logits = {10000.0F, 9999.0F};
  CHECK(log_probability(logits, 1) == Approx(-1.0 - std::log1p(std::exp(-1.0))));
  CHECK(kl_divergence(logits, std::vector<float>{1.0F, 0.0F}) == Approx(0.0).margin(1e-12));
}

TEST_CASE("statistics: a bootstrap interval has the width of the normal one",
          "[llama][statistics]") {
  std::vector<double> values(1000);
  random_stream random(11);
  for (double& value : values) {
    value = random.uniform();
  }
  const auto found = bootstrap_interval(values, 1);
  const double half_width = 1.96 * std::sqrt(1.0 / 12 / 1000);
  CHECK(found.mean == Approx(mean(values)));
  // 2000 resamples: the quantiles scatter by some 4 % of their distance; three times that.
  CHECK(found.high - found.mean == Approx(half_width).epsilon(0.12));
  CHECK(found.mean - found.low == Approx(half_width).epsilon(0.12));
  const auto again = bootstrap_interval(values, 1);
  CHECK((again.low == found.low && again.high == found.high));
}

TEST_CASE("statistics: a paired interval does not see what both share", "[llama][statistics]") {
  std::vector<double> a;
  std::vector<double> b;
  random_stream random(2);
  for (int i = 0; i < 50; ++i) {
    b.push_back(100 * random.uniform());
    a.push_back(b.back() + 1);
  }
  const auto difference = paired_difference_interval(a, b, 3);
  CHECK(difference.low == Approx(1.0));
  CHECK(difference.high == Approx(1.0));
  CHECK_THROWS_AS(paired_difference_interval(a, std::vector<double>{1}, 3), std::invalid_argument);
  CHECK_THROWS_AS(bootstrap_interval({}, 3), std::invalid_argument);
}

TEST_CASE("random: known start of the sequence, unbiased range", "[llama][statistics]") {
  random_stream random(0);
  CHECK(random.next() == 0xE220A8397B1DCDAFU);  // published first output of SplitMix64 for seed 0
  std::vector<int> counts(3);
  for (int i = 0; i < 30'000; ++i) {
    ++counts[random.below(3)];
  }
  for (const int count : counts) {
    CHECK(std::abs(count - 10'000) < 330);  // four standard deviations
  }
}

TEST_CASE("sampler: greedy, seeded and cut at top-p", "[llama][sampler]") {
  const std::vector<float> logits = {0.0F, static_cast<float>(std::log(6.0)),
                                     static_cast<float>(std::log(3.0))};
  CHECK(sampler({}).pick(logits) == 1);
  sampler narrow({.temperature = 1, .top_p = 0.5F});  // 1 alone has 0.6
  sampler first({.temperature = 1, .seed = 9});
  sampler second({.temperature = 1, .seed = 9});
  std::vector<int> counts(3);
  for (int i = 0; i < 10'000; ++i) {
    CHECK(narrow.pick(logits) == 1);
    const int token = first.pick(logits);
    REQUIRE(token == second.pick(logits));
    ++counts[static_cast<std::size_t>(token)];
  }
  CHECK(std::abs(counts[0] - 1000) < 120);
  CHECK(std::abs(counts[1] - 6000) < 200);
}

TEST_CASE("statistics: Wilson's interval", "[llama][statistics]") {
  const auto half = wilson_interval(5, 10);
  CHECK(half.mean == 0.5);
  CHECK(half.low == Approx(0.23659).margin(1e-4));  // published tables
  CHECK(half.high == Approx(0.76341).margin(1e-4));
  CHECK(wilson_interval(0, 20).low == 0.0);
  CHECK(wilson_interval(0, 20).high == Approx(0.16113).margin(1e-4));
  CHECK(wilson_interval(20, 20).high == 1.0);
  CHECK_THROWS_AS(wilson_interval(0, 0), std::invalid_argument);
  CHECK_THROWS_AS(wilson_interval(3, 2), std::invalid_argument);
}

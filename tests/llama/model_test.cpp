#include "model.hpp"

#include <cmath>

#include "exact_attention.hpp"
#include "matrix_product.hpp"
#include "support/catch.hpp"
#include "tiny_model.hpp"
#include "vector_math.hpp"

using namespace zipcache_llama;
using namespace zipcache_llama_test;

namespace {

std::vector<int> random_tokens(int count) {
  random_stream random(3);
  std::vector<int> tokens;
  for (int i = 0; i < count; ++i) {
    tokens.push_back(static_cast<int>(random.below(tiny_vocabulary)));
  }
  return tokens;
}

model load(const tiny_shape& shape, thread_pool& pool) {
  return model(gguf_file::parse(tiny_model(shape).file(), "tiny.gguf"), pool);
}

std::vector<float> one_shot(model& model, std::span<const int> tokens, thread_pool& pool) {
  exact_attention attention(model.shape(), pool);
  std::vector<float> logits(tokens.size() * tiny_vocabulary);
  model.forward(tokens, 0, attention, logits);
  return logits;
}

double largest_difference(std::span<const float> a, std::span<const float> b) {
  REQUIRE(a.size() == b.size());
  double largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    largest = std::max(largest, std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i])));
  }
  return largest;
}

// Logits are of the order of 10 and each is a sum of some 48 products over 2 layers: 1e-3 is a few
// hundred roundings.
constexpr double rounding = 1e-3;

// The same model in double, one token at a time, everything spelled out; shares only the weights
// with the library.
class plain_model {
 public:
  plain_model(const tiny_shape& shape, const gguf_file& file) : shape_(shape), file_(file) {}

  std::vector<float> logits(std::span<const int> tokens) {
    std::vector<float> all;
    for (std::size_t position = 0; position < tokens.size(); ++position) {
      for (const double value : step(tokens[position], static_cast<int>(position))) {
        all.push_back(static_cast<float>(value));
      }
    }
    return all;
  }

 private:
  using row = std::vector<double>;

  row weights(const std::string& name) const {
    const auto* tensor = file_.find_tensor(name);
    row values;
    for (std::size_t i = 0; tensor != nullptr && i < tensor->num_elements; ++i) {
      float value = 0;
      std::memcpy(&value, tensor->data.data() + 4 * i, 4);
      values.push_back(static_cast<double>(value));
    }
    return values;
  }
  row product(const std::string& name, const row& x, const std::string& bias = "") const {
    const row w = weights(name);
    row y = bias.empty() ? row{} : weights(bias);
    y.resize(w.size() / x.size());
    for (std::size_t i = 0; i < w.size(); ++i) {
      y[i / x.size()] += w[i] * x[i % x.size()];
    }
    return y;
  }
  row normed(const row& x, const std::string& name) const {
    const row w = weights(name);
    double squares = 0;
    for (const double value : x) {
      squares += value * value;
    }
    row y;
    for (std::size_t i = 0; i < x.size(); ++i) {
      y.push_back(x[i] / std::sqrt(squares / static_cast<double>(x.size()) + 1e-5) * w[i]);
    }
    return y;
  }
  void turn(row& heads, int position) const {
    const auto dim = static_cast<std::size_t>(shape_.hidden / shape_.qo_heads);
    const bool neighbours = shape_.architecture == "llama";
    for (std::size_t head = 0; head < heads.size(); head += dim) {
      for (std::size_t pair = 0; pair < dim / 2; ++pair) {
        const double angle = position / std::pow(10000.0, 2.0 * static_cast<double>(pair) /
                                                              static_cast<double>(dim));
        double& x = heads[head + (neighbours ? 2 * pair : pair)];
        double& y = heads[head + (neighbours ? 2 * pair + 1 : pair + dim / 2)];
        const double turned = x * std::cos(angle) - y * std::sin(angle);
        y = x * std::sin(angle) + y * std::cos(angle);
        x = turned;
      }
    }
  }
  row attend(const row& q, const std::vector<row>& keys, const std::vector<row>& values) const {
    const auto dim = static_cast<std::size_t>(shape_.hidden / shape_.qo_heads);
    const auto group = static_cast<std::size_t>(shape_.qo_heads / shape_.kv_heads);
    row out(q.size());
    for (std::size_t head = 0; head < q.size() / dim; ++head) {
      double total = 0;
      row mixed(dim);
      for (std::size_t t = 0; t < keys.size(); ++t) {
        double score = 0;
        for (std::size_t c = 0; c < dim; ++c) {
          score += q[head * dim + c] * keys[t][head / group * dim + c];
        }
        const double weight = std::exp(score / std::sqrt(static_cast<double>(dim)));
        total += weight;
        for (std::size_t c = 0; c < dim; ++c) {
          mixed[c] += weight * values[t][head / group * dim + c];
        }
      }
      for (std::size_t c = 0; c < dim; ++c) {
        out[head * dim + c] = mixed[c] / total;
      }
    }
    return out;
  }
  row step(int token, int position) {
    const auto hidden = static_cast<std::size_t>(shape_.hidden);
    const row embedding = weights("token_embd.weight");
    const auto first = embedding.begin() + static_cast<std::ptrdiff_t>(hidden) * token;
    row x(first, first + static_cast<std::ptrdiff_t>(hidden));
    keys_.resize(static_cast<std::size_t>(shape_.layers));
    values_.resize(keys_.size());
    for (std::size_t layer = 0; layer < keys_.size(); ++layer) {
      const std::string block = "blk." + std::to_string(layer) + ".";
      const auto bias = [&](const char* name) { return shape_.biases ? block + name : ""; };
      const row y = normed(x, block + "attn_norm.weight");
      row q = product(block + "attn_q.weight", y, bias("attn_q.bias"));
      row k = product(block + "attn_k.weight", y, bias("attn_k.bias"));
      turn(q, position);
      turn(k, position);
      keys_[layer].push_back(k);
      values_[layer].push_back(product(block + "attn_v.weight", y, bias("attn_v.bias")));
      add(x, product(block + "attn_output.weight", attend(q, keys_[layer], values_[layer])));
      const row z = normed(x, block + "ffn_norm.weight");
      row gate = product(block + "ffn_gate.weight", z);
      const row up = product(block + "ffn_up.weight", z);
      for (std::size_t i = 0; i < gate.size(); ++i) {
        gate[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
      }
      add(x, product(block + "ffn_down.weight", gate));
    }
    return product(shape_.separate_output ? "output.weight" : "token_embd.weight",
                   normed(x, "output_norm.weight"));
  }
  static void add(row& x, const row& y) {
    for (std::size_t i = 0; i < x.size(); ++i) {
      x[i] += y[i];
    }
  }

  tiny_shape shape_;
  const gguf_file& file_;
  std::vector<std::vector<row>> keys_;
  std::vector<std::vector<row>> values_;
};

}  // namespace

TEST_CASE("model: equals the architecture written out in double", "[llama][model]") {
  const auto shape = GENERATE(tiny_shape{}, tiny_shape{.separate_output = true},
                              tiny_shape{.architecture = "qwen2", .kv_heads = 1, .biases = true});
  const auto file = gguf_file::parse(tiny_model(shape).file(), "tiny.gguf");
  thread_pool pool(2);
  model fp32(file, pool);
  const auto tokens = random_tokens(20);
  CHECK(largest_difference(one_shot(fp32, tokens, pool), plain_model(shape, file).logits(tokens)) <
        rounding);
}

TEST_CASE("model: chunks of any size give the logits of one call", "[llama][model]") {
  const int threads = GENERATE(1, 2, 3);
  thread_pool pool(threads);
  model model = load({}, pool);
  const auto tokens = random_tokens(300);
  const auto expected = one_shot(model, tokens, pool);
  for (const std::size_t chunk : {1U, 7U, 64U, 150U, 299U}) {
    exact_attention attention(model.shape(), pool);
    std::vector<float> logits(expected.size());
    for (std::size_t first = 0; first < tokens.size(); first += chunk) {
      const std::size_t count = std::min<std::size_t>(chunk, tokens.size() - first);
      model.forward(std::span(tokens).subspan(first, count), static_cast<int>(first), attention,
                    std::span(logits).subspan(first * tiny_vocabulary, count * tiny_vocabulary));
    }
    CHECK(largest_difference(logits, expected) < rounding);
  }
}

TEST_CASE("model: logits are those of the last rows", "[llama][model]") {
  thread_pool pool(2);
  model model = load({}, pool);
  const auto tokens = random_tokens(40);
  const auto all = one_shot(model, tokens, pool);
  exact_attention attention(model.shape(), pool);
  std::vector<float> last(3 * tiny_vocabulary);
  model.forward(tokens, 0, attention, last);
  CHECK(largest_difference(last, std::span(all).last(last.size())) < rounding);
  model.forward(tokens, 0, attention, {});
}

TEST_CASE("model: arguments outside the model are refused", "[llama][model]") {
  thread_pool pool(1);
  model model = load({.context = 16}, pool);
  exact_attention attention(model.shape(), pool);
  const auto tokens = random_tokens(17);
  const auto some = std::span(tokens).first(4);
  std::vector<float> logits(5 * tiny_vocabulary);
  CHECK_THROWS_AS(model.forward(tokens, 0, attention, {}), std::invalid_argument);
  CHECK_THROWS_AS(model.forward(some, 13, attention, {}), std::invalid_argument);
  CHECK_THROWS_AS(model.forward(some, -1, attention, {}), std::invalid_argument);
  CHECK_THROWS_AS(model.forward(some, 1, attention, {}),
                  std::invalid_argument);  // nothing cached before
  CHECK_THROWS_AS(model.forward({}, 0, attention, {}), std::invalid_argument);
  CHECK_THROWS_AS(model.forward(some, 0, attention, logits), std::invalid_argument);
  CHECK_THROWS_AS(model.forward(some, 0, attention, std::span(logits).first(7)),
                  std::invalid_argument);
  const std::vector<int> bad = {tiny_vocabulary};
  CHECK_THROWS_AS(model.forward(bad, 0, attention, {}), std::invalid_argument);
}

TEST_CASE("model: a file whose parts disagree is refused with a reason", "[llama][model]") {
  thread_pool pool(1);
  const auto refusal = [&](const gguf_writer& writer) -> std::string {
    try {
      const auto file = gguf_file::parse(writer.file(), "tiny.gguf");
      const model loaded(file, pool);
    } catch (const gguf_error& error) {
      return error.what();
    }
    return "";
  };
  CHECK(refusal(tiny_model()).empty());
  CHECK(refusal(tiny_model({.kv_heads = 4})).find("do not divide") != std::string::npos);
  CHECK(refusal(tiny_model({.hidden = 50})).find("does not split") != std::string::npos);
  auto extra = tiny_model();
  extra.tensor("blk.0.attn_q_norm.weight", {8}, std::vector<float>(8));
  CHECK(refusal(extra).find("attn_q_norm") != std::string::npos);
  auto scaled = tiny_model();
  scaled.string("llama.rope.scaling.type", "yarn");
  CHECK(refusal(scaled).find("yarn") != std::string::npos);
  auto vocabulary = tiny_model();
  vocabulary.unsigned_integer("llama.vocab_size", 100);
  CHECK(refusal(vocabulary).find("100 tokens") != std::string::npos);
  CHECK(refusal(tiny_model({.architecture = "mamba"})).find("mamba") != std::string::npos);
}

TEST_CASE("exact attention: out, lse and the cache are what the definition says",
          "[llama][attention]") {
  thread_pool pool(2);
  const attention_shape shape{.num_layers = 1, .num_qo_heads = 3, .num_kv_heads = 1, .head_dim = 5};
  exact_attention attention(shape, pool);
  random_stream random(5);
  constexpr std::size_t rows = 150;  // more than two blocks
  std::vector<float> q(rows * 15);
  std::vector<float> k(rows * 5);
  std::vector<float> v(rows * 5);
  std::vector<float> out(rows * 15);
  for (auto* values : {&q, &k, &v}) {
    for (float& value : *values) {
      value = static_cast<float>(4 * random.uniform() - 2);
    }
  }
  int observed = 0;
  attention.observe([&](const attended_layer& layer) {
    observed += layer.len;
    const auto start = static_cast<std::size_t>(layer.start);
    CHECK(layer.k.size() == (start + static_cast<std::size_t>(layer.len)) * 5);
    for (std::size_t row = 0; row < static_cast<std::size_t>(layer.len); ++row) {
      for (std::size_t head = 0; head < 3; ++head) {
        double total = 0;
        double expected = 0;  // of channel 2
        for (std::size_t t = 0; t <= start + row; ++t) {
          double score = 0;
          for (std::size_t c = 0; c < 5; ++c) {
            score += static_cast<double>(layer.q[(row * 3 + head) * 5 + c]) *
                     static_cast<double>(layer.k[t * 5 + c]);
          }
          const double weight = std::exp(score / std::sqrt(5.0));
          total += weight;
          expected += weight * static_cast<double>(layer.v[t * 5 + 2]);
        }
        REQUIRE(static_cast<double>(layer.lse[row * 3 + head]) ==
                Approx(std::log(total)).margin(1e-5));
        REQUIRE(static_cast<double>(layer.out[(row * 3 + head) * 5 + 2]) ==
                Approx(expected / total).margin(1e-5));
      }
    }
  });
  attention.attend(0, 0, 100, q.data(), k.data(), v.data(), out.data());
  attention.attend(0, 100, 50, q.data() + 1500, k.data() + 500, v.data() + 500, out.data() + 1500);
  CHECK(observed == 150);
  CHECK(attention.length(0) == 150);
  CHECK(std::equal(k.begin(), k.end(), attention.keys(0).begin(), attention.keys(0).end()));
  attention.truncate(20);
  CHECK(attention.length(0) == 20);
  CHECK_THROWS_AS(attention.attend(0, 21, 1, q.data(), k.data(), v.data(), out.data()),
                  std::invalid_argument);
  CHECK_THROWS_AS(attention.attend(1, 0, 1, q.data(), k.data(), v.data(), out.data()),
                  std::invalid_argument);
}

TEST_CASE("vector math: exponential is within 2 ulp", "[llama][math]") {
  for (int i = -86'000; i <= 87'000; ++i) {
    const float x = static_cast<float>(i) / 1000;
    const double exact = std::exp(static_cast<double>(x));
    REQUIRE(std::abs(static_cast<double>(exponential(x)) - exact) <= 2 * exact * 0x1p-23);
  }
  CHECK(exponential(0.0F) == 1.0F);
  CHECK(exponential(-1000.0F) < 2e-38F);
  CHECK(exponential(-1000.0F) >= 0.0F);
}

TEST_CASE("thread pool: every index once, exceptions come out, and it goes on",
          "[llama][threads]") {
  thread_pool pool(3);
  for (int round = 0; round < 200; ++round) {
    std::vector<int> hits(50);
    pool.run(hits.size(), [&](std::size_t i, std::size_t) { ++hits[i]; });
    REQUIRE(std::count(hits.begin(), hits.end(), 1) == 50);
  }
  CHECK_THROWS_AS(pool.run(10,
                           [](std::size_t i, std::size_t) {
                             if (i == 3) throw std::runtime_error("3");
                           }),
                  std::runtime_error);
  pool.run(0, [](std::size_t, std::size_t) {});
}

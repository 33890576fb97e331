#include "comparison.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <mutex>
#include <string>

#include "statistics.hpp"
#include "vector_math.hpp"

namespace zipcache_llama {
namespace {

// Tokens whose logits are held at once. The pieces end where an interval of 160 does.
constexpr std::size_t tokens_per_piece = 160;

struct prediction {
  const float* logits;
  std::size_t size;
  float largest;
  double log_sum;  // of all e^logit
  int top;

  explicit prediction(std::span<const float> row)
      : logits(row.data()),
        size(row.size()),
        largest(maximum(row.data(), row.size())),
        log_sum(static_cast<double>(largest) +
                std::log(sum_of_exponentials(row.data(), row.size(), largest))),
        top(static_cast<int>(std::find(row.begin(), row.end(), largest) - row.begin())) {}

  double log_probability(int token) const { return static_cast<double>(logits[token]) - log_sum; }
};

double divergence(const prediction& reference, const prediction& other) {
  const double total = std::exp(reference.log_sum - static_cast<double>(reference.largest));
  const double difference =
      weighted_difference(reference.logits, other.logits, reference.size, reference.largest) /
      total;
  return std::max(difference - (reference.log_sum - other.log_sum), 0.0);
}

using cache_list = std::vector<std::unique_ptr<policy_cache>>;

cache_list make_caches(const comparison_input& input, const attention_shape& shape, int threads) {
  cache_list caches;
  for (const auto* policy : input.policies) {
    caches.push_back(policy->make(shape, input.numbers, threads));
  }
  return caches;
}

// Attends `tokens` exactly, and compresses them in every cache.
void prefill(model& model, exact_attention& exact, std::span<const int> tokens,
             const cache_list& caches, const exact_attention::observer& observe = {}) {
  for (const auto& cache : caches) {
    cache->clear();
  }
  exact.observe([&](const attended_layer& layer) {
    for (const auto& cache : caches) {
      cache->prefill(layer);
    }
    if (observe) {
      observe(layer);
    }
  });
  exact.truncate(0);
  model.forward(tokens, 0, exact, {});
  exact.observe({});
}

// What one thread needs to work through windows and prompts.
class workbench {
 public:
  workbench(const comparison_input& input, const model& shared, const tokenizer& tokenizer)
      : input_(input),
        tokenizer_(tokenizer),
        model_(shared, one_thread_),
        exact_(shared.shape(), one_thread_),
        caches_(make_caches(input, shared.shape(), 1)) {}

  // @param visit  told after every policy's part
  template <class Visit>
  void run_window(std::size_t index, std::vector<policy_result>& results, Visit&& visit) {
    const auto window = input_.windows[index];
    const auto context = static_cast<std::size_t>(input_.context);
    const auto generated = static_cast<std::size_t>(input_.generated);
    prefill(model_, exact_, window.first(context), caches_);
    visit(context);
    if (index == 0) {
      for (std::size_t i = 0; i < caches_.size(); ++i) {
        results[i].after_prefill = caches_[i]->footprint();
      }
    }
    for (std::size_t first = 0; first < generated; first += tokens_per_piece) {
      const std::size_t count = std::min(tokens_per_piece, generated - first);
      const auto tokens = window.subspan(context + first, count);
      const auto next = window.subspan(context + first + 1, count);
      for (std::size_t i = 0; i < caches_.size(); ++i) {
        auto& logits = i == 0 ? reference_ : logits_;
        logits.resize(count * vocabulary());
        decode(model_, tokens, *caches_[i], logits);
        if (i == 0) {
          predict_reference();
        }
        add_predictions(index, first, logits, next, results[i]);
        visit(count);
      }
    }
    for (std::size_t i = 0; i < caches_.size(); ++i) {
      for (auto* sums : {&results[i].surprise, &results[i].kl, &results[i].top1}) {
        (*sums)[index] /= static_cast<double>(generated);
      }
      if (input_.kl_stretch > 0) {
        const auto stretch = static_cast<std::size_t>(input_.kl_stretch);
        auto& along = results[i].kl_along[index];
        for (std::size_t part = 0; part < along.size(); ++part) {  // the last one may be shorter
          along[part] /= static_cast<double>(std::min(stretch, generated - part * stretch));
        }
      }
      if (index == 0) {
        results[i].after_decode = caches_[i]->footprint();
      }
    }
  }

  template <class Visit>
  void run_prompt(std::size_t index, std::vector<policy_result>& results, Visit&& visit) {
    const auto encoded = encode(input_.prompts[index], tokenizer_);
    prefill(model_, exact_, encoded.prompt, caches_);
    for (std::size_t i = 0; i < caches_.size(); ++i) {
      const bool tells_size = input_.windows.empty() && index == 0;
      if (tells_size) {
        results[i].after_prefill = caches_[i]->footprint();
      }
      results[i].retrieved[index] = answers(encoded, *caches_[i]) ? 1.0 : 0.0;
      if (tells_size) {
        results[i].after_decode = caches_[i]->footprint();
      }
    }
    visit(encoded.prompt.size());
  }

 private:
  std::size_t vocabulary() const { return static_cast<std::size_t>(model_.vocab_size()); }

  void predict_reference() {
    predictions_.clear();
    for (std::size_t first = 0; first < reference_.size(); first += vocabulary()) {
      predictions_.emplace_back(std::span(reference_).subspan(first, vocabulary()));
    }
  }

  // @param first  of these tokens, among the decoded ones
  void add_predictions(std::size_t window, std::size_t first, std::span<const float> logits,
                       std::span<const int> next, policy_result& result) const {
    for (std::size_t row = 0; row < next.size(); ++row) {
      const prediction& reference = predictions_[row];
      const prediction own(logits.subspan(row * vocabulary(), vocabulary()));
      result.surprise[window] -= own.log_probability(next[row]);
      const double kl = divergence(reference, own);
      result.kl[window] += kl;
      if (input_.kl_stretch > 0) {
        result.kl_along[window][(first + row) / static_cast<std::size_t>(input_.kl_stretch)] += kl;
      }
      result.top1[window] += own.top == reference.top ? 1.0 : 0.0;
    }
  }

  // Whether greedy decoding behind `start` gives `answer` and then something that is not a digit.
  // It does if each of these tokens is the most likely one behind those before it, which one pass
  // over all of them tells.
  bool answers(const encoded_prompt& encoded, policy_cache& cache) {
    std::vector<int> tokens = encoded.start;
    tokens.insert(tokens.end(), encoded.answer.begin(), encoded.answer.end());
    const std::size_t rows = encoded.answer.size() + 1;
    logits_.resize(rows * vocabulary());
    model_.forward(tokens, cache.length(), cache, logits_);
    const auto top = [&](std::size_t row) {
      return most_likely(std::span<const float>(logits_).subspan(row * vocabulary(), vocabulary()));
    };
    for (std::size_t i = 0; i < encoded.answer.size(); ++i) {
      if (top(i) != encoded.answer[i]) {
        return false;
      }
    }
    const auto& next = tokenizer_.bytes(top(rows - 1));
    return next.empty() || next[0] < '0' || next[0] > '9';
  }

  const comparison_input& input_;
  const tokenizer& tokenizer_;
  thread_pool one_thread_{1};
  model model_;
  exact_attention exact_;
  cache_list caches_;
  std::vector<float> reference_;         // [tokens_per_piece, vocab_size]
  std::vector<prediction> predictions_;  // of its rows
  std::vector<float> logits_;
};

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

void time_decoding(const comparison_input& input, model& model, thread_pool& pool,
                   const exact_attention::observer& observe, std::vector<policy_result>& results) {
  constexpr int warm_up = 4;
  const auto window = input.windows[0];
  const auto caches = make_caches(input, model.shape(), static_cast<int>(pool.size()));
  exact_attention exact(model.shape(), pool);
  prefill(model, exact, window.first(static_cast<std::size_t>(input.context)), caches, observe);
  std::vector<float> logits(static_cast<std::size_t>(model.vocab_size()));
  const int count = std::min(input.timed_tokens, input.generated);
  for (std::size_t i = 0; i < caches.size(); ++i) {
    std::vector<double> seconds;
    for (int t = 0; t < count; ++t) {
      const auto start = std::chrono::steady_clock::now();
      decode(model, window.subspan(static_cast<std::size_t>(input.context + t), 1), *caches[i],
             logits);
      if (t >= warm_up || count <= warm_up) {
        seconds.push_back(
            std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
      }
    }
    results[i].tokens_per_second = seconds.empty() ? 0.0 : 1.0 / median(seconds);
  }
}

}  // namespace

void decode(model& model, std::span<const int> tokens, policy_cache& cache,
            std::span<float> logits) {
  model.forward(tokens, cache.length(), cache, logits);
}

encoded_prompt encode(const line_retrieval_prompt& prompt, const tokenizer& tokenizer) {
  return {tokenizer.encode(prompt.context + prompt.recalled),
          tokenizer.encode(prompt.answer_prefix),
          tokenizer.encode(std::to_string(prompt.expected))};
}

std::size_t comparison_steps(const comparison_input& input) {
  const auto tokens = static_cast<std::size_t>(input.context) +
                      static_cast<std::size_t>(input.generated) * input.policies.size();
  std::size_t steps = input.windows.size() * tokens;
  for (const auto& prompt : input.prompts) {
    steps += prompt.context.size() / 3;  // about as many tokens
  }
  return steps;
}

std::vector<policy_result> compare_policies(const comparison_input& input, model& model,
                                            const tokenizer& tokenizer, thread_pool& pool,
                                            const exact_attention::observer& observe,
                                            const std::function<void(std::size_t)>& advance) {
  std::vector<policy_result> results(input.policies.size());
  for (std::size_t i = 0; i < results.size(); ++i) {
    results[i].policy = input.policies[i];
    for (auto* values : {&results[i].surprise, &results[i].kl, &results[i].top1}) {
      values->resize(input.windows.size());
    }
    results[i].retrieved.resize(input.prompts.size());
    if (input.kl_stretch > 0) {
      const auto stretches = (input.generated + input.kl_stretch - 1) / input.kl_stretch;
      results[i].kl_along.assign(input.windows.size(),
                                 std::vector<double>(static_cast<std::size_t>(stretches)));
    }
  }
  if (!input.windows.empty() && (input.timed_tokens > 0 || observe)) {
    time_decoding(input, model, pool, observe, results);
  }

  std::mutex mutex;
  const auto visit = [&](std::size_t steps) {
    const std::lock_guard lock(mutex);
    advance(steps);
  };
  std::vector<std::unique_ptr<workbench>> benches(pool.size());
  pool.run(input.windows.size() + input.prompts.size(), [&](std::size_t i, std::size_t worker) {
    if (!benches[worker]) {
      benches[worker] = std::make_unique<workbench>(input, model, tokenizer);
    }
    if (i < input.windows.size()) {
      benches[worker]->run_window(i, results, visit);
    } else {
      benches[worker]->run_prompt(i - input.windows.size(), results, visit);
    }
  });
  return results;
}

}  // namespace zipcache_llama

// Where the library is used: attention over a zipcache::kv_cache with given policies. Included by
// policies_*.cpp only, because every set of policies is a cache to compile.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <zipcache/kv_cache.hpp>
#include <zipcache/store/paper_ratio.hpp>

#include "policy_registry.hpp"

namespace zipcache_llama {

template <class Policies>
class compressed_attention final : public policy_cache {
 public:
  compressed_attention(const attention_shape& shape, const zipcache::cache_options& options,
                       int threads)
      : shape_(shape),
        cache_({.num_layers = shape.num_layers,
                .num_qo_heads = shape.num_qo_heads,
                .num_kv_heads = shape.num_kv_heads,
                .head_dim = shape.head_dim},
               options, {.num_threads = threads}),
        sequence_(cache_.create()) {}

  void prefill(const attended_layer& prompt) override {
    if (prompt.start != 0) {
      throw std::invalid_argument("a prompt is compressed as a whole");
    }
    cache_.prefill(sequence_, prompt.layer, queries(prompt.q.data(), prompt.len),
                   keys(prompt.k.data(), prompt.len), keys(prompt.v.data(), prompt.len),
                   {.lse = prompt.lse});
  }

  void attend(int layer, int start, int len, const float* q, const float* k, const float* v,
              float* out) override {
    if (start != cache_.length(sequence_, layer)) {
      throw std::invalid_argument("tokens at position " + std::to_string(start) +
                                  " do not continue layer " + std::to_string(layer));
    }
    cache_.append_and_attend(sequence_, layer, queries(q, len), keys(k, len), keys(v, len),
                             queries(out, len));
  }

  int length() const override { return static_cast<int>(cache_.length(sequence_)); }
  zipcache::footprint footprint() const override { return cache_.footprint(sequence_); }
  void clear() override {
    cache_.release(sequence_);
    sequence_ = cache_.create();
  }

 private:
  template <class T>
  zipcache::tensor_view<T> queries(T* data, int len) const {
    return zipcache::nhd(data, len, shape_.num_qo_heads, shape_.head_dim);
  }
  zipcache::tensor_view<const float> keys(const float* data, int len) const {
    return zipcache::nhd(data, len, shape_.num_kv_heads, shape_.head_dim);
  }

  attention_shape shape_;
  zipcache::kv_cache<float, Policies> cache_;
  zipcache::sequence_id sequence_;
};

// What the registry asks of a set of policies, or of a table of two.
template <class Policies>
struct policy_traits {
  static std::string name() { return Policies::name(); }

  static zipcache::cache_options options(const attention_shape&, const policy_numbers& numbers) {
    return {.salient_ratio = numbers.salient_ratio,
            .recompress_interval = numbers.recompress_interval,
            .recent_window = numbers.recent_window,
            .max_probes = numbers.max_probes,
            .seed = numbers.seed};
  }

  // The paper's formula at the policies' share of salient tokens.
  static std::optional<double> paper_ratio(const attention_shape& shape,
                                           const policy_numbers& numbers, int tokens) {
    using budget = typename Policies::budget_policy;
    if constexpr (zipcache::counts_by_mass<budget>) {
      return std::nullopt;  // num_salient is a bound there, not the share
    } else {
      const zipcache::budget_options budget_of{
          .salient_ratio = numbers.salient_ratio.value_or(budget::default_ratio)};
      const double salient = static_cast<double>(budget::num_salient(tokens, budget_of)) / tokens;
      return zipcache::paper_ratio<Policies>(
          {1.0, static_cast<double>(shape.num_kv_heads * shape.head_dim),
           static_cast<double>(tokens), shape.head_dim},
          salient);
    }
  }
};

template <class Base, class Richer>
struct policy_traits<zipcache::policy_table<Base, Richer>> {
  static constexpr raised_layers default_raised = {.first = 2, .middle = 0, .last = 2};

  static std::string name() { return Base::name() + " or " + Richer::name(); }

  static zipcache::cache_options options(const attention_shape& shape,
                                         const policy_numbers& numbers) {
    auto options = policy_traits<Base>::options(shape, numbers);
    // Most layers are of the base. The pages of the table itself fit the other ones, of which a
    // flush of the base leaves up to half unused.
    options.page_bytes = zipcache::kv_cache<float, Base>({.num_layers = shape.num_layers,
                                                          .num_qo_heads = shape.num_qo_heads,
                                                          .num_kv_heads = shape.num_kv_heads,
                                                          .head_dim = shape.head_dim},
                                                         options)
                             .page_bytes();
    options.layer_policy =
        layer_policy_of(numbers.raised.value_or(default_raised), shape.num_layers);
    return options;
  }

  static std::optional<double> paper_ratio(const attention_shape& shape,
                                           const policy_numbers& numbers, int tokens) {
    const auto base = policy_traits<Base>::paper_ratio(shape, numbers, tokens);
    const auto richer = policy_traits<Richer>::paper_ratio(shape, numbers, tokens);
    if (!base || !richer) {
      return std::nullopt;
    }
    double size = 0;  // of a layer in 16 bits
    for (const auto index :
         layer_policy_of(numbers.raised.value_or(default_raised), shape.num_layers)) {
      size += 1 / (index == 0 ? *base : *richer);
    }
    return shape.num_layers / size;
  }
};

// @param fixed  what the entry itself says about the numbers, over those of the command line
template <class Policies>
policy_entry make_entry(std::string name, std::string summary, bool is_preset,
                        std::function<void(policy_numbers&)> fixed = {}) {
  policy_entry entry;
  entry.name = std::move(name);
  entry.summary = std::move(summary);
  entry.policies = policy_traits<Policies>::name();
  entry.is_preset = is_preset;
  entry.make = [fixed](const attention_shape& shape, policy_numbers numbers,
                       int threads) -> std::unique_ptr<policy_cache> {
    if (fixed) {
      fixed(numbers);
    }
    return std::make_unique<compressed_attention<Policies>>(
        shape, policy_traits<Policies>::options(shape, numbers), threads);
  };
  entry.paper_ratio = [fixed](const attention_shape& shape, policy_numbers numbers, int tokens) {
    if (fixed) {
      fixed(numbers);
    }
    return policy_traits<Policies>::paper_ratio(shape, numbers, tokens);
  };
  return entry;
}

template <class Policies>
policy_entry preset(std::string name, std::string summary,
                    std::function<void(policy_numbers&)> fixed = {}) {
  return make_entry<Policies>(std::move(name), std::move(summary), true, std::move(fixed));
}
template <class Policies>
policy_entry ablation(std::string name, std::string summary,
                      std::function<void(policy_numbers&)> fixed = {}) {
  return make_entry<Policies>(std::move(name), std::move(summary), false, std::move(fixed));
}

// One for each policies_*.cpp.
std::vector<policy_entry> preset_policies();
std::vector<policy_entry> codec_policies();
std::vector<policy_entry> value_policies();
std::vector<policy_entry> saliency_policies();
std::vector<policy_entry> probe_policies();
std::vector<policy_entry> design_policies();
std::vector<policy_entry> granularity_policies();
std::vector<policy_entry> bits_policies();
std::vector<policy_entry> layer_policies();
std::vector<policy_entry> outlier_policies();
std::vector<policy_entry> sink_policies();

}  // namespace zipcache_llama

// The measurement behind `compare`: every policy on the same windows of a text and the same line
// retrieval prompts.
//
// A window or prompt is prefilled once, by exact attention, and every policy compresses the same
// keys, values and log-sum-exps. Then each policy decodes the true continuation (of a window) or
// its own answer (to a prompt) through its compressed cache. Windows and prompts are spread over
// the threads, one thread each, so that results do not depend on how many there are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "line_retrieval.hpp"
#include "model.hpp"
#include "policy_registry.hpp"
#include "thread_pool.hpp"
#include "tokenizer.hpp"

namespace zipcache_llama {

struct comparison_input {
  std::vector<const policy_entry*> policies;  // the first is the reference
  policy_numbers numbers;
  int context = 0;                             // tokens of a window that are prefilled
  int generated = 0;                           // and those that are decoded after them
  std::vector<std::span<const int>> windows;   // context + generated + 1 tokens each; may be empty
  std::vector<line_retrieval_prompt> prompts;  // may be empty
  int timed_tokens = 24;  // for tokens/s, after the first window's context, if any; 0: not timed
  int kl_stretch = 0;     // decoded tokens; the KL of each such stretch is kept too; 0: it is not
};

// One policy; one value for each window or prompt.
struct policy_result {
  const policy_entry* policy = nullptr;
  std::vector<double> surprise;  // mean negative log-probability of the true next token
  std::vector<double> kl;        // mean KL divergence from the reference's prediction to this one's
  std::vector<std::vector<double>> kl_along;  // [window][stretch], of each stretch; or empty
  std::vector<double> top1;       // share of predictions whose most likely token is the reference's
  std::vector<double> retrieved;  // 1 if the number was right
  zipcache::footprint after_prefill;  // of the first window, or without windows the first prompt
  zipcache::footprint after_decode;
  double tokens_per_second =
      0;  // 1 / median time of a token, token by token on all threads; 0: not timed
};

// @param observe  sees every layer of the first window's context, attended exactly; may be empty
// @param advance  called with the number of finished steps out of comparison_steps; one call at a
// time
std::vector<policy_result> compare_policies(const comparison_input& input, model& model,
                                            const tokenizer& tokenizer, thread_pool& pool,
                                            const exact_attention::observer& observe,
                                            const std::function<void(std::size_t)>& advance);
std::size_t comparison_steps(const comparison_input& input);

// A prompt as compare_policies uses it. Which line is asked for stands in the start of the answer,
// so no policy knows it when it compresses the prompt.
struct encoded_prompt {
  std::vector<int> prompt;
  std::vector<int> start;   // decoded through the compressed cache, before the answer
  std::vector<int> answer;  // the number that is asked for
};
encoded_prompt encode(const line_retrieval_prompt& prompt, const tokenizer& tokenizer);

// Teacher-forced decoding of `tokens` behind the cache's own, as one token after the other.
// @param[out] logits  [tokens.size(), vocab_size]
void decode(model& model, std::span<const int> tokens, policy_cache& cache,
            std::span<float> logits);

}  // namespace zipcache_llama

// Attention over a compressed KV cache of one sequence, with its policies hidden: what the commands
// hold.
#pragma once

#include <cstdint>
#include <optional>

#include <zipcache/store/footprint.hpp>

#include "attention.hpp"
#include "exact_attention.hpp"

namespace zipcache_llama {

// The numbers of the command line; those left out are the policy's own.
struct policy_numbers {
  std::optional<double> salient_ratio = {};
  std::optional<std::int64_t> recompress_interval = {};
  std::optional<std::int64_t> recent_window = {};
  std::int64_t max_probes = 0;  // of each kind; 0: no cap
  std::uint64_t seed = 0;
};

// `attend` appends its tokens and attends with their queries, as if they came one by one: the cache
// is compressed between two of them whenever its interval is full.
class policy_cache : public attention {
 public:
  // Compresses one layer of a prompt that exact_attention has attended. @pre the layer is empty,
  // prompt.start == 0
  virtual void prefill(const attended_layer& prompt) = 0;
  virtual int length() const = 0;  // tokens in the first layer
  virtual zipcache::footprint footprint() const = 0;
  virtual void clear() = 0;
};

}  // namespace zipcache_llama

// Attention over a compressed KV cache of one sequence, with its policies hidden: what the commands
// hold.
#pragma once

#include <compare>
#include <cstdint>
#include <optional>
#include <vector>

#include <zipcache/store/footprint.hpp>

#include "attention.hpp"
#include "exact_attention.hpp"

namespace zipcache_llama {

// Layers that have the second policies of a table; the others have the first. Where a model has
// fewer layers, some of them are the same.
struct raised_layers {
  int first = 0;
  int middle = 0;
  int last = 0;

  auto operator<=>(const raised_layers&) const = default;
};

// For each layer the index of its policies in a table.
inline std::vector<std::int32_t> layer_policy_of(const raised_layers& raised, int num_layers) {
  std::vector<std::int32_t> indices;
  const int middle = (num_layers - raised.middle) / 2;
  for (int layer = 0; layer < num_layers; ++layer) {
    const bool is_raised = layer < raised.first || layer >= num_layers - raised.last ||
                           (layer >= middle && layer < middle + raised.middle);
    indices.push_back(is_raised ? 1 : 0);
  }
  return indices;
}

// The numbers of the command line or of an experiment; those left out are the policy's own.
struct policy_numbers {
  std::optional<double> salient_ratio = {};
  std::optional<std::int64_t> recompress_interval = {};
  std::optional<std::int64_t> recent_window = {};
  std::int64_t max_probes = 0;  // of each kind; 0: no cap
  std::uint64_t seed = 0;
  std::optional<raised_layers> raised = {};  // matters to a table of policies only
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

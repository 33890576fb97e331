// The host's side of sequences in device memory: which places are taken, and what is known of each
// layer of a sequence without waiting for the device.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <zipcache/core/error.hpp>
#include <zipcache/store/device_layer.cuh>
#include <zipcache/stream/device_prompt.cuh>
#include <zipcache/stream/sequence_id.hpp>

namespace zipcache::detail {

/// What the host knows of one layer of one sequence. It follows the device by arithmetic alone.
template <class Element>
struct layer_mirror {
  sequence_counts counts;
  int64_t begin = 0;                               ///< tokens that the prompt brought
  std::vector<uint32_t> pages;                     ///< [entries, num_kv_heads], filled and reserved
  std::unique_ptr<device_prompt<Element>> prompt;  ///< chunks that wait for the others

  int64_t num_tokens() const {
    return prompt ? prompt->num_tokens() : int64_t{counts.sealed} + counts.window;
  }
};

/// @brief Places for a fixed number of sequences. A place that is taken again has another
/// generation, by which ids of released sequences are recognized.
template <class Element>
class device_sequences {
 public:
  using layers = std::vector<layer_mirror<Element>>;

  device_sequences(int32_t max_sequences, int32_t num_layers) : num_layers_(num_layers) {
    places_.resize(static_cast<size_t>(max_sequences));
    for (int32_t i = max_sequences - 1; i >= 0; --i) free_.push_back(static_cast<uint32_t>(i));
  }

  /// A sequence whose layers are empty.
  /// @throws capacity_error  all places are taken
  sequence_id take() {
    if (free_.empty()) {
      throw capacity_error(
          "zipcache: all " + std::to_string(places_.size()) +
          " sequences of the cache are in use; raise device_limits::max_sequences or release some");
    }
    const uint32_t index = free_.back();
    free_.pop_back();
    place& taken = places_[index];
    taken.used = true;
    taken.mirrors.clear();
    taken.mirrors.resize(static_cast<size_t>(num_layers_));
    return {index, taken.generation};
  }
  void give_back(sequence_id sequence) {
    place& released = place_of(sequence);
    released.mirrors.clear();
    released.used = false;
    ++released.generation;
    free_.push_back(sequence.index);
  }

  /// @throws argument_error  not a sequence of this cache
  const layers& of(sequence_id sequence) const { return place_of(sequence).mirrors; }
  layers& of(sequence_id sequence) { return place_of(sequence).mirrors; }

  /// Calls visit(layers) for every sequence that there is.
  template <class Visit>
  void visit(Visit&& visit) const {
    for (const place& each : places_) visit(each.mirrors);
  }

 private:
  struct place {
    bool used = false;
    uint32_t generation = 0;
    layers mirrors;  ///< none while it is free
  };

  const place& place_of(sequence_id sequence) const {
    if (sequence.index >= places_.size() || !places_[sequence.index].used ||
        places_[sequence.index].generation != sequence.generation) {
      throw argument_error("zipcache: sequence " + std::to_string(sequence.index) +
                           " (generation " + std::to_string(sequence.generation) +
                           ") is not in this cache, or was released");
    }
    return places_[sequence.index];
  }
  place& place_of(sequence_id sequence) {
    return const_cast<place&>(std::as_const(*this).place_of(sequence));
  }

  int32_t num_layers_;
  std::vector<place> places_;
  std::vector<uint32_t> free_;
};

}  // namespace zipcache::detail

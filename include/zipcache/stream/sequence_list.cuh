// The sequences of a batch, on the host and as indices in device memory.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include <zipcache/core/cuda.cuh>
#include <zipcache/stream/device_pages.cuh>
#include <zipcache/stream/sequence_id.hpp>

namespace zipcache {

/// @brief A fixed list of sequences in device memory, for calls that must not allocate. Made by
/// kv_cache::make_batch.
class sequence_list {
 public:
  sequence_list(cudaStream_t stream, std::vector<sequence_id> sequences)
      : sequences_(std::move(sequences)), indices_(sequences_.size()) {
    std::vector<uint32_t> words;
    for (const sequence_id sequence : sequences_) words.push_back(sequence.index);
    detail::write_words(stream, reinterpret_cast<uint32_t*>(indices_.data()), words);
  }
  std::span<const sequence_id> sequences() const { return sequences_; }
  int32_t size() const { return static_cast<int32_t>(sequences_.size()); }
  const int32_t* device_indices() const { return indices_.data(); }

 private:
  std::vector<sequence_id> sequences_;
  detail::device_array<int32_t> indices_;
};

}  // namespace zipcache

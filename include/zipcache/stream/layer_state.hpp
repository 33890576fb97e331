// What kv_cache asks of one layer of one sequence, whatever its policies.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include <zipcache/attend/attend.hpp>
#include <zipcache/core/view.hpp>
#include <zipcache/store/footprint.hpp>

namespace zipcache {

/// What a prefill may know besides q, k and v.
struct prefill_options {
  int64_t prompt_len =
      0;  ///< tokens of the whole prompt when it comes in chunks; 0: this call brings all of it
  std::span<const float> lse =
      {};  ///< [tokens of this call, num_qo_heads], natural, as prefill attention returned it
  std::span<const int64_t> probe_rows =
      {};  ///< for given_probes: ascending positions in the prompt, the same in every chunk
};

namespace detail {

/// @brief State of one layer of one sequence. Mutations either succeed or leave it as it was.
template <class Element>
class layer_state {
 public:
  virtual ~layer_state() = default;

  virtual void prefill(cpu_backend backend, tensor_view<const Element> q,
                       tensor_view<const Element> k, tensor_view<const Element> v,
                       const prefill_options& options) = 0;
  /// Compresses a full window if there are tokens to come; takes the pages for `count` more tokens.
  /// Nothing that a caller could see changes before `append`.
  virtual void prepare_append(cpu_backend backend, int64_t count) = 0;
  /// Appends tokens that were prepared for.
  virtual void append(tensor_view<const Element> k, tensor_view<const Element> v) noexcept = 0;
  /// Gives back what was prepared and will not be appended.
  virtual void cancel_append() noexcept = 0;
  /// Tokens that may be appended before their queries must have been attended.
  virtual int64_t append_room() const = 0;
  /// @throws argument_error  the last `qo_len` tokens are not all in the window
  virtual void check_queries(int64_t qo_len) const = 0;
  /// Attention of one KV head; q holds the queries of the last q.num_tokens tokens.
  virtual void attend_head(cpu_backend backend, int32_t kv_head, tensor_view<const Element> q,
                           tensor_view<Element> out, float* lse, int64_t lse_stride,
                           attend_rows& rows) const = 0;
  /// Positions of the last `qo_len` tokens whose queries are probes of the current interval; makes
  /// room for these.
  virtual std::vector<int64_t> prepare_probes(int64_t qo_len) = 0;
  /// Keeps the queries at these positions. q holds the last q.num_tokens ones; lse [q.num_tokens,
  /// num_qo_heads]
  virtual void record_probes(std::span<const int64_t> positions, tensor_view<const Element> q,
                             const float* lse) noexcept = 0;
  virtual void check_truncate(int64_t len) const = 0;
  virtual void truncate(int64_t len) noexcept = 0;
  virtual std::unique_ptr<layer_state> clone() const = 0;
  virtual void dequantize(tensor_view<float> k, tensor_view<float> v) const = 0;

  virtual int64_t size() const = 0;         ///< tokens
  virtual int64_t sealed_size() const = 0;  ///< of those, tokens that can no longer be truncated
  virtual bool is_prefilling() const = 0;
  /// Adds what this layer alone holds, and what its segments hold; `seen` skips segments that were
  /// counted before.
  virtual footprint count_bytes(bool (*seen)(const void* segment, void* context),
                                void* context) const = 0;
};

}  // namespace detail
}  // namespace zipcache

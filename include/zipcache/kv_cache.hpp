// The class a user holds: sequences of tokens whose keys and values are compressed as they age, on
// the CPU.
//   prefill -> (append -> attend) ... ; fork, truncate, release in between; dequantize and
//   footprint to look inside.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <zipcache/fwd.hpp>
#include <zipcache/stream/sequence_id.hpp>
#include <zipcache/stream/stream.hpp>

namespace zipcache {

namespace detail {

/// Maps `Policies`, a plain set or a table, to a list and to layer states.
template <class Policies>
struct policy_list {
  static constexpr int32_t size = 1;
  template <class Visit>
  static void visit(int32_t, Visit&& with) {
    with.template operator()<Policies>();
  }
};

template <class... Policies>
struct policy_list<policy_table<Policies...>> {
  static constexpr int32_t size = static_cast<int32_t>(sizeof...(Policies));
  template <class Visit>
  static void visit(int32_t index, Visit&& with) {
    int32_t i = 0;
    (void)((i++ == index ? (with.template operator()<Policies>(), true) : false) || ...);
  }
};

}  // namespace detail

/// @brief A compressed KV cache of many sequences over all layers of a model.
///
/// Every call names its layer, as engines call layer by layer. Tensors are views (core/view.hpp);
/// results are complete on return. A call that throws has changed nothing that a later call could
/// see. A sequence's bytes depend on its own tokens, the options and the seed alone: not on other
/// sequences, batch rows, threads or page numbers. Const members may run concurrently; others need
/// the cache for themselves.
template <class Element, class Policies>
class kv_cache<Element, Policies, cpu_backend> {
  static_assert(
      cache_element<Element>,
      "zipcache: the first argument of kv_cache is float, zipcache::half or zipcache::bfloat16");

 public:
  using element = Element;
  using storage = storage_element<Element>;

  /// @throws argument_error  a shape or option out of range
  explicit kv_cache(const cache_shape& shape, const cache_options& options = {},
                    cpu_backend backend = {})
      : shape_(shape), backend_(backend) {
    detail::check_shape(shape);
    detail::require_between("num_threads", backend.num_threads, 1, 1024);
    if (!options.layer_policy.empty()) {
      detail::require_equal("layer_policy.size()",
                            static_cast<int64_t>(options.layer_policy.size()), shape.num_layers);
    }
    int64_t page_bytes = 0;
    int64_t largest_tile = 0;
    for (int32_t layer = 0; layer < shape.num_layers; ++layer) {
      const int32_t index =
          options.layer_policy.empty() ? 0 : options.layer_policy[static_cast<size_t>(layer)];
      detail::require_between("layer_policy", index, 0, policy_list::size - 1);
      layer_policy_.push_back(index);
      policy_list::visit(index, [&]<class Chosen>() {
        detail::check_granularity<typename Chosen::key_quantizer_policy::granularity>(
            shape.head_dim);
        detail::check_granularity<typename Chosen::value_quantizer_policy::granularity>(
            shape.head_dim);
        layer_options_.push_back(detail::resolve<Chosen>(options));
        page_bytes = most(
            page_bytes, detail::natural_page_bytes<Chosen>(layer_options_.back(), shape.head_dim));
        largest_tile =
            most(largest_tile, most(segment_shape<Chosen>::salient_tile_bytes(shape.head_dim),
                                    segment_shape<Chosen>::regular_tile_bytes(shape.head_dim)));
      });
    }
    if (options.page_bytes != 0) {
      const int64_t least_bytes = most<int64_t>(largest_tile, int64_t{4} * shape.head_dim);
      if (options.page_bytes < least_bytes || options.page_bytes > (int64_t{256} << 10) ||
          options.page_bytes % 16 != 0) {
        detail::refuse("page_bytes", options.page_bytes,
                       ("a multiple of 16 from " + std::to_string(least_bytes) +
                        ", which one tile needs, to 256 KiB")
                           .c_str());
      }
      page_bytes = options.page_bytes;
    }
    detail::require_between("max_pages", options.max_pages, int64_t{0}, int64_t{1} << 31);
    pool_ = std::make_unique<page_pool>(page_bytes, options.max_pages);
  }

  const cache_shape& shape() const { return shape_; }
  int64_t page_bytes() const { return pool_->page_bytes(); }
  const page_pool& pool() const { return *pool_; }

  /// @brief A new, empty sequence.
  sequence_id create() {
    layer_list layers;
    for (int32_t layer = 0; layer < shape_.num_layers; ++layer) {
      policy_list::visit(layer_policy_[static_cast<size_t>(layer)], [&]<class Chosen>() {
        layers.push_back(std::make_unique<detail::stream<Element, Chosen>>(
            *pool_, shape_, layer_options_[static_cast<size_t>(layer)]));
      });
    }
    return adopt(std::move(layers));
  }

  /// @brief A copy that goes its own way. Compressed tokens are shared, the 16-bit window is
  /// copied.
  sequence_id fork(sequence_id sequence) {
    layer_list layers;
    for (const auto& layer : layers_of(sequence)) layers.push_back(layer->clone());
    return adopt(std::move(layers));
  }

  /// @brief Forgets a sequence; pages that no fork shares return to the pool.
  void release(sequence_id sequence) {
    layers_of(sequence).clear();
    ++slots_[sequence.index].generation;
    free_slots_.push_back(sequence.index);
  }

  int64_t num_sequences() const { return static_cast<int64_t>(slots_.size() - free_slots_.size()); }

  /// Tokens of a sequence in a layer.
  int64_t length(sequence_id sequence, int32_t layer = 0) const {
    return layer_of(sequence, layer).size();
  }
  /// Of those, the first tokens that are compressed for good: `truncate` cannot go below.
  int64_t sealed_length(sequence_id sequence, int32_t layer = 0) const {
    return layer_of(sequence, layer).sealed_size();
  }
  /// Tokens that `append` takes before `attend` must see them.
  int64_t append_room(sequence_id sequence, int32_t layer = 0) const {
    return layer_of(sequence, layer).append_room();
  }

  /// @brief Brings a prompt, whole or in chunks, and compresses it when it is complete.
  ///
  /// Chunks wait in 16 bits (`prompt_len` tells how long the prompt is) and are compressed
  /// together: however a prompt is cut, the bytes are those of one call, provided lse is given with
  /// every chunk or with none. Attention of the prompt over itself is the caller's; only probe rows
  /// of q are looked at.
  /// @param[in] q  [num_qo_heads, n, head_dim]; may be empty if the policies need no probes
  /// @param[in] k, v  [num_kv_heads, n, head_dim], finite (float: within +-65504)
  /// @throws state_error  the sequence already has a complete prompt or tokens
  /// @throws argument_error  shapes, non-finite values, a chunk beyond prompt_len
  /// @throws capacity_error  the page pool is exhausted
  void prefill(sequence_id sequence, int32_t layer, tensor_view<const Element> q,
               tensor_view<const Element> k, tensor_view<const Element> v,
               const prefill_options& options = {}) {
    auto& state = layer_of(sequence, layer);
    check_kv(k, v);
    if (q.data != nullptr || q.num_tokens != 0) check_queries("q", q);
    detail::require_between("prompt_len", options.prompt_len, int64_t{0}, int64_t{INT32_MAX});
    check_finite("k", k);
    check_finite("v", v);
    state.prefill(backend_, q, k, v, options);
  }

  /// @brief Appends new tokens: one to each of `sequences`, or `lengths[i]` to the i-th, in order
  /// along the token axis. A full window is compressed first, by itself.
  /// @param[in] k, v  [num_kv_heads, total, head_dim], finite
  /// @throws argument_error  more tokens than append_room, a sequence twice, shapes, non-finite
  /// values
  /// @throws state_error  a prompt that is not complete, probe queries that were never attended
  void append(std::span<const sequence_id> sequences, int32_t layer, tensor_view<const Element> k,
              tensor_view<const Element> v, std::span<const int64_t> lengths = {}) {
    check_kv(k, v);
    const std::vector<int64_t> firsts = split_tokens(sequences, lengths, k.num_tokens);
    check_distinct(sequences);
    for (const sequence_id sequence : sequences) layer_of(sequence, layer);
    check_finite("k", k);
    check_finite("v", v);
    size_t prepared = 0;
    try {
      for (; prepared < sequences.size(); ++prepared)
        layer_of(sequences[prepared], layer)
            .prepare_append(backend_, firsts[prepared + 1] - firsts[prepared]);
    } catch (...) {
      for (size_t i = 0; i < prepared; ++i) layer_of(sequences[i], layer).cancel_append();
      throw;
    }
    for (size_t i = 0; i < sequences.size(); ++i) {
      layer_of(sequences[i], layer)
          .append(k.tokens(firsts[i], firsts[i + 1] - firsts[i]),
                  v.tokens(firsts[i], firsts[i + 1] - firsts[i]));
    }
  }
  void append(sequence_id sequence, int32_t layer, tensor_view<const Element> k,
              tensor_view<const Element> v) {
    const int64_t length = k.num_tokens;
    append(std::span(&sequence, 1), layer, k, v, std::span(&length, 1));
  }

  /// @brief Attention of a ragged batch over everything that is cached, directly on the packed
  /// codes.
  ///
  /// The queries of sequence i are those of its last `lengths[i]` tokens (one by default),
  /// causally: each sees its own token and all before it. They must still be in the window. Queries
  /// that are probes are remembered.
  /// @param[in] q  [num_qo_heads, total, head_dim]
  /// @param[out] out  [num_qo_heads, total, head_dim]
  /// @param[out] lse  [total, num_qo_heads], natural log-sum-exp, or empty
  /// @throws argument_error  shapes, more query tokens than the window has
  void attend(std::span<const sequence_id> sequences, int32_t layer, tensor_view<const Element> q,
              tensor_view<Element> out, std::span<float> lse = {},
              std::span<const int64_t> lengths = {}) {
    check_queries("q", q);
    check_queries("out", out);
    detail::require_equal("out.num_tokens", out.num_tokens, q.num_tokens);
    const std::vector<int64_t> firsts = split_tokens(sequences, lengths, q.num_tokens);
    if (!lse.empty())
      detail::require_equal("lse.size()", static_cast<int64_t>(lse.size()),
                            q.num_tokens * shape_.num_qo_heads);
    for (size_t i = 0; i < sequences.size(); ++i)
      layer_of(sequences[i], layer).check_queries(firsts[i + 1] - firsts[i]);
    std::vector<float> own_lse(lse.empty() ? static_cast<size_t>(q.num_tokens * shape_.num_qo_heads)
                                           : 0);
    std::vector<std::vector<int64_t>> probes(sequences.size());
    for (size_t i = 0; i < sequences.size(); ++i)
      probes[i] = layer_of(sequences[i], layer).prepare_probes(firsts[i + 1] - firsts[i]);
    float* const lse_rows = lse.empty() ? own_lse.data() : lse.data();
    const int64_t items = static_cast<int64_t>(sequences.size()) * shape_.num_kv_heads;
    detail::parallel_for(backend_.num_threads, items, [&](int64_t item) {
      static thread_local attend_rows rows;
      const size_t i = static_cast<size_t>(item / shape_.num_kv_heads);
      const int64_t length = firsts[i + 1] - firsts[i];
      if (length == 0) return;
      layer_of(sequences[i], layer)
          .attend_head(backend_, static_cast<int32_t>(item % shape_.num_kv_heads),
                       q.tokens(firsts[i], length), out.tokens(firsts[i], length),
                       lse_rows + firsts[i] * shape_.num_qo_heads, shape_.num_qo_heads, rows);
    });
    for (size_t i = 0; i < sequences.size(); ++i) {
      layer_of(sequences[i], layer)
          .record_probes(probes[i], q.tokens(firsts[i], firsts[i + 1] - firsts[i]),
                         lse_rows + firsts[i] * shape_.num_qo_heads);
    }
  }
  void attend(sequence_id sequence, int32_t layer, tensor_view<const Element> q,
              tensor_view<Element> out, std::span<float> lse = {}) {
    const int64_t length = q.num_tokens;
    attend(std::span(&sequence, 1), layer, q, out, lse, std::span(&length, 1));
  }

  /// @brief Appends any number of tokens to one sequence and attends with their queries: the same
  /// as doing so token by token, in as few pieces as the intervals allow. Arguments are checked
  /// before the first piece; if memory or the pool runs out in a later one, the pieces before it
  /// stay.
  void append_and_attend(sequence_id sequence, int32_t layer, tensor_view<const Element> q,
                         tensor_view<const Element> k, tensor_view<const Element> v,
                         tensor_view<Element> out, std::span<float> lse = {}) {
    detail::require_equal("q.num_tokens", q.num_tokens, k.num_tokens);
    detail::require_equal("out.num_tokens", out.num_tokens, k.num_tokens);
    check_kv(k, v);
    check_queries("q", q);
    check_queries("out", out);
    check_finite("k", k);
    check_finite("v", v);
    if (!lse.empty())
      detail::require_equal("lse.size()", static_cast<int64_t>(lse.size()),
                            k.num_tokens * shape_.num_qo_heads);
    layer_of(sequence, layer);
    for (int64_t first = 0; first < k.num_tokens;) {
      const int64_t count = std::min(k.num_tokens - first, append_room(sequence, layer));
      append(sequence, layer, k.tokens(first, count), v.tokens(first, count));
      const auto piece_lse = lse.empty()
                                 ? lse
                                 : lse.subspan(static_cast<size_t>(first * shape_.num_qo_heads),
                                               static_cast<size_t>(count * shape_.num_qo_heads));
      attend(sequence, layer, q.tokens(first, count), out.tokens(first, count), piece_lse);
      first += count;
    }
  }

  /// @brief Keeps the first `len` tokens in every layer; exact within the window.
  /// @throws argument_error  `len` is below what is compressed, or beyond the end, in some layer
  void truncate(sequence_id sequence, int64_t len) {
    for (const auto& layer : layers_of(sequence)) layer->check_truncate(len);
    for (const auto& layer : layers_of(sequence)) layer->truncate(len);
  }

  /// @brief Every token's key and value as attention sees them, in token order; evicted tokens are
  /// zeros.
  /// @param[out] k, v  [num_kv_heads, length, head_dim]
  void dequantize(sequence_id sequence, int32_t layer, tensor_view<float> k,
                  tensor_view<float> v) const {
    const auto& state = layer_of(sequence, layer);
    for (const auto& x : {k, v}) {
      detail::require_equal("num_heads", x.num_heads, shape_.num_kv_heads);
      detail::require_equal("num_tokens", x.num_tokens, state.size());
      detail::require_equal("head_dim", x.head_dim, shape_.head_dim);
    }
    state.dequantize(k, v);
  }

  /// @brief What all sequences hold together; a segment shared by forks counts once, its tokens for
  /// each.
  zipcache::footprint footprint() const {
    zipcache::footprint total;
    std::set<const void*> seen;
    for (const slot& entry : slots_) {
      for (const auto& layer : entry.layers) total += layer->count_bytes(&seen_before, &seen);
    }
    return total;
  }
  /// @brief What one sequence holds, shared or not.
  zipcache::footprint footprint(sequence_id sequence) const {
    zipcache::footprint total;
    std::set<const void*> seen;
    for (const auto& layer : layers_of(sequence)) total += layer->count_bytes(&seen_before, &seen);
    return total;
  }

  /// @brief The state of one layer under `Chosen` policies, for tests and inspection; null if the
  /// layer has others.
  template <class Chosen = Policies>
  const detail::stream<Element, Chosen>* inspect(sequence_id sequence, int32_t layer) const {
    const detail::stream<Element, Chosen>* found = nullptr;
    layer_of(sequence, layer);
    policy_list::visit(layer_policy_[static_cast<size_t>(layer)], [&]<class Actual>() {
      if constexpr (std::is_same_v<Actual, Chosen>)
        found = static_cast<const detail::stream<Element, Chosen>*>(&layer_of(sequence, layer));
    });
    return found;
  }

  /// @brief All that one layer of a sequence is made of, for a cache elsewhere. In a policy_table,
  /// `Chosen` names the layer's policies.
  /// @throws state_error  a prompt that is not complete
  /// @throws argument_error  the layer has other policies
  template <class Chosen = Policies>
  layer_content<Element, Chosen> read_layer(sequence_id sequence, int32_t layer) const {
    const detail::stream<Element, Chosen>* state = inspect<Chosen>(sequence, layer);
    detail::require(state != nullptr, "read_layer names other policies than the layer has");
    return state->content();
  }

  /// @brief A new sequence that is what `read_layer` gave for each layer of another one, in a cache
  /// of the same shape, policies, options and page size. All layers have the policies `Chosen`.
  /// @throws argument_error  not one content for each layer, other sizes, other policies
  /// @throws capacity_error  the page pool is exhausted
  template <class Chosen = Policies>
  sequence_id restore(
      std::type_identity_t<std::span<const layer_content<Element, Chosen>>> contents) {
    detail::require_equal("contents.size()", static_cast<int64_t>(contents.size()),
                          shape_.num_layers);
    layer_list layers;
    for (size_t layer = 0; layer < contents.size(); ++layer) {
      policy_list::visit(layer_policy_[layer], [&]<class Actual>() {
        detail::require(std::is_same_v<Actual, Chosen>,
                        "restore names other policies than a layer has");
      });
      auto state =
          std::make_unique<detail::stream<Element, Chosen>>(*pool_, shape_, layer_options_[layer]);
      state->restore(contents[layer]);
      layers.push_back(std::move(state));
    }
    return adopt(std::move(layers));
  }

  /// The numbers that a layer works with, defaults filled in.
  const stream_options& layer_options(int32_t layer) const {
    return layer_options_[static_cast<size_t>(layer)];
  }

 private:
  using policy_list = detail::policy_list<Policies>;
  using layer_list = std::vector<std::unique_ptr<detail::layer_state<Element>>>;
  struct slot {
    uint32_t generation = 0;
    layer_list layers;
  };

  static bool seen_before(const void* segment, void* context) {
    return !static_cast<std::set<const void*>*>(context)->insert(segment).second;
  }

  sequence_id adopt(layer_list&& layers) {
    if (free_slots_.empty()) {
      free_slots_.reserve(slots_.size() + 1);  // so that release cannot fail
      slots_.push_back({0, std::move(layers)});
      return {static_cast<uint32_t>(slots_.size() - 1), 0};
    }
    const uint32_t index = free_slots_.back();
    free_slots_.pop_back();
    slots_[index].layers = std::move(layers);
    return {index, slots_[index].generation};
  }

  const layer_list& layers_of(sequence_id sequence) const {
    if (sequence.index >= slots_.size() ||
        slots_[sequence.index].generation != sequence.generation ||
        slots_[sequence.index].layers.empty()) {
      throw argument_error("zipcache: sequence " + std::to_string(sequence.index) +
                           " (generation " + std::to_string(sequence.generation) +
                           ") is not in this cache, or was released");
    }
    return slots_[sequence.index].layers;
  }
  layer_list& layers_of(sequence_id sequence) {
    return const_cast<layer_list&>(std::as_const(*this).layers_of(sequence));
  }
  detail::layer_state<Element>& layer_of(sequence_id sequence, int32_t layer) const {
    const layer_list& layers = layers_of(sequence);
    detail::require_between("layer", layer, 0, shape_.num_layers - 1);
    return *layers[static_cast<size_t>(layer)];
  }

  void check_kv(tensor_view<const Element> k, tensor_view<const Element> v) const {
    detail::require_equal("k.num_heads", k.num_heads, shape_.num_kv_heads);
    detail::require_equal("v.num_heads", v.num_heads, shape_.num_kv_heads);
    detail::require_equal("k.head_dim", k.head_dim, shape_.head_dim);
    detail::require_equal("v.head_dim", v.head_dim, shape_.head_dim);
    detail::require_between("k.num_tokens", k.num_tokens, int64_t{0}, int64_t{INT32_MAX});
    detail::require_equal("v.num_tokens", v.num_tokens, k.num_tokens);
    detail::require((k.data != nullptr && v.data != nullptr) || k.num_tokens == 0,
                    "k and v must point to their values, and one is null");
  }
  void check_queries(const char* name, tensor_view<const Element> q) const {
    detail::require(q.num_heads == shape_.num_qo_heads && q.head_dim == shape_.head_dim,
                    std::string(name) + " has " + std::to_string(q.num_heads) + " heads of " +
                        std::to_string(q.head_dim) + " channels, but must have " +
                        std::to_string(shape_.num_qo_heads) + " of " +
                        std::to_string(shape_.head_dim));
    detail::require(q.data != nullptr || q.num_tokens == 0, std::string(name) + " is null");
  }

  /// Non-finite input would spoil its group; in float also what 16 bits cannot hold.
  static void check_finite(const char* name, tensor_view<const Element> x) {
    const float limit = largest_finite<storage>;
    for (int32_t head = 0; head < x.num_heads; ++head) {
      for (int64_t token = 0; token < x.num_tokens; ++token) {
        const Element* row = x.row(head, token);
        if (detail::is_within(row, x.head_dim, limit)) continue;
        for (int32_t channel = 0; channel < x.head_dim; ++channel) {
          if (std::fabs(to_float(row[channel])) <= limit) continue;
          throw argument_error("zipcache: " + std::string(name) + " is " +
                               std::to_string(to_float(row[channel])) + " at head " +
                               std::to_string(head) + ", token " + std::to_string(token) +
                               ", channel " + std::to_string(channel) +
                               ", but must be finite and within +-" + std::to_string(limit));
        }
      }
    }
  }

  /// Where each sequence's tokens begin along the token axis, and the end. [num_sequences + 1]
  static std::vector<int64_t> split_tokens(std::span<const sequence_id> sequences,
                                           std::span<const int64_t> lengths, int64_t total) {
    if (!lengths.empty())
      detail::require_equal("lengths.size()", static_cast<int64_t>(lengths.size()),
                            static_cast<int64_t>(sequences.size()));
    std::vector<int64_t> firsts{0};
    for (size_t i = 0; i < sequences.size(); ++i) {
      const int64_t length = lengths.empty() ? 1 : lengths[i];
      detail::require_between("length of a sequence's tokens", length, int64_t{0},
                              total - firsts.back());
      firsts.push_back(firsts.back() + length);
    }
    detail::require_equal("the number of tokens in the tensors", total, firsts.back());
    return firsts;
  }
  static void check_distinct(std::span<const sequence_id> sequences) {
    std::set<uint32_t> seen;
    for (const sequence_id sequence : sequences) {
      detail::require(seen.insert(sequence.index).second,
                      "sequence " + std::to_string(sequence.index) + " is in the batch twice");
    }
  }

  cache_shape shape_;
  cpu_backend backend_;
  std::vector<int32_t> layer_policy_;
  std::vector<stream_options> layer_options_;
  std::unique_ptr<page_pool> pool_;  ///< outlives the sequences, whose pages it takes back
  std::vector<slot> slots_;
  std::vector<uint32_t> free_slots_;
};

}  // namespace zipcache

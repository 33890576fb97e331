// Streaming on the CPU: the life of one layer of one sequence. New tokens wait in a 16-bit window;
// the prefill and then every interval are split by saliency and sealed into a segment, once and for
// all (ZipCache, algorithms 2 and 3; the published code requantizes old segments, we never do).
// Decode queries that are probes are kept until their interval is sealed, each with its log-sum-exp
// over everything it saw.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <memory>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <zipcache/saliency/saliency.hpp>
#include <zipcache/select/select.hpp>
#include <zipcache/select/sinks.hpp>
#include <zipcache/store/row_store.hpp>
#include <zipcache/store/store.hpp>
#include <zipcache/stream/layer_content.hpp>
#include <zipcache/stream/layer_state.hpp>
#include <zipcache/stream/options.hpp>
#include <zipcache/stream/probe_plan.hpp>

namespace zipcache::detail {

/// Query rows that were kept as probes, ascending by position.
template <class Element>
struct kept_probes {
  std::vector<int64_t> positions;
  std::vector<Element> q;  ///< [num_probes, num_qo_heads, head_dim]
  std::vector<float> lse;  ///< [num_probes, num_qo_heads]; empty when the prefill did not give it

  /// Adds a row behind the last one, or in its place if it has the same position.
  void keep(int64_t position, tensor_view<const Element> queries, int64_t row,
            const float* row_lse) {
    if (!positions.empty() && positions.back() >= position)
      drop_from(position, queries.num_heads, queries.head_dim);
    positions.push_back(position);
    for (int32_t head = 0; head < queries.num_heads; ++head) {
      const Element* source = queries.row(head, row);
      q.insert(q.end(), source, source + queries.head_dim);
    }
    if (row_lse != nullptr) lse.insert(lse.end(), row_lse, row_lse + queries.num_heads);
  }
  /// Room for `count` more rows with their lse: keeping them then cannot fail.
  void reserve(size_t count, int32_t num_heads, int32_t head_dim) {
    const auto grow = [&](auto& values, int64_t row_size) {
      const size_t needed = values.size() + count * static_cast<size_t>(row_size);
      if (needed > values.capacity()) values.reserve(std::max(needed, 2 * values.capacity()));
    };
    grow(positions, 1);
    grow(q, int64_t{num_heads} * head_dim);
    grow(lse, num_heads);
  }
  void drop_from(int64_t position, int32_t num_heads, int32_t head_dim) noexcept {
    const auto kept =
        std::lower_bound(positions.begin(), positions.end(), position) - positions.begin();
    const size_t count = static_cast<size_t>(kept);
    const bool has_lse = !lse.empty();
    positions.resize(count);
    q.resize(count * static_cast<size_t>(num_heads) * static_cast<size_t>(head_dim));
    if (has_lse) lse.resize(count * static_cast<size_t>(num_heads));
  }
  int64_t bytes() const {
    return static_cast<int64_t>(positions.size() * sizeof(int64_t) + q.size() * sizeof(Element) +
                                lse.size() * sizeof(float));
  }
};

template <class Element, class Policies>
class stream final : public layer_state<Element> {
 public:
  using storage = storage_element<Element>;

  stream(page_pool& pool, const cache_shape& shape, const stream_options& options)
      : pool_(&pool),
        shape_(shape),
        options_(options),
        window_(pool, shape.num_kv_heads, shape.head_dim),
        sinks_(pool, shape.num_kv_heads, shape.head_dim) {}

  int64_t size() const override { return sealed_ + window_.size(); }
  int64_t sealed_size() const override { return sealed_; }
  bool is_prefilling() const override { return prompt_len_ > 0; }

  void prefill(cpu_backend backend, tensor_view<const Element> q, tensor_view<const Element> k,
               tensor_view<const Element> v, const prefill_options& given) override {
    const int64_t count = k.num_tokens;
    const int64_t prompt_len = given.prompt_len > 0 ? given.prompt_len : count;
    const int64_t first = size();
    if (prompt_len_ == 0 && first > 0)
      throw state_error("zipcache: prefill needs an empty sequence; this one has " +
                        std::to_string(first) + " tokens (append continues it)");
    if (prompt_len_ > 0 && prompt_len_ != prompt_len)
      refuse("prompt_len", prompt_len,
             ("the same in every chunk, and it was " + std::to_string(prompt_len_)).c_str());
    if (first + count > prompt_len)
      refuse("k.num_tokens", count,
             ("at most " + std::to_string(prompt_len - first) +
              ", which is what the prompt still lacks")
                 .c_str());
    if (prompt_len == 0) return;

    std::vector<int64_t> rows;
    if constexpr (Policies::needs_probes) {
      rows = prompt_probe_rows<Policies>(prompt_len, given.probe_rows, options_);
      require_equal("q.num_tokens", q.num_tokens, count);
      if (!given.lse.empty())
        require_equal("lse.size()", static_cast<int64_t>(given.lse.size()),
                      count * shape_.num_qo_heads);
      require(first == 0 || probes_.positions.empty() || given.lse.empty() == probes_.lse.empty(),
              "lse must be given with every chunk of a prompt or with none");
    }
    kept_probes<Element> chunk_probes = probes_;
    for (const int64_t row : rows) {
      if (row < first || row >= first + count) continue;
      require_finite("q", q.tokens(row - first, 1), row - first);
      chunk_probes.keep(
          row, q, row - first,
          given.lse.empty() ? nullptr : given.lse.data() + (row - first) * shape_.num_qo_heads);
    }

    if (first + count < prompt_len) {
      window_.reserve(count);
      window_.push(k, v);
      probes_ = std::move(chunk_probes);
      prompt_len_ = prompt_len;
      return;
    }
    if constexpr (std::is_same_v<Element, storage>) {
      // One call with 16-bit tensors: compress from the caller's memory, no copy in between.
      if (first == 0) return finish_prefill(backend, k, v, chunk_probes);
    }
    gathered tokens(shape_, prompt_len);
    tokens.fill(window_, first);
    tokens.fill(k, v, first);
    finish_prefill(backend, tokens.k(), tokens.v(), chunk_probes);
  }

  void prepare_append(cpu_backend backend, int64_t count) override {
    if (is_prefilling()) {
      throw state_error(
          "zipcache: append before the prompt is complete: " + std::to_string(size()) + " of " +
          std::to_string(prompt_len_) + " tokens are there");
    }
    if (count > append_room()) {
      refuse("the number of appended tokens", count,
             ("at most " + std::to_string(append_room()) +
              ", what is left of the interval: its probe queries must be attended before the next "
              "one begins (append_and_attend does both)")
                 .c_str());
    }
    if (count == 0) return;
    std::optional<sealed_tokens> flushed;
    if (is_full()) flushed = seal_interval(backend);
    window_.reserve(count, flushed ? interval() : 0);
    flushed_ = std::move(flushed);
  }

  void append(tensor_view<const Element> k, tensor_view<const Element> v) noexcept override {
    if (flushed_) {
      window_.drop_front(interval());
      commit(std::move(*flushed_), interval());
      flushed_.reset();
    }
    window_.push(k, v);
    window_.release_unused();
  }
  void cancel_append() noexcept override {
    flushed_.reset();
    window_.release_unused();
  }

  int64_t append_room() const override {
    return is_full() ? interval() : capacity() - window_.size();
  }

  void check_queries(int64_t qo_len) const override {
    if (qo_len > window_.size()) {
      refuse("the number of query tokens", qo_len,
             ("at most " + std::to_string(window_.size()) +
              ", the tokens in the window: a query stands at one of the sequence's last tokens, "
              "and those before the window are compressed")
                 .c_str());
    }
  }

  void attend_head(cpu_backend backend, int32_t kv_head, tensor_view<const Element> q,
                   tensor_view<Element> out, float* lse, int64_t lse_stride,
                   attend_rows& rows) const override {
    const int32_t group = shape_.group();
    load_queries(q, kv_head, group, shape_.softmax_scale(), rows);
    if (sinks_.size() > 0) attend_rows_of(backend, sinks_, kv_head, sinks_.size(), rows);
    for (const auto& sealed : segments_)
      zipcache::attend<Policies, storage>(backend, *sealed, kv_head, rows);
    attend_rows_of(backend, window_, kv_head, window_.size() - q.num_tokens + 1, rows);
    store_output(rows, kv_head, group, out, lse, lse_stride);
  }

  std::vector<int64_t> prepare_probes(int64_t qo_len) override {
    std::vector<int64_t> positions;
    if constexpr (Policies::needs_probes) {
      if (is_prefilling()) return positions;
      positions = planned_probes();
      std::erase_if(positions, [&](int64_t position) {
        return position < size() - qo_len || position >= size();
      });
      probes_.reserve(positions.size(), shape_.num_qo_heads, shape_.head_dim);
    }
    return positions;
  }
  void record_probes(std::span<const int64_t> positions, tensor_view<const Element> q,
                     const float* lse) noexcept override {
    const int64_t first = size() - q.num_tokens;
    for (const int64_t position : positions)
      probes_.keep(position, q, position - first, lse + (position - first) * shape_.num_qo_heads);
  }

  void check_truncate(int64_t len) const override {
    if (is_prefilling()) throw state_error("zipcache: truncate before the prompt is complete");
    if (len < sealed_ || len > size()) {
      refuse("len", len,
             ("between " + std::to_string(sealed_) + " and " + std::to_string(size()) +
              ": older tokens are compressed together and cannot be taken apart")
                 .c_str());
    }
  }
  void truncate(int64_t len) noexcept override {
    window_.drop_back(size() - len);
    probes_.drop_from(len, shape_.num_qo_heads, shape_.head_dim);
    interval_start_ = std::min(interval_start_, len);
  }

  std::unique_ptr<layer_state<Element>> clone() const override {
    auto copy = std::make_unique<stream>(*pool_, shape_, options_);
    copy->window_ = window_.clone();
    copy->sinks_ = sinks_.clone();
    copy->sink_positions_ = sink_positions_;
    copy->segments_ = segments_;
    copy->sealed_ = sealed_;
    copy->interval_start_ = interval_start_;
    copy->prompt_len_ = prompt_len_;
    copy->probes_ = probes_;
    return copy;
  }

  void dequantize(tensor_view<float> k, tensor_view<float> v) const override {
    for (int32_t head = 0; head < shape_.num_kv_heads; ++head) {
      for (int64_t token = 0; token < sinks_.size(); ++token)
        widen_row(sinks_, head, token, sink_positions_[static_cast<size_t>(token)], k, v);
      for (const auto& sealed : segments_) {
        int64_t position = sealed->first_position;
        const auto copy_row = [&](int64_t, const float* key, const float* value) {
          position = next_quantized(position);
          std::copy_n(key, shape_.head_dim, k.row(head, position));
          std::copy_n(value, shape_.head_dim, v.row(head, position));
          ++position;
        };
        dequantize_head<Policies, storage>(*sealed, head, copy_row);
      }
      for (int64_t token = 0; token < window_.size(); ++token)
        widen_row(window_, head, token, sealed_ + token, k, v);
    }
  }

  footprint count_bytes(bool (*seen)(const void*, void*), void* context) const override {
    footprint bytes;
    const int64_t token_bytes = int64_t{4} * shape_.num_kv_heads * shape_.head_dim;
    bytes.num_tokens = size();
    bytes.uncompressed_bytes = size() * token_bytes;
    bytes.window_bytes = (window_.num_pages() + sinks_.num_pages()) * pool_->page_bytes();
    bytes.table_bytes =
        static_cast<int64_t>(segments_.size() * sizeof(segments_[0]) +
                             sink_positions_.size() * sizeof(int64_t)) +
        (window_.num_pages() + sinks_.num_pages()) * static_cast<int64_t>(sizeof(uint32_t)) +
        probes_.bytes();
    for (const auto& sealed : segments_) {
      if (!seen(sealed.get(), context)) bytes += segment_footprint(*sealed);
    }
    return bytes;
  }

  /// @brief A copy of all that the layer is made of, for a cache elsewhere.
  /// @throws state_error  a prompt that is not complete
  layer_content<Element, Policies> content() const {
    if (is_prefilling())
      throw state_error("zipcache: a sequence cannot be moved before its prompt is complete");
    layer_content<Element, Policies> copy;
    copy_rows(sinks_, copy.sinks);
    copy.sink_positions = sink_positions_;
    copy_rows(window_, copy.window);
    for (const auto& sealed : segments_) {
      segment_content<Policies>& part = copy.segments.emplace_back();
      part.resize(sealed->shape, pool_->page_bytes());
      for (size_t page = 0; page < sealed->table.size(); ++page)
        std::memcpy(part.pages.data() + page * static_cast<size_t>(part.page_bytes),
                    pool_->data(sealed->table[page].page), static_cast<size_t>(part.page_bytes));
      part.records = sealed->records;
      part.bitmaps = sealed->salient_bitmap;
    }
    copy.interval_start = interval_start_;
    copy.probe_positions = probes_.positions;
    copy.probe_q = probes_.q;
    copy.probe_lse = probes_.lse;
    return copy;
  }

  /// @brief Makes an empty layer what `content` of another was.
  /// @throws capacity_error  the pool is exhausted; the layer is to be thrown away
  void restore(const layer_content<Element, Policies>& given) {
    restore_rows(given.sinks, sinks_);
    sealed_ = given.sinks.num_tokens;
    sink_positions_ = given.sink_positions;
    if (sink_positions_.empty()) {
      sink_positions_.resize(static_cast<size_t>(sinks_.size()));
      std::iota(sink_positions_.begin(), sink_positions_.end(), int64_t{0});
    }
    int64_t position = 0;
    for (const segment_content<Policies>& part : given.segments) {
      auto sealed = std::make_shared<segment<Policies>>();
      sealed->shape = part.shape;
      sealed->first_position = next_quantized(position);
      for (int64_t token = 0; token < part.shape.num_tokens; ++token)
        position = next_quantized(position) + 1;
      sealed->pool = pool_;
      sealed->pages = page_list(*pool_);
      const std::vector<page_entry> entries = part.entries();
      sealed->pages_per_head = static_cast<int64_t>(entries.size());
      require_equal("page_bytes", part.page_bytes, pool_->page_bytes());
      for (int32_t head = 0; head < part.shape.num_kv_heads; ++head) {
        for (page_entry entry : entries) {
          sealed->pages.grow();
          entry.page = sealed->pages[sealed->pages.size() - 1];
          std::memcpy(
              pool_->data(entry.page),
              part.pages.data() + sealed->table.size() * static_cast<size_t>(part.page_bytes),
              static_cast<size_t>(part.page_bytes));
          sealed->table.push_back(entry);
        }
      }
      sealed->records = part.records;
      sealed->salient_bitmap = part.bitmaps;
      sealed_ += part.shape.num_tokens;
      segments_.push_back(std::move(sealed));
    }
    restore_rows(given.window, window_);
    interval_start_ = given.interval_start;
    probes_ = {given.probe_positions, given.probe_q, given.probe_lse};
  }

  /// What the state is made of, for inspection and tests.
  const row_store<storage>& window() const { return window_; }
  const row_store<storage>& sinks() const { return sinks_; }
  const kept_probes<Element>& probes() const { return probes_; }
  std::span<const std::shared_ptr<const segment<Policies>>> segments() const { return segments_; }

 private:
  /// Tokens copied together in 16 bits. [num_kv_heads, num_tokens, head_dim]
  struct gathered {
    cache_shape shape;
    int64_t num_tokens;
    std::vector<storage> keys, values;

    gathered(const cache_shape& cache, int64_t count)
        : shape(cache),
          num_tokens(count),
          keys(static_cast<size_t>(cache.num_kv_heads * count * cache.head_dim)),
          values(keys.size()) {}

    tensor_view<const storage> k() const {
      return hnd(keys.data(), shape.num_kv_heads, num_tokens, shape.head_dim);
    }
    tensor_view<const storage> v() const {
      return hnd(values.data(), shape.num_kv_heads, num_tokens, shape.head_dim);
    }

    /// The first `count` tokens of `rows` become the first ones here.
    void fill(const row_store<storage>& rows, int64_t count) {
      for_each_row(0, count, [&](int32_t head, int64_t token, storage* key, storage* value) {
        std::copy_n(rows.key_row(head, token), shape.head_dim, key);
        std::copy_n(rows.value_row(head, token), shape.head_dim, value);
      });
    }
    /// The caller's tokens, rounded to 16 bits, from `first` on.
    void fill(tensor_view<const Element> from_k, tensor_view<const Element> from_v, int64_t first) {
      const auto round = [](Element x) { return from_float<storage>(to_float(x)); };
      for_each_row(first, from_k.num_tokens,
                   [&](int32_t head, int64_t token, storage* key, storage* value) {
                     std::transform(from_k.row(head, token),
                                    from_k.row(head, token) + shape.head_dim, key, round);
                     std::transform(from_v.row(head, token),
                                    from_v.row(head, token) + shape.head_dim, value, round);
                   });
    }

    /// The tokens of k and v but for the listed ones, as many as there is room for.
    void fill_without(tensor_view<const storage> from_k, tensor_view<const storage> from_v,
                      std::span<const int64_t> left_out) {
      int64_t source = 0;
      for (int64_t token = 0; token < num_tokens; ++token, ++source) {
        while (std::binary_search(left_out.begin(), left_out.end(), source)) ++source;
        for (int32_t head = 0; head < shape.num_kv_heads; ++head) {
          const size_t index = static_cast<size_t>((head * num_tokens + token) * shape.head_dim);
          std::copy_n(from_k.row(head, source), shape.head_dim, keys.data() + index);
          std::copy_n(from_v.row(head, source), shape.head_dim, values.data() + index);
        }
      }
    }

   private:
    template <class Visit>
    void for_each_row(int64_t first, int64_t count, Visit&& visit) {
      for (int32_t head = 0; head < shape.num_kv_heads; ++head) {
        for (int64_t token = 0; token < count; ++token) {
          const size_t index =
              static_cast<size_t>((head * num_tokens + first + token) * shape.head_dim);
          visit(head, token, keys.data() + index, values.data() + index);
        }
      }
    }
  };

  int64_t interval() const { return options_.schedule.recompress_interval; }
  int64_t capacity() const { return interval() + options_.schedule.recent_window; }
  bool is_full() const { return window_.size() >= capacity(); }

  /// Positions whose queries are probes of the interval that the window is filling. The interval's
  /// own rows are those that arrive after the previous seal.
  std::vector<int64_t> planned_probes() const {
    const int64_t first = sealed_ + options_.schedule.recent_window;
    std::vector<int64_t> positions =
        interval_probe_rows<Policies>(first, interval_start_, options_);
    for (int64_t& position : positions) position += first;
    return positions;
  }

  void require_finite(const char* name, tensor_view<const Element> x, int64_t row) const {
    for (int32_t head = 0; head < x.num_heads; ++head) {
      for (int32_t channel = 0; channel < x.head_dim; ++channel) {
        if (is_finite(to_float(x.row(head, 0)[channel]))) continue;  // no message in the hot loop
        throw argument_error("zipcache: " + std::string(name) + " is not finite at head " +
                             std::to_string(head) + ", token " + std::to_string(row) +
                             ", channel " + std::to_string(channel));
      }
    }
  }

  /// The first position from `position` on that is not a sink's.
  int64_t next_quantized(int64_t position) const {
    auto sink = std::lower_bound(sink_positions_.begin(), sink_positions_.end(), position);
    for (; sink != sink_positions_.end() && *sink == position; ++sink) ++position;
    return position;
  }

  /// A segment and the sinks of its span, made but not yet part of the sequence.
  struct sealed_tokens {
    std::shared_ptr<const segment<Policies>> made;
    std::optional<row_store<storage>> sinks;
    std::vector<int64_t> sink_positions;
  };

  /// Splits and quantizes the `count` tokens from sealed_ on. k, v hold them and may hold later
  /// ones, which share the probes' attention (all that the probes saw unless their lse is kept).
  /// Changes nothing.
  sealed_tokens seal(cpu_backend backend, tensor_view<const storage> k,
                     tensor_view<const storage> v, int64_t count,
                     const kept_probes<Element>& probes, segment_origin origin) const {
    sealed_tokens result;
    const std::vector<int64_t> pinned = find_sinks<typename Policies::sink_policy_type>(
        k, count, {sealed_, sinks_.size(), interval()});
    if (!pinned.empty()) {
      result.sinks = sinks_.clone();
      result.sinks->reserve(static_cast<int64_t>(pinned.size()));
      result.sink_positions = sink_positions_;
      for (const int64_t token : pinned) {
        result.sinks->push(k.tokens(token, 1), v.tokens(token, 1));
        result.sink_positions.push_back(sealed_ + token);
      }
    }
    const int64_t rest = count - static_cast<int64_t>(pinned.size());
    if (rest == 0) return result;
    using budget = typename Policies::budget_policy;
    selection_size size{rest, budget::num_salient(rest, options_.budget),
                        budget::num_recent(rest, options_.budget)};
    if constexpr (counts_by_mass<budget>) {
      // The same for every head; of the sum over heads the first copy is enough.
      const std::vector<float> mass =
          score<accumulated_attention, per_layer>(backend, k, probes, pinned, count);
      size.num_salient = budget::num_salient_by_mass(
          std::span(mass).first(static_cast<size_t>(rest)), options_.budget);
    }
    std::vector<int32_t> salient(static_cast<size_t>(shape_.num_kv_heads * size.num_salient));
    const std::vector<float> scores =
        score<typename Policies::saliency_policy, typename Policies::scope_policy>(
            backend, k, probes, pinned, count);
    select(backend, scores, shape_.num_kv_heads, size, salient);
    int64_t first = 0;  // of the tokens that are not sinks
    for (const int64_t token : pinned) first += token == first ? 1 : 0;
    const auto seal_rows = [&](tensor_view<const storage> keys, tensor_view<const storage> values) {
      result.made = store<Policies, storage, storage>(backend, *pool_, keys, values, salient,
                                                      size.num_salient, sealed_ + first, origin);
    };
    if (first == count - rest) {  // the others lie together
      seal_rows(k.tokens(first, rest), v.tokens(first, rest));
    } else {
      gathered others(shape_, rest);
      others.fill_without(k, v, pinned);
      seal_rows(others.k(), others.v());
    }
    return result;
  }

  /// Scores of the first `scored` tokens but for the `pinned` ones. [num_kv_heads, scored - pinned]
  template <class Metric, class Scope>
  std::vector<float> score(cpu_backend backend, tensor_view<const storage> k,
                           const kept_probes<Element>& probes, std::span<const int64_t> pinned,
                           int64_t scored) const {
    const int64_t count = k.num_tokens;
    std::vector<float> scores(static_cast<size_t>(shape_.num_kv_heads * count), 0.0f);
    if constexpr (Policies::budget_policy::uses_scores) {
      const int64_t num_probes = static_cast<int64_t>(probes.positions.size());
      std::vector<int64_t> positions;
      for (const int64_t position : probes.positions) positions.push_back(position - sealed_);
      std::vector<float> lse(probes.lse.size());  // kept by probe, wanted by head
      for (size_t i = 0; i < lse.size(); ++i) {
        const size_t heads = static_cast<size_t>(shape_.num_qo_heads);
        lse[i % heads * static_cast<size_t>(num_probes) + i / heads] = probes.lse[i];
      }
      const probe_queries<Element> queries{
          nhd(probes.q.data(), num_probes, shape_.num_qo_heads, shape_.head_dim), positions, lse};
      saliency<Metric, Scope>(backend, queries, k, shape_.softmax_scale(), scores);
    }
    if (scored == count && pinned.empty()) return scores;
    std::vector<float> part;
    for (int32_t head = 0; head < shape_.num_kv_heads; ++head) {
      for (int64_t token = 0; token < scored; ++token) {
        if (!std::binary_search(pinned.begin(), pinned.end(), token))
          part.push_back(scores[static_cast<size_t>(head * count + token)]);
      }
    }
    return part;
  }

  void commit(sealed_tokens&& tokens, int64_t count) noexcept {
    if (tokens.made) segments_.push_back(std::move(tokens.made));  // capacity was reserved
    if (tokens.sinks) {
      sinks_ = std::move(*tokens.sinks);
      sink_positions_ = std::move(tokens.sink_positions);
    }
    sealed_ += count;
    interval_start_ = size();
    probes_ = {};  // gives the memory back as well
    prompt_len_ = 0;
  }

  /// Seals the part of a complete prompt that the schedule says; the rest becomes the window. k, v
  /// hold all of it.
  void finish_prefill(cpu_backend backend, tensor_view<const storage> k,
                      tensor_view<const storage> v, const kept_probes<Element>& probes) {
    const int64_t sealed =
        Policies::schedule_policy::sealed_by_prefill(k.num_tokens, options_.schedule);
    segments_.reserve(segments_.size() + 1);
    sealed_tokens tokens;
    if (sealed > 0) tokens = seal(backend, k, v, sealed, probes, segment_origin::prompt);
    row_store<storage> rest(*pool_, shape_.num_kv_heads, shape_.head_dim);
    rest.reserve(k.num_tokens - sealed);
    rest.push(k.tokens(sealed, k.num_tokens - sealed), v.tokens(sealed, k.num_tokens - sealed));
    window_ = std::move(rest);
    commit(std::move(tokens), sealed);
  }

  /// Compresses the oldest interval of the window. `append` makes it part of the sequence.
  sealed_tokens seal_interval(cpu_backend backend) {
    if constexpr (Policies::needs_probes) {
      const std::vector<int64_t> planned = planned_probes();
      if (planned != probes_.positions) {
        throw state_error(
            "zipcache: the window is full, but only " + std::to_string(probes_.positions.size()) +
            " of its " + std::to_string(planned.size()) +
            " probe queries were attended; call attend after every append, or append_and_attend");
      }
    }
    segments_.reserve(segments_.size() + 1);
    gathered tokens(shape_, interval());
    tokens.fill(window_, interval());
    return seal(backend, tokens.k(), tokens.v(), interval(), probes_, segment_origin::streamed);
  }

  void attend_rows_of(cpu_backend backend, const row_store<storage>& rows_16, int32_t kv_head,
                      int64_t first_visible, attend_rows& rows) const {
    zipcache::attend(
        backend, [&](int64_t token) { return rows_16.key_row(kv_head, token); },
        [&](int64_t token) { return rows_16.value_row(kv_head, token); }, rows_16.size(),
        first_visible, shape_.group(), rows);
  }

  void copy_rows(const row_store<storage>& rows, row_content<storage>& copy) const {
    copy.resize(shape_.num_kv_heads, rows.size(), shape_.head_dim);
    size_t next = 0;
    for (int32_t head = 0; head < shape_.num_kv_heads; ++head) {
      for (int64_t token = 0; token < rows.size(); ++token) {
        std::copy_n(rows.key_row(head, token), shape_.head_dim, copy.keys.data() + next);
        std::copy_n(rows.value_row(head, token), shape_.head_dim, copy.values.data() + next);
        next += static_cast<size_t>(shape_.head_dim);
      }
    }
  }
  void restore_rows(const row_content<storage>& given, row_store<storage>& rows) const {
    rows.reserve(given.num_tokens);
    rows.push(given.k(shape_.num_kv_heads, shape_.head_dim),
              given.v(shape_.num_kv_heads, shape_.head_dim));
  }

  void widen_row(const row_store<storage>& rows, int32_t head, int64_t token, int64_t position,
                 tensor_view<float> k, tensor_view<float> v) const {
    for (int32_t channel = 0; channel < shape_.head_dim; ++channel) {
      k.row(head, position)[channel] = to_float(rows.key_row(head, token)[channel]);
      v.row(head, position)[channel] = to_float(rows.value_row(head, token)[channel]);
    }
  }

  footprint segment_footprint(const segment<Policies>& sealed) const {
    footprint bytes;
    const int32_t head_dim = shape_.head_dim;
    const auto add_class = [&]<token_class Class>() {
      using tile = tile_record<Policies, Class>;
      const int64_t tokens = sealed.shape.template class_tokens<Class>() * shape_.num_kv_heads;
      bytes.code_bytes += tokens * head_dim * (tile::key_bits + tile::value_bits) / 8;
      const int64_t pairs = tile::bytes(head_dim) - tile::code_bytes(head_dim);
      bytes.parameter_bytes += tokens * pairs / tile_tokens;
    };
    add_class.template operator()<token_class::salient>();
    add_class.template operator()<token_class::regular>();
    for (const block_size& block : {block_record<Policies>::key_size(sealed.shape.block()),
                                    block_record<Policies>::value_size(sealed.shape.block())}) {
      bytes.code_bytes += block.code_bytes * shape_.num_kv_heads;
      bytes.parameter_bytes += block.parameter_bytes * shape_.num_kv_heads;
    }
    bytes.padding_bytes =
        sealed.pages.size() * pool_->page_bytes() - bytes.code_bytes - bytes.parameter_bytes;
    bytes.parameter_bytes += static_cast<int64_t>(sealed.records.size());
    bytes.table_bytes = static_cast<int64_t>(sealed.table.size() * sizeof(page_entry) +
                                             sealed.salient_bitmap.size() * 4 + sizeof(sealed));
    return bytes;
  }

  page_pool* pool_;
  cache_shape shape_;
  stream_options options_;
  row_store<storage> window_;
  row_store<storage> sinks_;
  std::vector<int64_t> sink_positions_;  ///< of the tokens in sinks_, ascending
  std::vector<std::shared_ptr<const segment<Policies>>> segments_;
  int64_t sealed_ = 0;          ///< tokens in sinks and segments
  int64_t interval_start_ = 0;  ///< tokens that were there when the window began to fill
  int64_t prompt_len_ = 0;      ///< of a prompt that is not complete; 0 otherwise
  kept_probes<Element> probes_;
  std::optional<sealed_tokens> flushed_;  ///< between prepare_append and append
};

}  // namespace zipcache::detail

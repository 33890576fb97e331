// The class a user holds, on CUDA: the same sequences, policies and bytes as kv_cache.hpp, in
// device memory.
//   prefill, whole or in chunks -> (append -> attend) ... on the caller's stream; nothing
//   synchronizes but `check` and `read_length`.
// append and attend allocate nothing and may be captured in a graph that is replayed while
// sequences grow: reserve() pages for as far as they may grow, capture one step, replay it, and
// tell the host with note_replays().
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <zipcache/attend/attend.cuh>
#include <zipcache/core/head_dims.cuh>
#include <zipcache/kv_cache.hpp>
#include <zipcache/store/dequantize.cuh>
#include <zipcache/store/store.cuh>
#include <zipcache/stream/device_content.cuh>
#include <zipcache/stream/device_footprint.cuh>
#include <zipcache/stream/device_memory.cuh>
#include <zipcache/stream/device_pages.cuh>
#include <zipcache/stream/device_plan.cuh>
#include <zipcache/stream/device_prompt.cuh>
#include <zipcache/stream/device_rows.cuh>
#include <zipcache/stream/device_sequences.cuh>
#include <zipcache/stream/probe_plan.cuh>
#include <zipcache/stream/probe_plan.hpp>
#include <zipcache/stream/prompt_completion.cuh>
#include <zipcache/stream/sequence_list.cuh>
#include <zipcache/stream/stream.cuh>

namespace zipcache {

/// @brief A compressed KV cache of many sequences over all layers of a model, in device memory.
///
/// Tensors are device memory, contiguous where a pointer is asked for. Results are valid in the
/// stream after the call, and the stream outlives the cache. Host-side errors throw before any
/// launch; what only the device can see (a value that is not finite, probes that were not attended,
/// pages not reserved in a replayed graph) is kept in a status word that `check` reports.
template <class Element, class Policies>
class kv_cache<Element, Policies, cuda_backend> {
  static_assert(std::is_same_v<Element, half> || std::is_same_v<Element, bfloat16>,
                "zipcache: kv_cache on cuda_backend takes zipcache::half or zipcache::bfloat16");
  static_assert(detail::policy_list<Policies>::size == 1 &&
                    !std::is_same_v<Policies, policy_table<Policies>>,
                "zipcache: kv_cache on cuda_backend takes one set of policies");

 public:
  using element = Element;
  using layer_type = device_layer<Policies, Element>;

  /// @throws argument_error  a shape, option or limit out of range; no GPU, or one older than sm_80
  /// @throws cuda_error  not enough device memory
  kv_cache(const cache_shape& shape, const device_limits& limits, const cache_options& options = {},
           cuda_backend backend = {})
      : shape_(shape), limits_(limits), backend_(backend), sequences_(0, 0), ledger_(0) {
    detail::check_shape(shape);
    detail::dispatch_head_dim(shape.head_dim, [&]<int32_t>() {});  // one that is compiled
    detail::check_granularity<typename Policies::key_quantizer_policy::granularity>(shape.head_dim);
    detail::check_granularity<typename Policies::value_quantizer_policy::granularity>(
        shape.head_dim);
    detail::require_between("max_sequences", limits.max_sequences, 1, 1 << 20);
    detail::require_between("max_tokens", limits.max_tokens, int64_t{1}, int64_t{1} << 30);
    detail::require(options.layer_policy.empty(),
                    "layer_policy needs a policy_table, which the CUDA backend does not take");
    options_ = detail::resolve<Policies>(options);
    detail::check_device();
    const auto plan =
        detail::plan_device_memory<Policies, Element>(shape, limits, options, options_);
    pinning_flushes_ = plan.pinning_flushes;
    sequences_ = {limits.max_sequences, shape.num_layers};
    ledger_ = detail::page_ledger(plan.num_pages);
    memory_ = detail::device_memory<Policies, Element>(plan);
  }

  const cache_shape& shape() const { return shape_; }
  int64_t page_bytes() const { return memory_.layer(0).page_bytes; }
  int64_t num_available_pages() const { return ledger_.num_available(); }
  /// The device view of a layer, for callers of the stages.
  const layer_type& layer(int32_t index) const { return memory_.layer(index); }
  cuda_backend backend() const { return backend_; }

  /// @brief A new, empty sequence.
  /// @throws capacity_error  max_sequences are there
  sequence_id create() {
    const sequence_id sequence = sequences_.take();
    for (int32_t layer = 0; layer < shape_.num_layers; ++layer) {
      set_counts(layer, sequence.index, sequence_counts{});
      detail::forget_pages(backend_.stream, memory_.layer(layer),
                           static_cast<int32_t>(sequence.index), 0);
      plan_probes(sequence, layer);
    }
    return sequence;
  }

  /// @brief Forgets a sequence; its pages are free for calls that follow in the stream.
  void release(sequence_id sequence) {
    for (const layer_mirror& mirror : sequences_.of(sequence)) {
      for (const uint32_t page : mirror.pages) ledger_.give_back(page);
    }
    sequences_.give_back(sequence);
  }

  /// @brief A copy that goes its own way: compressed pages are shared, everything else is copied,
  /// and so are chunks of a prompt that is not complete.
  sequence_id fork(sequence_id sequence) {
    const auto& source = sequences_.of(sequence);
    std::vector<std::unique_ptr<prompt_type>> prompts;  // before anything changes
    for (const layer_mirror& from : source)
      prompts.push_back(from.prompt ? from.prompt->clone() : nullptr);
    const sequence_id copy = create();
    auto& target = sequences_.of(copy);
    const int32_t heads = shape_.num_kv_heads;
    for (int32_t index = 0; index < shape_.num_layers; ++index) {
      const layer_type& layer = memory_.layer(index);
      const layer_mirror& from = source[static_cast<size_t>(index)];
      layer_mirror& to = target[static_cast<size_t>(index)];
      to.counts = from.counts;
      to.begin = from.begin;
      to.prompt = std::move(prompts[static_cast<size_t>(index)]);
      to.pages.assign(from.pages.begin(), from.pages.begin() + int64_t{from.counts.pages} * heads);
      for (const uint32_t page : to.pages) ledger_.share(page);
      detail::copy_sequence(backend_.stream, layer, static_cast<int32_t>(sequence.index),
                            static_cast<int32_t>(copy.index));
      // Pages that the source has reserved and not filled are its own.
      detail::forget_pages(backend_.stream, layer, static_cast<int32_t>(copy.index),
                           from.counts.pages);
    }
    return copy;
  }

  /// Tokens of a sequence in a layer, those of an incomplete prompt among them.
  int64_t length(sequence_id sequence, int32_t layer = 0) const {
    return mirror_of(sequence, layer).num_tokens();
  }
  int64_t sealed_length(sequence_id sequence, int32_t layer = 0) const {
    return mirror_of(sequence, layer).counts.sealed;
  }

  /// @brief Brings a prompt, whole or in chunks, and compresses it when it is complete.
  ///
  /// Chunks are copied and wait in 16 bits, in memory from the stream's pool (`prompt_len` tells
  /// how long the prompt is), and are compressed together: however a prompt is cut, the bytes are
  /// those of one call, provided lse is given with every chunk or with none. Until then the
  /// sequence can be forked, released and asked for its length, and nothing else; of `read_length`
  /// it has none.
  /// @param[in] q  [num_qo_heads, n, head_dim]; may be empty if the policies need no probes
  /// @param[in] k, v  [num_kv_heads, n, head_dim], rows aligned to 16 bytes
  /// @param[in] options  lse [n, num_qo_heads] in device memory
  /// Takes temporary memory from the stream's pool, and may wait for the stream where the policies
  /// need probes. Not for capture. Values that are not finite are reported by `check`; they spoil
  /// what is compressed together with them.
  /// @throws state_error  the sequence already has a complete prompt or tokens
  /// @throws argument_error  shapes, a chunk beyond prompt_len, options that differ between chunks
  /// @throws capacity_error  no pages left; the sequence is as it was
  void prefill(sequence_id sequence, int32_t layer, tensor_view<const Element> q,
               tensor_view<const Element> k, tensor_view<const Element> v,
               const prefill_options& options = {}) {
    layer_mirror& mirror = mirror_of(sequence, layer);
    const int64_t count = k.num_tokens;
    const int64_t first = mirror.num_tokens();
    const int64_t prompt_len = options.prompt_len != 0 ? options.prompt_len : count;
    if (!mirror.prompt && first > 0)
      throw state_error("zipcache: prefill needs an empty sequence; this one has " +
                        std::to_string(first) + " tokens (append continues it)");
    check_prompt_part(mirror, q, k, v, prompt_len, options);
    if (prompt_len == 0) return;
    std::vector<int64_t> rows;
    if constexpr (Policies::needs_probes) {
      rows = detail::prompt_probe_rows<Policies>(prompt_len, options.probe_rows, options_);
      detail::require(!mirror.prompt || std::ranges::equal(rows, mirror.prompt->rows()),
                      "probe_rows must be the same in every chunk of a prompt");
    }
    const bool completes = first + count == prompt_len;
    if (completes) {
      const auto parts = detail::parts_of_prompt<Policies>(prompt_len, options_.schedule);
      const segment_shape<Policies> rest = shape_of(parts.compressed());
      reserve_pages(sequence, layer, rest.num_tokens > 0 ? rest.plan(page_bytes()).num_pages : 0);
    }
    std::unique_ptr<prompt_type> made;
    if (!mirror.prompt)
      made = std::make_unique<prompt_type>(backend_.stream, shape_, prompt_len, std::move(rows),
                                           !completes);
    prompt_type& prompt = mirror.prompt ? *mirror.prompt : *made;
    prompt.add(q, k, v, options.lse.empty() ? nullptr : options.lse.data());
    if (!completes) {
      if (made) mirror.prompt = std::move(made);
      return;
    }
    mirror.counts = detail::complete_prompt(backend_, memory_.layer(layer),
                                            static_cast<int32_t>(sequence.index), prompt,
                                            made ? k : prompt.k(), made ? v : prompt.v(), options_);
    mirror.begin = prompt_len;
    set_counts(layer, sequence.index, mirror.counts);
    plan_probes(sequence, layer);
    mirror.prompt.reset();
  }

  /// @brief A list of sequences for append and attend. Allocates; make it before capturing.
  sequence_list make_batch(std::span<const sequence_id> sequences) const {
    std::set<uint32_t> seen;
    for (const sequence_id sequence : sequences) {
      sequences_.of(sequence);
      detail::require(seen.insert(sequence.index).second,
                      "sequence " + std::to_string(sequence.index) + " is in the batch twice");
    }
    return sequence_list(backend_.stream, {sequences.begin(), sequences.end()});
  }

  /// @brief Makes sure that a sequence can grow to `num_tokens` in every layer without the host's
  /// help.
  /// @throws capacity_error  not enough pages; what earlier layers took stays reserved
  void reserve(sequence_id sequence, int64_t num_tokens) {
    detail::require_between("num_tokens", num_tokens, int64_t{0}, limits_.max_tokens);
    for (int32_t layer = 0; layer < shape_.num_layers; ++layer) {
      sequence_counts counts = mirror_of(sequence, layer).counts;
      while (counts.sealed + capacity() < num_tokens) {
        counts.window = static_cast<int32_t>(capacity());
        advance_flush(counts, next_flush(counts), memory_.layer(0).interval,
                      memory_.layer(0).window_slots());
      }
      reserve_pages(sequence, layer, counts.pages);
    }
  }

  /// @brief Appends one token to every sequence of the batch; full windows are compressed first, by
  /// themselves.
  /// @param[in] k, v  device memory [batch.size(), num_kv_heads, head_dim]
  void append(const sequence_list& batch, int32_t layer, const Element* k, const Element* v) {
    check_layer(layer);
    const bool captured = is_capturing();
    int64_t missing = 0;  // pages, so that either all sequences get theirs or none does
    for (const sequence_id sequence : batch.sequences()) {
      const layer_mirror& mirror = mirror_of(sequence, layer);
      check_complete("append", mirror);
      const int64_t tokens = mirror.num_tokens();
      if (tokens >= limits_.max_tokens)
        detail::refuse(
            "the sequence's length", tokens + 1,
            ("at most max_tokens, which is " + std::to_string(limits_.max_tokens)).c_str());
      if (!captured && is_full(mirror))
        missing += std::max<int64_t>(0, pages_after_flush(mirror) * shape_.num_kv_heads -
                                            static_cast<int64_t>(mirror.pages.size()));
    }
    ledger_.require_available(missing);
    if (!captured) {
      for (const sequence_id sequence : batch.sequences()) {
        const layer_mirror& mirror = mirror_of(sequence, layer);
        if (is_full(mirror)) reserve_pages(sequence, layer, pages_after_flush(mirror));
      }
    }
    zipcache::append(backend_, memory_.layer(layer),
                     append_batch<Element>{batch.size(), batch.device_indices(), k, v},
                     memory_.append_workspace().data(), memory_.append_workspace().size());
    if (captured) return;
    for (const sequence_id sequence : batch.sequences()) advance(mirror_of(sequence, layer));
  }

  /// @brief Attention of every sequence's newest token over everything cached; queries that are
  /// probes are kept.
  /// @param[in] q  device memory [batch.size(), num_qo_heads, head_dim]
  /// @param[out] out  device memory, the same shape
  /// @param[out] lse  device memory [batch.size(), num_qo_heads], natural log-sum-exp, or null
  void attend(const sequence_list& batch, int32_t layer, const Element* q, Element* out,
              float* lse = nullptr) {
    check_layer(layer);
    if (lse != nullptr) detail::check_device_pointer("lse", lse);
    for (const sequence_id sequence : batch.sequences())
      check_complete("attend", mirror_of(sequence, layer));
    attend_batch<Element> given;
    given.num_items = batch.size();
    given.sequences = batch.device_indices();
    given.q = q;
    given.out = out;
    given.lse = lse;
    zipcache::attend(backend_, memory_.layer(layer), given, memory_.attend_workspace().data(),
                     memory_.attend_workspace().size());
  }

  /// @brief Tells the host that a captured graph with one append in every layer was replayed
  /// `steps` times.
  void note_replays(const sequence_list& batch, int64_t steps) {
    for (const sequence_id sequence : batch.sequences()) {
      for (layer_mirror& mirror : sequences_.of(sequence)) {
        for (int64_t step = 0; step < steps; ++step) advance(mirror);
      }
    }
  }

  /// @brief Keeps the first `len` tokens in every layer; exact within the window.
  void truncate(sequence_id sequence, int64_t len) {
    auto& truncated = sequences_.of(sequence);
    for (const layer_mirror& mirror : truncated) {
      check_complete("truncate", mirror);
      if (len < mirror.counts.sealed || len > mirror.counts.sealed + mirror.counts.window) {
        detail::refuse("len", len,
                       ("between " + std::to_string(mirror.counts.sealed) + " and " +
                        std::to_string(mirror.counts.sealed + mirror.counts.window) +
                        ": older tokens are compressed together and cannot be taken apart")
                           .c_str());
      }
    }
    for (int32_t layer = 0; layer < shape_.num_layers; ++layer) {
      layer_mirror& mirror = truncated[static_cast<size_t>(layer)];
      sequence_counts& counts = mirror.counts;
      counts.window = static_cast<int32_t>(len - counts.sealed);
      if (len < mirror.begin) {
        // Rows of the prompt that are gone come again as new ones, and may be probes then.
        mirror.begin = len;
        counts.intervals = 0;
        set_counts(layer, sequence.index, counts);
        plan_probes(sequence, layer);
        continue;
      }
      set_counts(layer, sequence.index, counts);
      if constexpr (Policies::needs_probes)
        detail::forget_probes(backend_.stream, memory_.layer(layer),
                              static_cast<int32_t>(sequence.index),
                              counts.window - memory_.layer(0).recent);
    }
  }

  /// @brief Every token's key and value as attention sees them. k, v  device memory [num_kv_heads,
  /// length, head_dim]
  void dequantize(sequence_id sequence, int32_t layer, tensor_view<float> k,
                  tensor_view<float> v) const {
    check_complete("dequantize", mirror_of(sequence, layer));
    detail::require_equal("k.num_tokens", k.num_tokens, length(sequence, layer));
    zipcache::dequantize(backend_, memory_.layer(layer), static_cast<int32_t>(sequence.index), k,
                         v);
  }

  /// @brief What the device found wrong since the last call; waits for the stream.
  /// @throws state_error  not reserved, missing probes
  /// @throws argument_error  values that were not finite
  void check() {
    uint32_t status = 0;
    detail::check_cuda("cudaMemcpyAsync", cudaMemcpyAsync(&status, memory_.status(), sizeof status,
                                                          cudaMemcpyDeviceToHost, backend_.stream));
    detail::check_cuda("cudaMemsetAsync",
                       cudaMemsetAsync(memory_.status(), 0, sizeof status, backend_.stream));
    detail::check_cuda("cudaStreamSynchronize", cudaStreamSynchronize(backend_.stream));
    const auto has = [status](device_fault fault) {
      return (status & static_cast<uint32_t>(fault)) != 0;
    };
    if (has(device_fault::missing_probes))
      throw state_error(
          "zipcache: a window was full, but not all of its probe queries were attended; call "
          "attend after every append. Its sequence takes no more tokens");
    if (has(device_fault::not_reserved))
      throw state_error(
          "zipcache: a window was full and no pages were reserved; reserve() before replaying a "
          "graph. Its sequence takes no more tokens");
    if (has(device_fault::non_finite))
      throw argument_error(
          "zipcache: k or v was not finite; zeros were stored in place of such values of new "
          "tokens, and a prompt with such values is spoilt");
  }

  /// @brief The length that the device has; waits for the stream.
  int64_t read_length(sequence_id sequence, int32_t layer) const {
    mirror_of(sequence, layer);
    sequence_counts counts;
    detail::check_cuda("cudaMemcpyAsync",
                       cudaMemcpyAsync(&counts, memory_.layer(layer).counts + sequence.index,
                                       sizeof counts, cudaMemcpyDeviceToHost, backend_.stream));
    detail::check_cuda("cudaStreamSynchronize", cudaStreamSynchronize(backend_.stream));
    return int64_t{counts.sealed} + counts.window;
  }

  /// @brief All that one layer of a sequence is made of, for a cache elsewhere; waits for the
  /// stream.
  /// @throws state_error  a prompt that is not complete
  layer_content<Element, Policies> read_layer(sequence_id sequence, int32_t layer) const {
    const layer_mirror& mirror = mirror_of(sequence, layer);
    if (mirror.prompt)
      throw state_error("zipcache: a sequence cannot be moved before its prompt is complete");
    return detail::read_content(backend_.stream, memory_.layer(layer),
                                static_cast<int32_t>(sequence.index), mirror.begin,
                                options_.budget);
  }

  /// @brief A new sequence that is what `read_layer` gave for each layer of another one, in a cache
  /// of the same shape, policies, options and page size. Waits for the stream.
  /// @throws argument_error  not one content for each layer, other sizes, more than max_tokens
  /// @throws capacity_error  no room; the cache is as it was
  sequence_id restore(std::span<const layer_content<Element, Policies>> contents) {
    detail::require_equal("contents.size()", static_cast<int64_t>(contents.size()),
                          shape_.num_layers);
    for (const auto& content : contents) check_content(content);
    const sequence_id sequence = create();
    try {
      for (int32_t layer = 0; layer < shape_.num_layers; ++layer)
        restore_layer(sequence, layer, contents[static_cast<size_t>(layer)]);
    } catch (...) {
      release(sequence);
      throw;
    }
    return sequence;
  }

  /// The numbers that every layer works with, defaults filled in.
  const stream_options& layer_options(int32_t) const { return options_; }

  /// @brief Bytes held for the sequences that there are: pages they have or reserved, and their
  /// share of all that is allocated in advance (window, sinks, records, tables, kept probes), and
  /// chunks that wait. What is in pages shared by forks counts once, its tokens for each.
  zipcache::footprint footprint() const {
    detail::device_footprint<Policies, Element> bytes(memory_.layer(0), options_);
    sequences_.visit([&](const auto& layers) {
      for (const layer_mirror& mirror : layers) bytes.add(mirror);
    });
    return bytes.total();
  }

 private:
  using prompt_type = detail::device_prompt<Element>;
  using layer_mirror = detail::layer_mirror<Element>;

  int64_t interval() const { return options_.schedule.recompress_interval; }
  int64_t capacity() const { return interval() + options_.schedule.recent_window; }
  bool is_full(const layer_mirror& mirror) const { return mirror.counts.window >= capacity(); }
  flush_sizes next_flush(const sequence_counts& counts) const {
    return memory_.layer(0).next_flush(counts, pinning_flushes_.data());
  }
  int64_t pages_after_flush(const layer_mirror& mirror) const {
    return int64_t{mirror.counts.pages} + next_flush(mirror.counts).pages;
  }

  segment_shape<Policies> shape_of(int64_t num_tokens) const {
    return detail::segment_of<Policies>(shape_.num_kv_heads, shape_.head_dim, num_tokens,
                                        options_.budget);
  }

  void check_content(const layer_content<Element, Policies>& content) const {
    detail::require_between("the sequence's length", content.sealed() + content.window.num_tokens,
                            int64_t{0}, limits_.max_tokens);
    detail::require_between("the number of sinks", content.sinks.num_tokens, int64_t{0},
                            int64_t{Policies::sink_policy_type::count});
    detail::require_between("the number of tokens in the window", content.window.num_tokens,
                            int64_t{0}, capacity());
    for (size_t i = 0; i < content.segments.size(); ++i) {
      const segment_content<Policies>& part = content.segments[i];
      if (i > 0)
        detail::require_equal("the number of tokens of an interval", part.shape.num_tokens,
                              interval());
      detail::require_equal("page_bytes", part.page_bytes, page_bytes());
      detail::require_equal("num_salient of a segment", part.shape.num_salient,
                            shape_of(part.shape.num_tokens).num_salient);
    }
  }

  void restore_layer(sequence_id sequence, int32_t layer,
                     const layer_content<Element, Policies>& content) {
    const layer_type& target = memory_.layer(layer);
    const auto index = static_cast<int32_t>(sequence.index);
    const cudaStream_t stream = backend_.stream;
    layer_mirror& mirror = mirror_of(sequence, layer);
    int64_t pages = 0;
    for (const auto& part : content.segments) pages += part.shape.plan(page_bytes()).num_pages;
    reserve_pages(sequence, layer, pages);

    mirror.counts = detail::write_content(stream, target, index, content, mirror.pages);
    mirror.begin = content.interval_start;
    set_counts(layer, sequence.index, mirror.counts);
    plan_probes(sequence, layer);
    if constexpr (Policies::needs_probes)
      detail::write_probes(stream, target, index, mirror.counts, content);
    detail::wait_for(stream);
  }

  /// What a part of a prompt must be before anything is launched.
  void check_prompt_part(const layer_mirror& mirror, tensor_view<const Element> q,
                         tensor_view<const Element> k, tensor_view<const Element> v,
                         int64_t prompt_len, const prefill_options& options) const {
    const int64_t count = k.num_tokens;
    const int64_t first = mirror.num_tokens();
    check_view("k", k, shape_.num_kv_heads);
    check_view("v", v, shape_.num_kv_heads);
    detail::require_equal("v.num_tokens", v.num_tokens, count);
    detail::require_between("k.num_tokens", count, int64_t{0}, limits_.max_tokens);
    detail::require_between("prompt_len", prompt_len, int64_t{0}, limits_.max_tokens);
    if (mirror.prompt && mirror.prompt->prompt_len() != prompt_len)
      detail::refuse(
          "prompt_len", prompt_len,
          ("the same in every chunk, and it was " + std::to_string(mirror.prompt->prompt_len()))
              .c_str());
    if (first + count > prompt_len)
      detail::refuse("k.num_tokens", count,
                     ("at most " + std::to_string(prompt_len - first) +
                      ", which is what the prompt still lacks")
                         .c_str());
    if (mirror.prompt || count < prompt_len) {  // they are copied
      detail::check_rows("k", k, 0, shape_.num_kv_heads, shape_.head_dim);
      detail::check_rows("v", v, 0, shape_.num_kv_heads, shape_.head_dim);
    }
    if (Policies::needs_probes && count > 0) {
      check_view("q", q, shape_.num_qo_heads);
      detail::require_equal("q.num_tokens", q.num_tokens, count);
    }
    if (!options.lse.empty()) {
      detail::require_equal("lse.size()", static_cast<int64_t>(options.lse.size()),
                            count * shape_.num_qo_heads);
      detail::check_device_pointer("lse", options.lse.data());
    }
    detail::require(!mirror.prompt || mirror.prompt->takes_lse(!options.lse.empty()),
                    "lse must be given with every chunk of a prompt or with none");
  }

  /// @throws state_error  chunks of the prompt are still to come
  void check_complete(const char* call, const layer_mirror& mirror) const {
    if (!mirror.prompt) return;
    throw state_error("zipcache: " + std::string(call) + " before the prompt is complete: " +
                      std::to_string(mirror.prompt->num_tokens()) + " of " +
                      std::to_string(mirror.prompt->prompt_len()) + " tokens are there");
  }

  /// Once what is sealed, or what the prompt brought, has changed.
  void plan_probes(sequence_id sequence, int32_t layer) {
    if constexpr (Policies::needs_probes) {
      const layer_mirror& mirror = mirror_of(sequence, layer);
      detail::write_probe_plan(backend_.stream, memory_.layer(layer),
                               static_cast<int32_t>(sequence.index), mirror.counts.sealed,
                               mirror.begin, options_);
    }
  }

  /// Takes pages so that every head's table has `entries` of them.
  void reserve_pages(sequence_id sequence, int32_t layer, int64_t entries) {
    layer_mirror& mirror = mirror_of(sequence, layer);
    const layer_type& target = memory_.layer(layer);
    const int64_t have = static_cast<int64_t>(mirror.pages.size()) / shape_.num_kv_heads;
    if (entries <= have) return;
    detail::require_between("the number of pages of a head", entries, int64_t{0},
                            int64_t{target.max_pages});
    const std::vector<uint32_t> taken = ledger_.take((entries - have) * shape_.num_kv_heads);
    mirror.pages.insert(mirror.pages.end(), taken.begin(), taken.end());
    detail::write_pages(backend_.stream, target.table_of(static_cast<int32_t>(sequence.index), 0),
                        target.max_pages, shape_.num_kv_heads, static_cast<int32_t>(have), taken);
  }

  /// What append does to the counts.
  void advance(layer_mirror& mirror) const {
    sequence_counts& counts = mirror.counts;
    if (is_full(mirror))
      advance_flush(counts, next_flush(counts), memory_.layer(0).interval,
                    memory_.layer(0).window_slots());
    counts.window += 1;
  }

  void set_counts(int32_t layer, uint32_t sequence, const sequence_counts& counts) {
    const layer_type& target = memory_.layer(layer);
    std::vector<uint32_t> words(sizeof counts / sizeof(uint32_t));
    std::memcpy(words.data(), &counts, sizeof counts);
    detail::write_words(backend_.stream, reinterpret_cast<uint32_t*>(target.counts + sequence),
                        words);
  }

  bool is_capturing() const {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    detail::check_cuda("cudaStreamIsCapturing", cudaStreamIsCapturing(backend_.stream, &status));
    return status != cudaStreamCaptureStatusNone;
  }

  void check_view(const char* name, tensor_view<const Element> x, int32_t heads) const {
    detail::require_equal((std::string(name) + ".num_heads").c_str(), x.num_heads, heads);
    detail::require_equal((std::string(name) + ".head_dim").c_str(), x.head_dim, shape_.head_dim);
    if (x.num_tokens > 0) detail::check_device_pointer(name, x.data);
  }
  void check_layer(int32_t layer) const {
    detail::require_between("layer", layer, 0, shape_.num_layers - 1);
  }

  const layer_mirror& mirror_of(sequence_id sequence, int32_t layer) const {
    const auto& layers = sequences_.of(sequence);
    check_layer(layer);
    return layers[static_cast<size_t>(layer)];
  }
  layer_mirror& mirror_of(sequence_id sequence, int32_t layer) {
    return const_cast<layer_mirror&>(std::as_const(*this).mirror_of(sequence, layer));
  }

  cache_shape shape_;
  device_limits limits_;
  cuda_backend backend_;
  stream_options options_;
  detail::device_sequences<Element> sequences_;
  detail::page_ledger ledger_;
  detail::device_memory<Policies, Element> memory_;
  std::vector<flush_sizes> pinning_flushes_;  ///< [sinks], which the device has as well
};

}  // namespace zipcache

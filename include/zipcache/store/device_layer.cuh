// One layer of the cache in device memory, as kernels see it: pages, page tables, segment records
// and 16-bit tokens of all sequences. Trivially copyable; passed to kernels by value. Twin of
// segment.hpp and row_store.hpp. Pages and records are the bytes of page.hpp and tile.hpp. What
// grows while a captured graph is replayed (lengths, pages in use) is in `counts` and read on the
// device; sizes and pointers never change.
#pragma once

#include <cstddef>
#include <cstdint>

#include <zipcache/config.hpp>
#include <zipcache/core/numerics.hpp>
#include <zipcache/policy/policies.hpp>
#include <zipcache/quantize/rotation.hpp>
#include <zipcache/select/budget.hpp>
#include <zipcache/select/sinks.hpp>
#include <zipcache/store/page.hpp>
#include <zipcache/store/tile.hpp>

namespace zipcache {
namespace detail {

/// What kernels exist for; the CPU takes the others.
template <class Policies>
inline constexpr bool runs_on_cuda =
    !is_rotated<typename Policies::key_quantizer_policy::granularity> &&
    !is_rotated<typename Policies::value_quantizer_policy::granularity> &&
    !codes_blocks<typename Policies::key_quantizer_policy> &&
    !codes_blocks<typename Policies::value_quantizer_policy> &&
    !counts_by_mass<typename Policies::budget_policy> &&
    !picks_outliers<typename Policies::sink_policy_type>;

}  // namespace detail

/// Counts of one sequence in one layer. Segments are a first one of any size (the prompt's, or what
/// a flush leaves of its interval when it pins sinks), if there is one, and then one for each
/// interval, all of the same size.
/// The first four say how long attention takes, so they are read together.
struct alignas(16) sequence_counts {
  int32_t pages = 0;          ///< pages of each head that all segments have
  int32_t window = 0;         ///< tokens in the window
  int32_t window_first = 0;   ///< ring slot of the oldest token in the window
  int32_t sinks = 0;          ///< tokens pinned in 16 bits
  int32_t prompt_pages = 0;   ///< pages of each head that `prompt_tokens` have
  int32_t prompt_tokens = 0;  ///< tokens of the first segment if it is not an interval's
  int32_t sealed = 0;         ///< tokens in sinks and segments
  int32_t segments = 0;
  int32_t intervals = 0;  ///< flushes of the window since probes were planned

  /// Of the segments, those of whole intervals.
  ZIPCACHE_HOST_DEVICE int32_t interval_segments() const {
    return segments - (prompt_tokens > 0 ? 1 : 0);
  }
};

/// What one flush does with the interval that it takes out of the window.
struct flush_sizes {
  int32_t pinned = 0;   ///< its first tokens, which become sinks
  int32_t salient = 0;  ///< of the other ones, those that are salient
  int32_t recent = 0;   ///< of those, the last ones whatever they score
  int32_t pages = 0;    ///< pages of each head that it fills
};

/// What a flush does to the counts. `slots` is the size of the window's ring.
ZIPCACHE_HOST_DEVICE inline void advance_flush(sequence_counts& count, const flush_sizes& flush,
                                               int32_t interval, int32_t slots) {
  const int32_t rest = interval - flush.pinned;
  count.window -= interval;
  // An empty window may begin anywhere.
  count.window_first = count.window == 0 ? 0 : (count.window_first + interval) % slots;
  count.sealed += interval;
  count.sinks += flush.pinned;
  count.pages += flush.pages;
  count.intervals += 1;
  if (rest == 0) return;
  count.segments += 1;
  if (flush.pinned == 0) return;
  count.prompt_tokens = rest;
  count.prompt_pages = flush.pages;
}

/// What a kernel found wrong, as bits of device_layer::status; kv_cache::check reports them.
enum class device_fault : uint32_t {
  not_reserved = 1,    ///< a full window had no pages to go to; the token was not appended
  missing_probes = 2,  ///< a window filled up before its probe queries were attended; likewise
  non_finite = 4,      ///< k or v was not finite; zero was stored instead
};

/// Decode queries that are probes, kept until their interval is compressed.
template <class Storage>
struct device_probes {
  const uint32_t*
      planned;         ///< [max_sequences, max_intervals, mask_words]: which rows of an interval
  uint32_t* recorded;  ///< [max_sequences, mask_words]: which of them were attended
  Storage* q;          ///< [max_sequences, max_kept, num_qo_heads, head_dim]
  float* lse;          ///< [max_sequences, max_kept, num_qo_heads], natural
  int32_t max_intervals;
  int32_t mask_words;
  int32_t max_kept;

  ZIPCACHE_HOST_DEVICE const uint32_t* planned_of(int32_t sequence, int32_t interval) const {
    return planned + (static_cast<int64_t>(sequence) * max_intervals + interval) * mask_words;
  }
  ZIPCACHE_HOST_DEVICE uint32_t* recorded_of(int32_t sequence) const {
    return recorded + static_cast<int64_t>(sequence) * mask_words;
  }
};

/// Layer of a cache of `Policies` whose 16-bit type is `Storage`.
template <class Policies, class Storage>
struct device_layer {
  static_assert(detail::runs_on_cuda<Policies>,
                "zipcache: rotated layouts, block codecs, mass_share and outlier_tokens run on "
                "cpu_backend only");

  int32_t num_qo_heads;
  int32_t num_kv_heads;
  int32_t head_dim;
  int32_t max_sequences;
  float sm_scale;

  std::byte* pages;         ///< the pool: codes of page p at p * page_code_bytes
  std::byte* page_pairs;    ///< and its pairs at p * page_pair_bytes
  int64_t page_bytes;       ///< of a page in one block, by which tiles are spread over pages
  int64_t page_code_bytes;  ///< a multiple of 128, so that every tile's codes are aligned to 128
  int64_t page_pair_bytes;
  page_entry* table;   ///< [max_sequences, num_kv_heads, max_pages]; page numbers are there before
                       ///< tokens are
  int32_t max_pages;   ///< pages of one head of one sequence
  std::byte* records;  ///< [max_sequences, max_segments, num_kv_heads, record_bytes]
  int32_t max_segments;
  uint32_t* bitmaps;  ///< [max_sequences, num_kv_heads, bitmap_words]: prompt, then intervals, each
                      ///< in whole words
  int32_t bitmap_words;
  sequence_counts* counts;  ///< [max_sequences]

  Storage* window;  ///< [max_sequences, num_kv_heads, window_tiles, 2, 32 * head_dim]: 16-bit key
                    ///< and value tiles
  int32_t window_tiles;  ///< the ring has 32 * window_tiles slots
  Storage* sink_rows;    ///< [max_sequences, num_kv_heads, sink_tiles, 2, 32 * head_dim]
  int32_t sink_tiles;

  device_probes<Storage> probes;  ///< of policies that need them
  uint32_t* status;               ///< device_fault bits

  int32_t interval;                    ///< tokens that a flush compresses
  int32_t recent;                      ///< tokens that always stay in the window
  int32_t interval_salient;            ///< of an interval, tokens that are salient
  int32_t interval_recent;             ///< of those, the last ones whatever they score
  int32_t interval_pages;              ///< pages of each head that a flush fills
  const flush_sizes* pinning_flushes;  ///< [sinks]: flushes that pin 1, 2, ... tokens

  ZIPCACHE_HOST_DEVICE int32_t group() const { return num_qo_heads / num_kv_heads; }
  ZIPCACHE_HOST_DEVICE int64_t record_bytes() const {
    return segment_record<Policies>::bytes(head_dim);
  }

  /// Slots of the window's ring.
  ZIPCACHE_HOST_DEVICE int32_t window_slots() const { return window_tiles * tile_tokens; }
  /// What the next flush of a sequence does; `pinning` [sinks] where the caller can read it.
  ZIPCACHE_HOST_DEVICE flush_sizes next_flush(const sequence_counts& count,
                                              const flush_sizes* pinning) const {
    constexpr int32_t sinks = Policies::sink_policy_type::count;
    const int32_t pinned = least(sinks - count.sealed, interval);
    if (sinks > 0 && pinned > 0) return pinning[pinned - 1];
    return {0, interval_salient, interval_recent, interval_pages};
  }

  ZIPCACHE_HOST_DEVICE page_entry* table_of(int32_t sequence, int32_t head) const {
    return table + (static_cast<int64_t>(sequence) * num_kv_heads + head) * max_pages;
  }
  ZIPCACHE_HOST_DEVICE std::byte* record_of(int32_t sequence, int32_t segment, int32_t head) const {
    return records +
           ((static_cast<int64_t>(sequence) * max_segments + segment) * num_kv_heads + head) *
               record_bytes();
  }
  ZIPCACHE_HOST_DEVICE uint32_t* bitmap_of(int32_t sequence, int32_t head) const {
    return bitmaps + (static_cast<int64_t>(sequence) * num_kv_heads + head) * bitmap_words;
  }
  /// Sizes of pages that hold what pages of `bytes` in one block hold. Needs head_dim.
  void set_page_bytes(int64_t bytes) {
    const tile_size planes = page_layout_of<Policies>(head_dim).planes(bytes);
    page_bytes = bytes;
    page_code_bytes = planes.codes;
    page_pair_bytes = planes.pairs;
  }
  /// What a page really takes.
  int64_t allocated_page_bytes() const { return page_code_bytes + page_pair_bytes; }
  /// The first codes and pairs of a page.
  ZIPCACHE_HOST_DEVICE tile_place page(uint32_t number) const {
    return {pages + static_cast<int64_t>(number) * page_code_bytes,
            page_pairs + static_cast<int64_t>(number) * page_pair_bytes};
  }
  /// Tile `index` of a class among those of the page.
  template <token_class Class>
  ZIPCACHE_HOST_DEVICE tile_place tile(const page_entry& entry, int64_t index) const {
    return page(entry.page) +
           page_layout_of<Policies>(head_dim).template before<Class>(entry.salient_tiles(), index);
  }

  /// Values of a 16-bit tile of keys and values together; keys come first.
  ZIPCACHE_HOST_DEVICE int64_t row_tile_elements() const {
    return int64_t{2} * tile_tokens * head_dim;
  }
  ZIPCACHE_HOST_DEVICE Storage* window_tile(int32_t sequence, int32_t head, int32_t tile) const {
    return window + ((static_cast<int64_t>(sequence) * num_kv_heads + head) * window_tiles + tile) *
                        row_tile_elements();
  }
  ZIPCACHE_HOST_DEVICE Storage* sink_tile(int32_t sequence, int32_t head, int32_t tile) const {
    return sink_rows +
           ((static_cast<int64_t>(sequence) * num_kv_heads + head) * sink_tiles + tile) *
               row_tile_elements();
  }

  /// Segment that page `index` of a head belongs to.
  ZIPCACHE_HOST_DEVICE int32_t segment_of_page(const sequence_counts& count, int32_t index) const {
    if (index < count.prompt_pages) return 0;
    return (count.prompt_tokens > 0 ? 1 : 0) + (index - count.prompt_pages) / interval_pages;
  }
};

/// Element (token, channel) of a 16-bit tile, keys or values.
template <template <int> class Layout, class Storage>
ZIPCACHE_HOST_DEVICE Storage& row_tile_element(Storage* tile, int32_t head_dim, int32_t token,
                                               int32_t channel) {
  const code_position position = Layout<16>::position(head_dim, token, channel);
  return tile[position.word * 2 + position.shift / 16];
}

}  // namespace zipcache

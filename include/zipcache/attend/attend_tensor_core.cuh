// The decode attention kernel for policies whose codes tensor cores can take as they are
// (tensor_core_tile.cuh).
#pragma once

#include <cstdint>

#include <zipcache/attend/attend_merge.cuh>
#include <zipcache/attend/attend_schedule.cuh>
#include <zipcache/attend/attend_shared.cuh>
#include <zipcache/attend/attend_tasks.cuh>
#include <zipcache/attend/folded_query.cuh>
#include <zipcache/attend/lane_state.cuh>
#include <zipcache/attend/tensor_core_tile.cuh>
#include <zipcache/attend/tile_stream.cuh>
#include <zipcache/core/launch.cuh>
#include <zipcache/detail/tensor_core.cuh>
#include <zipcache/store/segment.hpp>

namespace zipcache::detail {

/// Whether a class is stored in a way that the tensor core kernel reads.
template <class Policies, token_class Class>
inline constexpr bool tensor_core_class = [] {
  using keys_by = typename Policies::key_quantizer_policy::granularity;
  using values_by = typename Policies::value_quantizer_policy::granularity;
  constexpr int key_bits = Policies::template key_bits<Class>;
  constexpr int value_bits = Policies::template value_bits<Class>;
  if (key_bits == 0) return true;
  if (key_bits == 16 && value_bits == 16) return true;
  if (!(key_bits == 2 || key_bits == 4) || !(value_bits == 2 || value_bits == 4)) return false;
  const bool keys_fit = keys_by::axis == parameter_axis::channel
                            ? keys_by::home == parameter_home::segment
                            : keys_by::group_size == 0;
  return keys_fit && values_by::axis == parameter_axis::token && values_by::group_size == 0;
}();

/// Whether the tensor core kernel serves these policies; otherwise the general kernel does
/// (attend_general.cuh).
template <class Policies>
inline constexpr bool uses_tensor_cores = tensor_core_class<Policies, token_class::salient>&&
    tensor_core_class<Policies, token_class::regular>;

/// One warp's view of a piece of work.
template <class Policies, class Storage, int32_t HeadDim, int32_t Sets>
class piece_worker {
 public:
  using shared_memory = attend_shared<Policies, Storage, HeadDim, Sets>;
  using tuning = attend_tuning<HeadDim, Sets>;
  using softmax = lane_state<HeadDim, Sets>;
  static constexpr int32_t pass_heads = shared_memory::heads;
  template <bool Own>
  using list = tile_list<Policies, Storage, HeadDim, Own>;
  template <bool Own>
  using place = ring_place<tuning, Own>;
  static constexpr int32_t blocks = HeadDim / 16;
  static constexpr int salient_bits = Policies::template value_bits<token_class::salient>;
  static constexpr int regular_bits = Policies::template value_bits<token_class::regular>;
  static constexpr bool has_value_magnitudes =
      Policies::value_quantizer_policy::granularity::has_channel_magnitudes;
  static constexpr bool has_row_class = salient_bits == 16 || regular_bits == 16;
  static_assert(!(has_pairs(salient_bits) && regular_bits == 16) &&
                    !(salient_bits == 16 && has_pairs(regular_bits)),
                "zipcache: the tensor core kernel takes codes or 16-bit values, not both");

  __device__ piece_worker(const device_layer<Policies, Storage>& layer,
                          const attend_batch<Storage>& batch, shared_memory& shared,
                          place<false>& ring, place<true>& own_ring)
      : layer_(layer),
        shared_(shared),
        piece_(shared.tasks.piece),
        count_(shared.tasks.count),
        batch_(batch),
        ring_(ring),
        own_ring_(own_ring) {
    const int32_t thread = thread_of_block();
    warp_ = thread / 32;
    lane_ = thread % 32;
  }

  /// Starts copying the queries of the pass and, for codes, the prompt's record to shared memory,
  /// ahead of all tiles, which would make them wait. Whole block.
  __device__ static void fetch(const device_layer<Policies, Storage>& layer,
                               const attend_batch<Storage>& batch, int32_t pass,
                               shared_memory& shared, int32_t sequence, int32_t item,
                               int32_t head) {
    fetch_queries(layer, batch, pass, shared, item, head);
    if (!has_row_class && layer.max_segments > 0)
      fetch_prompt_record(shared, layer.record_of(sequence, 0, head));
  }

  /// Everything of the piece, for which `fetch` was called; at the end the warp's state is in
  /// shared memory.
  __device__ void run() {
    state_.begin_segment();
    ring_.restart();
    own_ring_.restart();
    prefetch_row_tiles();
    if constexpr (has_row_class) {
      wait_for_queries();
    } else {
      sweep_codes();
    }
    const int32_t rows_begin = first_row_unit(layer_, count_);
    const bool has_rows = piece_.last > rows_begin;
    if (has_row_class || has_rows) {
      // Their queries lie over the folded ones, which no warp may need any more.
      if (!has_row_class) __syncthreads();
      prepare_row_queries();
      __syncthreads();
      if constexpr (has_row_class) sweep_rows();
      const int32_t first = most(piece_.first, rows_begin) + warp_;
#pragma unroll 1
      for (int32_t unit = first; unit < piece_.last; unit += block_warps())
        attend_row_tile(unit - rows_begin);
      if (has_row_class || first < piece_.last)
        fold([](int32_t, int32_t, int32_t, float sum) { return sum; });
    }
    publish();
  }

 private:
  __device__ void prefetch_record(int32_t segment, int32_t line) {
    if (line * 128 < segment_record<Policies>::bytes(HeadDim)) {
      asm volatile("prefetch.global.L1 [%0];" ::"l"(
          layer_.record_of(piece_.sequence, segment, piece_.head) + line * 128));
    }
  }

  /// Eight channels a thread at a time; heads that the pass does not have become zero.
  __device__ static void fetch_queries(const device_layer<Policies, Storage>& layer,
                                       const attend_batch<Storage>& batch, int32_t pass,
                                       shared_memory& shared, int32_t item, int32_t head) {
    const int32_t group = layer.group();
    const int32_t heads = least(pass_heads, group - pass * pass_heads);
    const Storage* rows = batch.q + (static_cast<int64_t>(item) * layer.num_qo_heads +
                                     head * group + pass * pass_heads) *
                                        HeadDim;
    for (int32_t i = static_cast<int32_t>(threadIdx.x) * 8; i < pass_heads * HeadDim;
         i += block_threads() * 8) {
      const bool some = i < heads * HeadDim;
      begin_copy(&shared.queries.rows[i / HeadDim][i % HeadDim], some ? rows + i : rows, some);
    }
  }
  __device__ static void fetch_prompt_record(shared_memory& shared, const std::byte* record) {
    copy_bytes(shared.prompt_record(), record,
               static_cast<int32_t>(segment_record<Policies>::bytes(HeadDim)));
    if constexpr (has_value_magnitudes) {
      copy_bytes(shared.value_magnitudes,
                 record + segment_record<Policies>::value_magnitudes_offset(HeadDim),
                 HeadDim * static_cast<int32_t>(sizeof(Storage)));
    }
  }
  __device__ static void copy_bytes(void* target, const std::byte* source, int32_t bytes) {
#pragma unroll 1
    for (int32_t i = static_cast<int32_t>(threadIdx.x) * 16; i < bytes; i += block_threads() * 16)
      begin_copy(static_cast<std::byte*>(target) + i, source + i, true);
  }
  /// Waits for both. Whole block.
  __device__ void wait_for_queries() {
    wait_for_copies();
    __syncthreads();
  }
  /// Brings queries to base-2 units.
  __device__ float query_scale() const { return layer_.sm_scale * log2_e; }
  __device__ float query(int32_t head, int32_t channel) const {
    return to_float(shared_.queries.rows[head][channel]) * query_scale();
  }

  /// The queries as (high, low) halves, for 16-bit tiles. Whole block.
  __device__ void prepare_row_queries() {
    for (int32_t head = warp_; head < pass_heads; head += block_warps()) {
      float largest = 0.0f;
      for (int32_t channel = lane_; channel < HeadDim; channel += 32)
        largest = fmaxf(largest, fabsf(query(head, channel)));
      for (int32_t lanes = 1; lanes < 32; lanes *= 2)
        largest = fmaxf(largest, __shfl_xor_sync(whole_warp, largest, lanes));
      // A power of two, so that scaling loses nothing.
      const float scale =
          largest > 0.0f ? fmaxf(float_of(bits_of(largest) & 0x7f800000u), 1.17549435e-38f) : 1.0f;
      if (lane_ == 0) {
        shared_.row_scale[head] = scale;
        shared_.inverse_row_scale[head] = 1.0f / scale;
      }
    }
    __syncthreads();
    constexpr int32_t words = blocks * 2 * 32;  // of a set
    for (int32_t index = static_cast<int32_t>(threadIdx.x); index < Sets * words;
         index += block_threads()) {
      const int32_t set = index / words;
      const int32_t i = index % words;
      // Operand B: word (block, r) of lane 4 * g + t holds channels 16 * block + 8 * r + 2 * t +
      // {0, 1} of column g, which is the high (g even) or low (g odd) part of head g / 2 of the
      // set.
      const int32_t lane = i % 32;
      const int32_t column = lane / 4;
      const int32_t head = set * set_heads + column / 2;
      const int32_t channel = i / 64 * 16 + i / 32 % 2 * 8 + lane % 4 * 2;
      const float inverse = shared_.inverse_row_scale[head];
      uint32_t word = 0;
      for (int32_t e = 0; e < 2; ++e) {
        const uint32_t parts = split_in_halves<Storage>(query(head, channel + e) * inverse);
        word |= (column % 2 == 0 ? parts & 0xffffu : parts >> 16) << (16 * e);
      }
      shared_.row_query[set][i] = word;
    }
  }

  /// All tiles of codes: the warp's share of the prompt's, which the block's warps interleave, then
  /// those of the later segments of some pages, alone. Later segments are a page or so each, with
  /// parameters of their own; a warp's ring runs on across them.
  __device__ void sweep_codes() {
    const int32_t pages_end = least(piece_.last, count_.pages);
    const int32_t prompt_end = least(pages_end, count_.prompt_pages);
    const page_entry* table = layer_.table_of(piece_.sequence, piece_.head);
    ring_slot::order_after_stores();
    if (piece_.first < prompt_end) {
      // The first tiles are on their way while the queries are prepared.
      list<false> tiles(layer_, count_, table, piece_.first, prompt_end, warp_);
      start_ring(tiles, ring_);
      wait_for_queries();
      fold_prompt_queries();
      __syncthreads();
      ring_slot::order_after_stores();
      sweep(tiles, ring_);
    } else {
      wait_for_queries();
    }
    const int32_t first = most(piece_.first, prompt_end);
    const int32_t pages = pages_end - first;
    if (pages <= 0) return;
    list<true> tiles(layer_, count_, table, first + pages * warp_ / block_warps(),
                     first + pages * (warp_ + 1) / block_warps());
    start_ring(tiles, own_ring_);
    sweep(tiles, own_ring_);
  }

  /// Starts copies into all slots of the ring but one.
  template <bool Own>
  __device__ __forceinline__ void start_ring(list<Own>& tiles, const place<Own>& ring) {
    pending_ = 0;
    tiles.refill();
#pragma unroll 1
    while (pending_ < place<Own>::size - 1 && tiles.ready()) issue(tiles, ring);
  }
  /// Streams tiles through a ring that was started.
  template <bool Own>
  __device__ __forceinline__ void sweep(list<Own>& tiles, place<Own>& ring) {
    at_ = tile_mark();
#pragma unroll 1
    for (; pending_ > 0; --pending_) {
      ring_slot& slot = shared_.slots[warp_][ring.slot];
      const tile_mark mark = slot.mark;
      slot.wait(ring.parity(), pending_ - 1);
      if (!tiles.ready()) tiles.refill();
      if (tiles.ready()) issue(tiles, ring);
      if (mark.word >> 6 != at_.word >> 6) go_to<Own>(mark);
      attend_tile(ring_memory<Own>(ring.slot), mark);
      __syncwarp();
      ring.advance();
    }
    leave_segment<Own>();
  }
  template <bool Own>
  __device__ std::byte* ring_memory(int32_t slot) const {
    return shared_.warp(warp_).ring[slot - place<Own>::first];
  }

  /// A segment's record is on its way to L1 when its first tile is.
  __device__ __forceinline__ void fetch_record_of(const tile_mark& mark) {
    if (mark.segment() == fetched_segment_) return;
    fetched_segment_ = mark.segment();
    prefetch_record(fetched_segment_, lane_);
  }
  /// Starts copying the next tile into the next slot that is free.
  template <bool Own>
  __device__ __forceinline__ void issue(list<Own>& tiles, const place<Own>& ring) {
    const int32_t index = ring.ahead(pending_);
    ring_slot& slot = shared_.slots[warp_][index];
    std::byte* const target = ring_memory<Own>(index);
    if constexpr (Own) fetch_record_of(tiles.mark());
    // The lane that knows the tile starts its copy, where one lane can.
    if constexpr (!ring_slot::by_one_lane()) start_copy(slot, target, tiles.place(), tiles.mark());
    if (tiles.is_lanes_own()) {
      const tile_mark mark = tiles.own_mark();
      slot.mark = mark;
      if constexpr (ring_slot::by_one_lane()) start_copy(slot, target, tiles.own_place(), mark);
    }
    // What the lane wrote is seen by all before the tile is.
    __syncwarp();
    slot.commit();
    tiles.advance();
    ++pending_;
  }
  __device__ __forceinline__ static void start_copy(ring_slot& slot, std::byte* target,
                                                    const tile_place& source,
                                                    const tile_mark& mark) {
    const tile_size size = mark.which() == token_class::salient ? shared_memory::salient_copy
                                                                : shared_memory::regular_copy;
    slot.start(target, source, static_cast<int32_t>(size.codes), static_cast<int32_t>(size.pairs));
  }

  /// Goes on to another class or segment. Output leaves a segment in the field places of its last
  /// class.
  template <bool Own>
  __device__ __forceinline__ void go_to(const tile_mark& mark) {
    if (Own && mark.segment() != at_.segment()) {
      leave_segment<Own>();
    } else if (at_.word != tile_mark::none) {
      if (mark.which() == token_class::regular)
        change_places<salient_bits, regular_bits>();
      else
        change_places<regular_bits, salient_bits>();
    }
    at_ = mark;
    if constexpr (!Own) {
      folded_ = &shared_.folded[static_cast<int32_t>(mark.which())];
    } else {
      folded_query<HeadDim, Sets>& folded = shared_.warp(warp_).kept.folded;
      folded_ = &folded;
      __syncwarp();
#pragma unroll 1
      for (int32_t set = 0; set < Sets; ++set) {
        fold_query<Policies, 8>(folded, shared_.queries, query_scale(),
                                layer_.record_of(piece_.sequence, mark.segment(), piece_.head),
                                mark.which(), set, 0, lane_);
      }
      __syncwarp();
    }
  }
  template <bool Own>
  __device__ __forceinline__ void leave_segment() {
    if (at_.word == tile_mark::none) return;
    if (at_.which() == token_class::salient) change_places<salient_bits, regular_bits>();
    end_segment(Own ? reinterpret_cast<const Storage*>(
                          layer_.record_of(piece_.sequence, at_.segment(), piece_.head) +
                          segment_record<Policies>::value_magnitudes_offset(HeadDim))
                    : shared_.value_magnitudes);
  }
  /// The prompt's parameters into the queries: of the first four warps, each has a class and four
  /// heads, or two where there is one set. Whole block.
  __device__ void fold_prompt_queries() {
    static_assert(least_attend_warps == 2 * num_token_classes);
    if (warp_ >= least_attend_warps) return;
    const int32_t index = warp_ / 2;
    const auto which = static_cast<token_class>(index);
    if ((which == token_class::salient && has_pairs(salient_bits)) ||
        (which == token_class::regular && has_pairs(regular_bits))) {
      fold_query<Policies, Sets == 2 ? 8 : 16>(
          shared_.folded[index], shared_.queries, query_scale(), shared_.prompt_record(), which,
          Sets == 2 ? warp_ % 2 : 0, Sets == 2 ? 0 : warp_ % 2 * 2, lane_);
    }
  }

  /// From the field places of one class to those of the other.
  template <int From, int To>
  __device__ __forceinline__ void change_places() {
    if constexpr (has_pairs(From) && has_pairs(To) && From != To) {
#pragma unroll
      for (int32_t block = 0; block < blocks; ++block) {
#pragma unroll
        for (int32_t i = 0; i < 4; ++i) {
          constexpr float unit = 1.0f;
          const float factor = output_factor<To>(block, i / 2) / output_factor<From>(block, i / 2);
          if (factor == unit) continue;
#pragma unroll
          for (int32_t set = 0; set < Sets; ++set) state_.sums[set][block][i] *= factor;
        }
      }
    }
  }

  __device__ __forceinline__ void attend_tile(const std::byte* tile, const tile_mark& mark) {
    if (mark.which() == token_class::salient) {
      if constexpr (has_pairs(salient_bits))
        attend_codes<token_class::salient>(tile, mark.tokens(), *folded_);
    } else {
      if constexpr (has_pairs(regular_bits))
        attend_codes<token_class::regular>(tile, mark.tokens(), *folded_);
    }
  }

  /// One tile of codes in shared memory.
  template <token_class Class>
  __device__ __forceinline__ void attend_codes(const std::byte* codes, int32_t count,
                                               const folded_query<HeadDim, Sets>& folded) {
    using tile = tile_record<Policies, Class>;
    const std::byte* const pairs = codes + tile::code_bytes(HeadDim);
    constexpr bool keys_by_token =
        Policies::key_quantizer_policy::granularity::axis == parameter_axis::token;
    const int32_t row = lane_ / 4;
    int32_t sums[Sets][2][4];
    int32_t low[2][4];
    {
      using operands = folded_query<HeadDim, Sets>;
      uint32_t q[Sets][operands::quads * 4];
      uint32_t q_low[operands::quads * 4];
#pragma unroll
      for (int32_t i = 0; i < operands::quads; ++i) {
#pragma unroll
        for (int32_t set = 0; set < Sets; ++set)
          split_words(folded.digits[set][i][lane_], q[set] + 4 * i);
        split_words(folded.low_digits[i][operands::low_lane(lane_)], q_low + 4 * i);
      }
      score_codes<tile::key_bits, HeadDim>(codes, lane_, q, q_low, sums, low);
    }
    float scores[Sets][4];
    const row_pairs<typename tile::value_granularity, tile::value_bits, Storage> value_pairs(
        pairs + tile::value_pairs_offset(HeadDim), row);
    const auto key_pairs = [&] {
      if constexpr (keys_by_token)
        return row_pairs<typename tile::key_granularity, tile::key_bits, Storage>(pairs, row);
    };
    float steps[4];
    float mins[4];
#pragma unroll
    for (int32_t octet = 0; octet < 4; ++octet) {
      const int32_t i = octet % 2 * 2;
#pragma unroll
      for (int32_t set = 0; set < Sets; ++set) {
        const float2 scale_and_bias = folded.scale_and_bias[set * set_heads + lane_ % 4];
        const int32_t upper = sums[set][octet / 2][i] * 256 + sums[set][octet / 2][i + 1];
        const float dot = fmaf(static_cast<float>(low[octet / 2][i + set]), 1.0f / 256.0f,
                               static_cast<float>(upper));
        const float scale = scale_and_bias.x * (1.0f / score_factor<tile::key_bits>(octet));
        if constexpr (keys_by_token) {
          const float2 pair = key_pairs().of(octet);
          scores[set][octet] = fmaf(dot * scale, pair.x, pair.y * scale_and_bias.y);
        } else {
          scores[set][octet] = fmaf(dot, scale, scale_and_bias.y);
        }
      }
      const float2 pair = value_pairs.of(octet);
      steps[octet] = pair.x;
      mins[octet] = pair.y;
    }
    if (count < tile_tokens) {
#pragma unroll
      for (int32_t octet = 0; octet < 4; ++octet) {
        if (8 * octet + row < count) continue;
#pragma unroll
        for (int32_t set = 0; set < Sets; ++set) scores[set][octet] = -INFINITY;
        steps[octet] = 0.0f;
        mins[octet] = 0.0f;
      }
    }
    float tile_maximum[Sets];
#pragma unroll
    for (int32_t set = 0; set < Sets; ++set) tile_maximum[set] = highest_of(scores[set]);
    const float tile_step = highest_of(steps);
    if (__any_sync(whole_warp, state_.is_outside(tile_maximum, tile_step)))
      state_.adapt(tile_maximum, tile_step);
    uint32_t weights[Sets][4];
#pragma unroll
    for (int32_t octet = 0; octet < 4; ++octet) {
      const float scaled_step = steps[octet] * state_.value_scale;
#pragma unroll
      for (int32_t set = 0; set < Sets; ++set) {
        const float p = exp2_unit(scores[set][octet] - state_.maximum[set]);
        state_.sum[set] += p;
        state_.zero[set] = fmaf(p, mins[octet], state_.zero[set]);
        weights[set][octet] = transpose_8x8(split_in_halves<half>(p * scaled_step));
      }
    }
    accumulate_codes<tile::value_bits, HeadDim>(codes + tile::value_codes_offset(HeadDim), lane_,
                                                weights, state_.sums);
  }

  __device__ __forceinline__ static float highest_of(const float (&x)[4]) {
    return fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3]));
  }
  __device__ __forceinline__ static void split_words(const uint4& four, uint32_t* words) {
    words[0] = four.x;
    words[1] = four.y;
    words[2] = four.z;
    words[3] = four.w;
  }

  /// Tiles of a class that is kept in 16 bits, of all segments.
  __device__ void sweep_rows() {
    list<false> tiles(layer_, count_, layer_.table_of(piece_.sequence, piece_.head), piece_.first,
                      least(piece_.last, count_.pages), warp_);
#pragma unroll 1
    for (;;) {
      if (!tiles.ready()) tiles.refill();
      if (!tiles.ready()) break;
      const int32_t count = tiles.mark().tokens();
      attend_rows_tile(reinterpret_cast<const Storage*>(tiles.place().codes),
                       [&](int32_t token) { return token < count; });
      tiles.advance();
    }
  }

  /// Asks for the warp's first tile behind the pages, which it comes to last and reads straight
  /// from global memory, a few loads at a time.
  __device__ void prefetch_row_tiles() {
    const int32_t rows_begin = first_row_unit(layer_, count_);
    const int32_t unit = most(piece_.first, rows_begin) + warp_;
    if (unit >= piece_.last) return;
    const int32_t index = unit - rows_begin;
    const int32_t in_window = window_tiles_in_use(layer_, count_);
    const Storage* tile = index < in_window
                              ? layer_.window_tile(piece_.sequence, piece_.head, index)
                              : layer_.sink_tile(piece_.sequence, piece_.head, index - in_window);
    constexpr int32_t bytes = 2 * tile_tokens * HeadDim * static_cast<int32_t>(sizeof(Storage));
    if (lane_ == 0) prefetch_bytes(tile, bytes);
  }

  /// Tile `index` behind the pages: the window's ring, then the sinks. (A function of validity for
  /// each is faster than one for both.)
  __device__ void attend_row_tile(int32_t index) {
    const int32_t in_window = window_tiles_in_use(layer_, count_);
    if (index < in_window) {
      const int32_t slots = layer_.window_tiles * tile_tokens;
      const int32_t visible_window =
          count_.window - (batch_.hidden != nullptr ? batch_.hidden[piece_.item] : 0);
      attend_rows_tile(layer_.window_tile(piece_.sequence, piece_.head, index), [&](int32_t token) {
        // 0 is the window's oldest token.
        int32_t age = index * tile_tokens + token - count_.window_first;
        if (age < 0) age += slots;
        return age < visible_window;
      });
    } else {
      const int32_t left = count_.sinks - (index - in_window) * tile_tokens;
      attend_rows_tile(layer_.sink_tile(piece_.sequence, piece_.head, index - in_window),
                       [left](int32_t token) { return token < left; });
    }
  }

  /// One tile of 16-bit keys and values in global memory; is_valid(token) says which of its slots
  /// hold a visible token.
  template <class IsValid>
  __device__ void attend_rows_tile(const Storage* tile, IsValid&& is_valid) {
    const int32_t row = lane_ / 4;
    float sums[Sets][2][4];
    score_rows<Storage, HeadDim>(tile, lane_, shared_.row_query, sums);
    float scores[Sets][4];
    float tile_maximum[Sets];
#pragma unroll
    for (int32_t set = 0; set < Sets; ++set) {
      const float scale = shared_.row_scale[set * set_heads + lane_ % 4];
#pragma unroll
      for (int32_t octet = 0; octet < 4; ++octet) {
        const float* const parts = sums[set][octet / 2] + octet % 2 * 2;
        scores[set][octet] = is_valid(8 * octet + row) ? (parts[0] + parts[1]) * scale : -INFINITY;
      }
      tile_maximum[set] = highest_of(scores[set]);
    }
    if (__any_sync(whole_warp, state_.is_outside(tile_maximum, 0.0f)))
      state_.adapt(tile_maximum, 0.0f);
    uint32_t weights[Sets][4];
#pragma unroll
    for (int32_t set = 0; set < Sets; ++set) {
#pragma unroll
      for (int32_t octet = 0; octet < 4; ++octet) {
        const float score = scores[set][octet];
        const float p = score > -INFINITY ? exp2_unit(score - state_.maximum[set]) : 0.0f;
        state_.sum[set] += p;
        weights[set][octet] = transpose_8x8(split_in_halves<Storage>(p));
      }
    }
    uint32_t valid_pairs = 0;
#pragma unroll
    for (int32_t i = 0; i < 8; ++i) {
      const int32_t token = 16 * (i / 4) + 8 * (i / 2 % 2) + 2 * (lane_ % 4) + i % 2;
      valid_pairs |= is_valid(token) ? 1u << i : 0u;
    }
    accumulate_rows<Storage, HeadDim>(tile + tile_tokens * HeadDim, lane_, weights, state_.sums,
                                      valid_pairs);
  }

  /// The segment's output goes to what the warp keeps, with what was left out of the inner loop. No
  /// tile may be under way to the slots in its place.
  __device__ void end_segment(const Storage* magnitudes) {
    constexpr int last_bits = has_pairs(regular_bits) ? regular_bits : salient_bits;
    float zero[Sets];
#pragma unroll
    for (int32_t set = 0; set < Sets; ++set) zero[set] = sum_over_rows(state_.zero[set]);
    const float inverse = 16777216.0f / state_.value_scale;
    fold([&](int32_t set, int32_t block, int32_t octet, float sum) {
      const float value =
          fmaf(sum, inverse * (1.0f / output_factor<last_bits>(block, octet)), zero[set]);
      return has_value_magnitudes ? value * to_float(magnitudes[block * 16 + octet * 8 + lane_ / 4])
                                  : value;
    });
  }

  __device__ static float sum_over_rows(float x) {
    for (int32_t lanes = 4; lanes < 32; lanes *= 2) x += __shfl_xor_sync(whole_warp, x, lanes);
    return x;
  }

  template <class Value>
  __device__ void fold(Value&& value_of) {
#pragma unroll
    for (int32_t set = 0; set < Sets; ++set) {
      float* const out = shared_.warp(warp_).kept.out[set * set_heads + lane_ % 4];
      const float maximum = state_.maximum[set];
      float& stored_maximum = state_.stored_maximum[set];
      const bool first = !(stored_maximum > -INFINITY);
      const float kept = first ? 0.0f : exp2_unit(stored_maximum - maximum);
#pragma unroll
      for (int32_t block = 0; block < blocks; ++block) {
#pragma unroll
        for (int32_t octet = 0; octet < 2; ++octet) {
          float& target = out[block * 16 + octet * 8 + lane_ / 4];
          const float* const parts = state_.sums[set][block] + 2 * octet;
          const float value = value_of(set, block, octet, parts[0] + parts[1]);
          target = first ? value : fmaf(target, kept, value);
        }
      }
      stored_maximum = maximum;
    }
    state_.begin_segment();
  }

  /// The warp's maximum and sum; the output stands against the maximum.
  __device__ void publish() {
#pragma unroll
    for (int32_t set = 0; set < Sets; ++set) {
      const float sum = sum_over_rows(state_.sum[set]);
      if (lane_ >= set_heads) continue;
      shared_.states.maximum[warp_][set * set_heads + lane_] = state_.maximum[set];
      shared_.states.sum[warp_][set * set_heads + lane_] = sum;
    }
    __syncthreads();
  }

  const device_layer<Policies, Storage>& layer_;
  shared_memory& shared_;
  const attend_piece& piece_;
  const sequence_counts& count_;
  const attend_batch<Storage>& batch_;
  int32_t warp_;
  int32_t lane_;
  int32_t pending_ = 0;  // tiles in the ring
  const folded_query<HeadDim, Sets>* folded_ =
      nullptr;  // of the class and segment that the sums belong to
  int32_t fetched_segment_ = -1;
  tile_mark at_;        // class and segment that the sums belong to
  place<false>& ring_;  // goes on from piece to piece
  place<true>& own_ring_;
  softmax state_;
};

/// Decode attention of a batch over all cached tokens.
/// grid: any number of blocks; each has an equal stretch of the units (attend_schedule.cuh)
/// warp: a share of the stretch's tiles, by itself; states meet in shared memory at the end of a
/// (sequence, head)
/// lane: query head lane % 4 of each set, tokens and channels lane / 4 + 8 * n
/// block: four warps, or as many as attend_tuning allows
/// memory: attend_shared, the memory of its warps, and the prefix sums of the batch behind it
template <class Policies, class Storage, int32_t HeadDim, int32_t Sets>
static __global__ void __launch_bounds__(32 * attend_tuning<HeadDim, Sets>::most_warps,
                                         attend_tuning<HeadDim, Sets>::blocks_of_most_warps)
    attend_tensor_core_kernel(device_layer<Policies, Storage> layer, attend_batch<Storage> batch,
                              attend_division division, attend_workspace workspace) {
  extern __shared__ __align__(128) std::byte dynamic_memory[];
  using shared_memory = attend_shared<Policies, Storage, HeadDim, Sets>;
  using worker = piece_worker<Policies, Storage, HeadDim, Sets>;
  using tuning = attend_tuning<HeadDim, Sets>;
  shared_memory& shared = *reinterpret_cast<shared_memory*>(dynamic_memory);
  uint32_t* const prefix =
      reinterpret_cast<uint32_t*>(dynamic_memory + shared_memory::bytes(block_warps()));
  if (thread_of_block() < block_warps() * tuning::slots) shared.slots[0][thread_of_block()].init();
  ring_place<tuning, false> ring;
  ring_place<tuning, true> own_ring;
  const auto pass = [&] { return static_cast<int32_t>(blockIdx.x % division.passes); };
  const auto fetch = [&](int32_t sequence, int32_t item, int32_t head) {
    worker::fetch(layer, batch, pass(), shared, sequence, item, head);
  };
  let_next_kernel_begin();
  wait_for_earlier_kernels();
  for_each_piece(
      layer, batch, division, shared.tasks, prefix, fetch, [] { wait_for_copies(); },
      [&] {
        const attend_piece& piece = shared.tasks.piece;
        if (!shared.tasks.all_equal) fetch(piece.sequence, piece.item, piece.head);
        worker(layer, batch, shared, ring, own_ring).run();
        finish_piece<HeadDim>(
            layer, batch, workspace, piece, shared.tasks.count, shared.states,
            [&](int32_t warp) { return shared.out_of(warp); },
            static_cast<int32_t>(division.passes), &shared.arrival);
      });
}

}  // namespace zipcache::detail

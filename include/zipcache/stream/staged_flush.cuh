// A flush from shared memory: the interval's keys and values are copied out of the window's tiles
// once, as plain rows, and scores, statistics and codes are made from them by the functions that
// compress prompts. A block is one head. Twins: stream.hpp, general_flush.cuh.
// @equality same_bytes
#pragma once

#include <cstdint>

#include <zipcache/detail/tensor_core.cuh>
#include <zipcache/store/device_layer.cuh>
#include <zipcache/store/segment.hpp>
#include <zipcache/store/tile_encoder.cuh>
#include <zipcache/stream/window_interval.cuh>

namespace zipcache::detail {

struct staged_tuning {
  /// Products of queries and keys that a thread has under way: a key is widened once for `pairs`,
  /// and a query read once for `tokens`. 160 tokens are one turn.
  static constexpr int32_t pairs = 4;
  static constexpr int32_t tokens = 5;
  static constexpr int32_t pairs_of_block = append_warps * pairs;
  static constexpr int32_t tokens_of_block = 32 * tokens;
};

/// A tile that a flush writes.
struct alignas(16) flush_tile {
  tile_place at;
  int32_t first;  ///< of the list of tokens by class
  int32_t count;
};

/// Whether a flush itself sums up its head's probes, or all heads' sums were made before.
template <class Policies>
inline constexpr bool sums_own_probes =
    Policies::needs_probes && !Policies::scope_policy::shared_by_heads;

/// Distance of staged rows, in values: neighbouring rows begin four banks apart.
ZIPCACHE_HOST_DEVICE constexpr int32_t interval_stride(int32_t head_dim) { return head_dim + 8; }

/// One side of an interval as rows, and behind them a row of NaN and one of zeros, which stand for
/// tokens that a tile lacks. Bytes.
ZIPCACHE_HOST_DEVICE constexpr int64_t interval_rows_bytes(int32_t interval, int32_t head_dim) {
  return (int64_t{interval} + 2) * interval_stride(head_dim) * 2;
}

/// What sum_staged_probes works in: queries, then the weights of the same pairs. Bytes.
ZIPCACHE_HOST_DEVICE constexpr int64_t probe_scratch_bytes(int32_t head_dim) {
  return int64_t{4} * staged_tuning::pairs_of_block *
         most(head_dim, staged_tuning::tokens_of_block);
}

/// Shared memory of one block, each part aligned to 16 bytes.
template <class Policies>
struct staged_flush_layout {
  int32_t interval;
  int32_t head_dim;

  ZIPCACHE_HOST_DEVICE int64_t keys_offset() const { return 0; }  // rows of the keys
  /// Rows of the values; before they come, probes are summed up here.
  ZIPCACHE_HOST_DEVICE int64_t values_offset() const {
    return interval_rows_bytes(interval, head_dim);
  }
  ZIPCACHE_HOST_DEVICE int64_t ranks_offset() const {  // uint64_t [interval]
    const int64_t rows = interval_rows_bytes(interval, head_dim);
    return values_offset() +
           most<int64_t>(rows, sums_own_probes<Policies> ? probe_scratch_bytes(head_dim) : 0);
  }
  ZIPCACHE_HOST_DEVICE int64_t scores_offset() const {  // float [interval]
    return ranks_offset() + round_up<int64_t>(int64_t{8} * interval, 16);
  }
  ZIPCACHE_HOST_DEVICE int64_t lists_offset() const {  // int32_t [interval]
    return scores_offset() + round_up<int64_t>(int64_t{4} * interval, 16);
  }
  ZIPCACHE_HOST_DEVICE int64_t bitmap_offset() const {  // uint32_t [words]
    return lists_offset() + round_up<int64_t>(int64_t{4} * interval, 16);
  }
  ZIPCACHE_HOST_DEVICE int64_t
  tiles_offset() const {  // flush_tile; each class may have a part of one
    return bitmap_offset() + round_up<int64_t>(int64_t{4} * ceil_div(interval, 32), 16);
  }
  ZIPCACHE_HOST_DEVICE int64_t scales_offset() const {  // float2 [2, side_scales_count, head_dim]
    return tiles_offset() +
           static_cast<int64_t>(sizeof(flush_tile)) * (ceil_div(interval, tile_tokens) + 2);
  }
  ZIPCACHE_HOST_DEVICE int64_t warps_offset() const {
    return scales_offset() + int64_t{2} * side_scales_count * head_dim * 8;
  }
  /// Of a warp: where its tile's rows are, int32_t [32], and scales of the tile.
  ZIPCACHE_HOST_DEVICE int64_t warp_bytes() const {
    return 4 * tile_tokens +
           round_up<int64_t>(int64_t{8} * encode_memory<Policies>::num_scales(head_dim), 16);
  }
  ZIPCACHE_HOST_DEVICE int64_t bytes() const {
    return warps_offset() + append_warps * warp_bytes();
  }
};
static_assert(sizeof(flush_tile) % 16 == 0,
              "zipcache: parts of the layout are aligned to 16 bytes");

// --- rows
// -----------------------------------------------------------------------------------------

/// Tiles of the window that an interval lies in. The first one may also have its last tokens.
template <class Policies, class Storage>
__device__ __forceinline__ int32_t interval_tiles(const device_layer<Policies, Storage>& layer,
                                                  int32_t first_slot) {
  return least(ceil_div(first_slot % tile_tokens + layer.interval, tile_tokens),
               layer.window_tiles);
}

/// Tile `index` of those, one side of it.
template <bool Keys, class Policies, class Storage>
__device__ __forceinline__ const Storage* interval_tile(
    const device_layer<Policies, Storage>& layer, int32_t sequence, int32_t head,
    int32_t first_slot, int32_t index, int32_t head_dim, int32_t& tile_slot) {
  int32_t tile = first_slot / tile_tokens + index;
  if (tile >= layer.window_tiles) tile -= layer.window_tiles;
  tile_slot = tile * tile_tokens;
  return layer.window_tile(sequence, head, tile) + (Keys ? 0 : tile_tokens * head_dim);
}

/// Copies one side of the interval into `rows`, [interval, stride]: `num_warps` warps together, a
/// lane four of its words of a tile at a time. Those of values hold two tokens of a channel and are
/// exchanged within the warp for two channels of a token, as which words of keys come.
template <bool Keys, int HeadDim, class Policies, class Storage>
__device__ __forceinline__ void stage_side(const device_layer<Policies, Storage>& layer,
                                           int32_t sequence, int32_t head, int32_t first_slot,
                                           int32_t warp, int32_t num_warps, Storage* rows) {
  using layout = std::conditional_t<Keys, key_layout<16>, value_layout<16>>;
  constexpr int32_t vector = 4;
  constexpr int32_t at_once = HeadDim == 0 ? 2 : 4;  // as many as registers are left for
  const int32_t head_dim = HeadDim == 0 ? layer.head_dim : HeadDim;
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
  const int32_t steps = layout::words_per_lane(head_dim) / vector;  // of a tile
  const int32_t num_units = interval_tiles(layer, first_slot) * steps;
  const int32_t stride = interval_stride(head_dim);
  for (int32_t first = warp; first < num_units; first += at_once * num_warps) {
    uint4 words[at_once];
    ZIPCACHE_UNROLL
    for (int32_t i = 0; i < at_once; ++i) {
      const int32_t unit = first + i * num_warps;
      if (unit >= num_units) break;
      int32_t tile_slot;
      const Storage* tile =
          interval_tile<Keys>(layer, sequence, head, first_slot, unit / steps, head_dim, tile_slot);
      words[i] = reinterpret_cast<const uint4*>(tile)[unit % steps * 32 + lane];
    }
    ZIPCACHE_UNROLL
    for (int32_t i = 0; i < at_once; ++i) {
      const int32_t unit = first + i * num_warps;
      if (unit >= num_units) break;
      int32_t tile_slot;
      interval_tile<Keys>(layer, sequence, head, first_slot, unit / steps, head_dim, tile_slot);
      const uint32_t own[vector] = {words[i].x, words[i].y, words[i].z, words[i].w};
      ZIPCACHE_UNROLL
      for (int32_t j = 0; j < vector; ++j) {
        // Where lane 0's values lie; the other lanes' are in the same eight rows and channels.
        const tile_element corner =
            layout::element(head_dim, lane_word{0, unit % steps * vector + j}, 0);
        const uint32_t values = Keys ? own[j] : transpose_matrix(own[j]);
        int32_t token = tile_slot + corner.token + lane / 4 - first_slot;
        if (token < 0) token += layer.window_slots();
        if (token < layer.interval) {
          *reinterpret_cast<uint32_t*>(rows + token * stride + corner.channel + lane % 4 * 2) =
              values;
        }
      }
    }
  }
}

/// The two rows behind an interval's. One block.
template <class Storage>
__device__ __forceinline__ void stage_fillers(int32_t interval, int32_t head_dim, Storage* rows) {
  const int32_t words = interval_stride(head_dim) / 2;
  auto* fillers = reinterpret_cast<uint32_t*>(rows + interval * interval_stride(head_dim));
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < 2 * words; i += append_threads)
    fillers[i] = i < words ? nan_pair : 0u;
}

/// Asks for the interval's values, so that they are near when their turn comes.
template <class Policies, class Storage>
__device__ __forceinline__ void prefetch_values(const device_layer<Policies, Storage>& layer,
                                                int32_t sequence, int32_t head, int32_t first_slot,
                                                int32_t head_dim) {
  constexpr int32_t line = 128 / 2;  // in values
  const int32_t lines = ceil_div(tile_tokens * head_dim, line);
  const int32_t all = interval_tiles(layer, first_slot) * lines;
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < all; i += append_threads) {
    int32_t tile_slot;
    const Storage* tile =
        interval_tile<false>(layer, sequence, head, first_slot, i / lines, head_dim, tile_slot);
    prefetch_line(tile + i % lines * line);
  }
}

// --- scores
// ---------------------------------------------------------------------------------------

/// Row, within its interval, of kept probe number `kept`: rows come with the mask's bits.
inline __device__ int32_t planned_row(const uint32_t* planned, int32_t kept) {
  int32_t word = 0;
  uint32_t bits = planned[0];
  for (; kept >= __popc(bits); bits = planned[++word]) kept -= __popc(bits);
  for (; kept > 0; --kept) bits &= bits - 1u;
  return 32 * word + __ffs(static_cast<int>(bits)) - 1;
}

/// A pair of a kept probe and a query head, as a lane of the pair's warp has it.
struct probe_pair {
  int64_t row;       ///< of the kept queries
  int32_t position;  ///< among the window's tokens: the last one that it sees; -1: there is no pair
  float base;        ///< log2 of the sum that its weights are divided by
};

template <class Policies, class Storage>
__device__ __forceinline__ probe_pair probe_pair_at(const device_layer<Policies, Storage>& layer,
                                                    int32_t sequence, int32_t head,
                                                    const uint32_t* planned, int32_t pair,
                                                    int32_t num_pairs) {
  const int32_t group = layer.group();
  const int32_t present = least(pair, num_pairs - 1);
  const int32_t kept = present / group;
  const int64_t row = (int64_t{sequence} * layer.probes.max_kept + kept) * layer.num_qo_heads +
                      head * group + present % group;
  return {row, pair < num_pairs ? planned_row(planned, kept) + layer.recent : -1,
          layer.probes.lse[row] * log2_e};
}

/// Queries of a warp's pairs, scaled. queries [pairs, head_dim]
template <class Policies, class Storage>
__device__ __forceinline__ void load_probe_queries(const device_layer<Policies, Storage>& layer,
                                                   int32_t head_dim, const probe_pair& own,
                                                   float* queries) {
  constexpr int32_t pairs = staged_tuning::pairs;
  const float factor = layer.sm_scale * log2_e;
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
  const Storage* rows[pairs];
  ZIPCACHE_UNROLL
  for (int32_t i = 0; i < pairs; ++i)
    rows[i] = layer.probes.q + __shfl_sync(whole_warp, own.row, i) * head_dim;
  for (int32_t channel = 2 * lane; channel < head_dim; channel += 64) {
    uint32_t values[pairs];
    ZIPCACHE_UNROLL
    for (int32_t i = 0; i < pairs; ++i)
      values[i] = *reinterpret_cast<const uint32_t*>(rows[i] + channel);
    ZIPCACHE_UNROLL
    for (int32_t i = 0; i < pairs; ++i) {
      *reinterpret_cast<float2*>(queries + i * head_dim + channel) = make_float2(
          first_of<Storage>(values[i]) * factor, second_of<Storage>(values[i]) * factor);
    }
  }
}

/// sums += products of a warp's queries with a lane's keys, each by fmaf over ascending channels.
/// offsets: where the lane's rows begin
template <class Storage>
__device__ __forceinline__ void score_tokens(
    const float* queries, const Storage* rows, const int32_t (&offsets)[staged_tuning::tokens],
    int32_t head_dim, float (&sums)[staged_tuning::pairs][staged_tuning::tokens]) {
  constexpr int32_t pairs = staged_tuning::pairs;
  constexpr int32_t tokens = staged_tuning::tokens;
#pragma unroll 1
  for (int32_t channel = 0; channel < head_dim; channel += 8) {
    uint4 values[tokens];
    ZIPCACHE_UNROLL
    for (int32_t t = 0; t < tokens; ++t)
      values[t] = *reinterpret_cast<const uint4*>(rows + offsets[t] + channel);
    ZIPCACHE_UNROLL
    for (int32_t half_step = 0; half_step < 2; ++half_step) {
      float4 query[pairs];
      ZIPCACHE_UNROLL
      for (int32_t p = 0; p < pairs; ++p)
        query[p] =
            *reinterpret_cast<const float4*>(queries + p * head_dim + channel + 4 * half_step);
      ZIPCACHE_UNROLL
      for (int32_t t = 0; t < tokens; ++t) {
        const uint32_t low = half_step == 0 ? values[t].x : values[t].z;
        const uint32_t high = half_step == 0 ? values[t].y : values[t].w;
        const float key[4] = {first_of<Storage>(low), second_of<Storage>(low),
                              first_of<Storage>(high), second_of<Storage>(high)};
        ZIPCACHE_UNROLL
        for (int32_t p = 0; p < pairs; ++p) {
          float sum = sums[p][t];
          sum = fmaf(query[p].x, key[0], sum);
          sum = fmaf(query[p].y, key[1], sum);
          sum = fmaf(query[p].z, key[2], sum);
          sums[p][t] = fmaf(query[p].w, key[3], sum);
        }
      }
    }
  }
}

/// Attention mass that the kept probes give to the tokens of an interval: for each token probes
/// ascending, then heads, as on the CPU. Pairs of them are spread over the warps, tokens over the
/// lanes; weights that a probe does not give are zeros, which change no sum. One block.
/// @param rows  the interval's keys
/// @param scratch  probe_scratch_bytes
/// @param[out] sums  [interval]
template <class Policies, class Storage>
__device__ __forceinline__ void sum_staged_probes(const device_layer<Policies, Storage>& layer,
                                                  int32_t sequence, int32_t head,
                                                  int32_t num_intervals, int32_t num_kept,
                                                  int32_t head_dim, const Storage* rows,
                                                  float* scratch, float* sums) {
  using tuning = staged_tuning;
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  const int32_t lane = thread % 32;
  const int32_t own_pair = thread / 32 * tuning::pairs;
  const int32_t num_pairs = num_kept * layer.group();
  const int32_t stride = interval_stride(head_dim);
  const uint32_t* planned = layer.probes.planned_of(sequence, num_intervals);
  float* queries = scratch + own_pair * head_dim;
  for (int32_t start = 0; start < layer.interval; start += tuning::tokens_of_block) {
    const int32_t token = start + thread;  // whose sum this thread has
    const bool has_token = thread < tuning::tokens_of_block && token < layer.interval;
    float sum = 0.0f;
    for (int32_t first = 0; first < num_pairs; first += tuning::pairs_of_block) {
      const bool has_pairs = first + own_pair < num_pairs;
      probe_pair own{};
      float products[tuning::pairs][tuning::tokens] = {};
      if (has_pairs) {
        own = probe_pair_at(layer, sequence, head, planned, first + own_pair + lane % tuning::pairs,
                            num_pairs);
        load_probe_queries(layer, head_dim, own, queries);
        __syncwarp();
        int32_t offsets[tuning::tokens];
        ZIPCACHE_UNROLL
        for (int32_t t = 0; t < tuning::tokens; ++t)
          offsets[t] = least(start + 32 * t + lane, layer.interval - 1) * stride;
        score_tokens(queries, rows, offsets, head_dim, products);
      }
      __syncthreads();  // all queries are read; their weights take their place
      if (has_pairs) {
        ZIPCACHE_UNROLL
        for (int32_t p = 0; p < tuning::pairs; ++p) {
          const int32_t position = __shfl_sync(whole_warp, own.position, p);
          const float base = __shfl_sync(whole_warp, own.base, p);
          ZIPCACHE_UNROLL
          for (int32_t t = 0; t < tuning::tokens; ++t) {
            const int32_t index = 32 * t + lane;
            scratch[(own_pair + p) * tuning::tokens_of_block + index] =
                start + index <= position ? exp2_poly(products[p][t] - base) : 0.0f;
          }
        }
      }
      __syncthreads();
      if (has_token) {
        const int32_t pairs = least(tuning::pairs_of_block, num_pairs - first);
#pragma unroll 8
        for (int32_t pair = 0; pair < pairs; ++pair)
          sum += scratch[pair * tuning::tokens_of_block + thread];
      }
      __syncthreads();  // the weights are read; queries or values take their place
    }
    if (has_token) sums[token] = sum;
  }
}

// --- statistics and codes
// -------------------------------------------------------------------------

/// What the segment keeps of two neighbouring channels of one side, and what their codes need.
/// rows: the segment's; lists: its tokens by class
template <class Quantizer, bool Keys, class Policies, class Storage>
__device__ __forceinline__ void fit_staged_pair(const Storage* rows, const int32_t* lists,
                                                int32_t num_salient, int32_t num_tokens,
                                                int32_t channel,
                                                const record_view<Policies, Storage>& record,
                                                float2* scales) {
  using needed = needed_statistics<Quantizer>;
  if constexpr (needed::any) {
    const int32_t stride = interval_stride(record.head_dim);
    pair_range ranges[2];  // salient, regular
    uint32_t largest = 0;
    ZIPCACHE_UNROLL
    for (int32_t which = 0; which < 2; ++which) {
      const int32_t last = which == 0 ? num_salient : num_tokens;
#pragma unroll 8
      for (int32_t i = which == 0 ? 0 : num_salient; i < last; ++i) {
        const uint32_t values =
            *reinterpret_cast<const uint32_t*>(rows + lists[i] * stride + channel);
        if (which == 0 ? needed::salient : needed::regular)
          include_pair<Storage>(ranges[which], values);
        if constexpr (needed::largest)
          largest = higher_pair<Storage>(largest, magnitude_pair(finite_pair<Storage>(values)));
      }
    }
    ZIPCACHE_UNROLL
    for (int32_t j = 0; j < 2; ++j) {
      const auto value = [j](uint32_t pair) {
        return j == 0 ? first_of<Storage>(pair) : second_of<Storage>(pair);
      };
      channel_statistics statistics;
      statistics.salient = range_of(value(ranges[0].lowest), value(ranges[0].highest));
      statistics.regular = range_of(value(ranges[1].lowest), value(ranges[1].highest));
      statistics.largest = value(largest);
      save_channel<Quantizer, Keys>(statistics, channel + j, record, scales);
    }
  }
}

/// Segment record of one head, and the scales of both sides, [2, side_scales_count, head_dim]. One
/// block, two channels a thread.
template <class Policies, class Storage>
__device__ __forceinline__ void fit_staged_interval(const Storage* keys, const Storage* values,
                                                    const int32_t* lists, int32_t num_salient,
                                                    int32_t num_tokens, int32_t head_dim,
                                                    const record_view<Policies, Storage>& record,
                                                    float2* scales) {
  for (int32_t i = static_cast<int32_t>(threadIdx.x); i < head_dim; i += append_threads) {
    if (2 * i < head_dim) {
      fit_staged_pair<typename Policies::key_quantizer_policy, true>(
          keys, lists, num_salient, num_tokens, 2 * i, record, scales);
    } else {
      fit_staged_pair<typename Policies::value_quantizer_policy, false>(
          values, lists, num_salient, num_tokens, 2 * i - head_dim, record,
          scales + side_scales_count * head_dim);
    }
  }
}

/// Fills the new entries of a head's page table, and says where the flush's tiles lie: those of
/// salient tokens, then the others. One warp.
template <class Policies, class Storage>
__device__ void plan_tiles(const device_layer<Policies, Storage>& layer,
                           const sequence_counts& count, const flush_sizes& flush, int32_t sequence,
                           int32_t head, flush_tile* tiles) {
  const int32_t num_tokens = layer.interval - flush.pinned;
  const int32_t num_regular = num_tokens - flush.salient;
  const segment_shape<Policies> shape{layer.num_kv_heads, layer.head_dim, num_tokens,
                                      flush.salient};
  const page_plan plan = shape.plan(layer.page_bytes);
  page_entry* table = layer.table_of(sequence, head) + count.pages;
  for (int32_t page = static_cast<int32_t>(threadIdx.x) % 32; page < flush.pages; page += 32) {
    const page_entry entry = plan.entry(page, table[page].page, flush.salient, num_regular);
    const auto place = [&]<token_class Class>(int64_t tile, int64_t first, int32_t count_here) {
      for (int32_t i = 0; i < count_here; i += tile_tokens, ++tile)
        tiles[tile] = {layer.template tile<Class>(entry, i / tile_tokens),
                       static_cast<int32_t>(first) + i, least(tile_tokens, count_here - i)};
    };
    const int64_t salient = plan.salient_before(page);
    const int64_t regular = least(plan.regular_before(page), plan.regular_tiles);
    place.template operator()<token_class::salient>(salient, salient * tile_tokens,
                                                    entry.salient_tokens);
    place.template operator()<token_class::regular>(
        plan.salient_tiles + regular, flush.salient + regular * tile_tokens, entry.regular_tokens);
    table[page] = entry;
  }
}

/// Tiles of one class of a flush.
template <class Policies, token_class Class>
__device__ __forceinline__ int32_t flush_tiles(int32_t num_tokens, int32_t head_dim) {
  return tile_record<Policies, Class>::bytes(head_dim) > 0 ? ceil_div(num_tokens, tile_tokens) : 0;
}

/// One side of one tile, by one warp.
/// @param rows  the segment's, of that side; row `filler` of them is NaN, the next one zeros
/// @param offsets, token_scales  the warp's own
template <bool Keys, token_class Class, int HeadDim, class Policies, class Storage>
__device__ __forceinline__ void encode_flush_tile(const flush_tile& tile, const Storage* rows,
                                                  int32_t filler, const int32_t* lists,
                                                  int32_t head_dim,
                                                  const record_view<Policies, Storage>& record,
                                                  const float2* scales, int32_t* offsets,
                                                  quantize_scale* token_scales) {
  using layout = tile_record<Policies, Class>;
  constexpr bool has_16_bits = (Keys ? layout::key_bits : layout::value_bits) == 16;
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
  const int32_t row = lane < tile.count ? lists[tile.first + lane] : filler + (has_16_bits ? 1 : 0);
  offsets[lane] = row * interval_stride(head_dim);
  __syncwarp();
  staged_tile<Storage, listed_rows> staged{};
  staged.rows = rows;
  staged.places.offsets = offsets;
  staged.head_dim = head_dim;
  staged.count = tile.count;
  staged.lane = lane;
  staged.scales = token_scales;
  encode_staged_class<Keys, Class, HeadDim>(record, scales, staged, tile.at);
  __syncwarp();
}

/// Compresses the oldest interval of one head's window into new pages, less the tokens that become
/// sinks. One block. Counts are not touched.
template <int HeadDim, class Policies, class Storage>
__device__ void flush_staged(const device_layer<Policies, Storage>& layer,
                             const sequence_counts& count, const flush_sizes& flush,
                             int32_t sequence, int32_t head, int32_t num_kept,
                             const float* all_sums, std::byte* memory) {
  constexpr token_class salient = token_class::salient;
  constexpr token_class regular = token_class::regular;
  const int32_t head_dim = HeadDim == 0 ? layer.head_dim : HeadDim;
  const int32_t interval = layer.interval;
  const int32_t first_slot = count.window_first;
  const int32_t warp = static_cast<int32_t>(threadIdx.x) / 32;
  const staged_flush_layout<Policies> layout{interval, head_dim};
  auto* keys = reinterpret_cast<Storage*>(memory + layout.keys_offset());
  auto* values = reinterpret_cast<Storage*>(memory + layout.values_offset());
  auto* scratch = reinterpret_cast<float*>(values);
  auto* ranks = reinterpret_cast<uint64_t*>(memory + layout.ranks_offset());
  auto* scores = reinterpret_cast<float*>(memory + layout.scores_offset());
  auto* lists = reinterpret_cast<int32_t*>(memory + layout.lists_offset());
  auto* bitmap = reinterpret_cast<uint32_t*>(memory + layout.bitmap_offset());
  auto* tiles = reinterpret_cast<flush_tile*>(memory + layout.tiles_offset());
  auto* scales = reinterpret_cast<float2*>(memory + layout.scales_offset());
  auto* offsets =
      reinterpret_cast<int32_t*>(memory + layout.warps_offset() + warp * layout.warp_bytes());
  auto* token_scales = reinterpret_cast<quantize_scale*>(offsets + tile_tokens);

  pin_sinks(window_reader<Policies, Storage>{layer, sequence, head, first_slot}, count.sinks,
            flush.pinned);
  const int32_t num_tokens = interval - flush.pinned;
  if (num_tokens == 0) return;
  __syncthreads();  // everybody has looked at the page table
  if constexpr (sums_own_probes<Policies>) {
    prefetch_values(layer, sequence, head, first_slot, head_dim);
  } else {
    stage_side<false, HeadDim>(layer, sequence, head, first_slot, warp, append_warps, values);
    stage_fillers(interval, head_dim, values);
  }
  stage_fillers(interval, head_dim, keys);
  // The last warp has divisions to do while the others wait for memory.
  if (warp == append_warps - 1) {
    plan_tiles(layer, count, flush, sequence, head, tiles);
  } else {
    stage_side<true, HeadDim>(layer, sequence, head, first_slot, warp, append_warps - 1, keys);
  }
  __syncthreads();

  if constexpr (sums_own_probes<Policies>) {
    sum_staged_probes(layer, sequence, head, count.intervals, num_kept, head_dim, keys, scratch,
                      scores);
    __syncthreads();  // nobody is in the scratch any more
    stage_side<false, HeadDim>(layer, sequence, head, first_slot, warp, append_warps, values);
    stage_fillers(interval, head_dim, values);
  } else if constexpr (Policies::needs_probes) {
    add_head_sums(layer, sequence, all_sums, scores);
    __syncthreads();
  } else {
    for (int32_t token = static_cast<int32_t>(threadIdx.x); token < interval;
         token += append_threads)
      scores[token] = 0.0f;
    __syncthreads();
  }
  apply_metric(layer, sequence, count.intervals, scores);
  __syncthreads();
  // From here on tokens count from the first one of the segment.
  select_interval(scores + flush.pinned, num_tokens, flush, ranks, bitmap, lists);
  const record_view<Policies, Storage> record{layer.record_of(sequence, count.segments, head),
                                              head_dim};
  keys += flush.pinned * interval_stride(head_dim);
  values += flush.pinned * interval_stride(head_dim);
  fit_staged_interval(keys, values, lists, flush.salient, num_tokens, head_dim, record, scales);
  __syncthreads();

  const int32_t num_salient_tiles = flush_tiles<Policies, salient>(flush.salient, head_dim);
  const int32_t num_tiles =
      num_salient_tiles + flush_tiles<Policies, regular>(num_tokens - flush.salient, head_dim);
#pragma unroll 1
  for (int32_t turn = warp; turn < 2 * num_tiles; turn += append_warps) {
    const bool is_key = turn < num_tiles;
    const int32_t index = is_key ? turn : turn - num_tiles;
    const auto encode = [&]<bool Keys, token_class Class>() {
      encode_flush_tile<Keys, Class, HeadDim>(
          tiles[index], Keys ? keys : values, num_tokens, lists, head_dim, record,
          scales + (Keys ? 0 : side_scales_count * head_dim), offsets, token_scales);
    };
    if (is_key) {
      if (index < num_salient_tiles) {
        encode.template operator()<true, salient>();
      } else {
        encode.template operator()<true, regular>();
      }
    } else if (index < num_salient_tiles) {
      encode.template operator()<false, salient>();
    } else {
      encode.template operator()<false, regular>();
    }
  }
  uint32_t* kept_bitmap = layer.bitmap_of(sequence, head) + ceil_div(count.prompt_tokens, 32) +
                          count.interval_segments() * ceil_div(interval, 32);
  for (int32_t word = static_cast<int32_t>(threadIdx.x); word < ceil_div(num_tokens, 32);
       word += append_threads)
    kept_bitmap[word] = bitmap[word];
}

}  // namespace zipcache::detail

// What a block of decode attention works on, piece by piece. In: lengths in device memory, and how
// work is divided (attend_schedule.cuh). Out: pieces, one after the other.
#pragma once

#include <cstdint>

#include <zipcache/attend/attend_schedule.cuh>
#include <zipcache/detail/warp.cuh>
#include <zipcache/store/device_layer.cuh>

namespace zipcache::detail {

/// Units of a sequence, and all its counts, in as few loads as there can be.
template <class Policies, class Storage>
__device__ __forceinline__ int32_t load_units(const device_layer<Policies, Storage>& layer,
                                              int32_t sequence) {
  const int4 words = *reinterpret_cast<const int4*>(layer.counts + sequence);
  sequence_counts count;
  count.pages = words.x;
  count.window = words.y;
  count.window_first = words.z;
  count.sinks = words.w;
  return units_of(layer, count);
}
template <class Policies, class Storage>
__device__ __forceinline__ sequence_counts load_counts(const device_layer<Policies, Storage>& layer,
                                                       int32_t sequence) {
  const auto* const words = reinterpret_cast<const int4*>(layer.counts + sequence);
  const int4 first = words[0];
  const int4 second = words[1];
  sequence_counts count;
  count.pages = first.x;
  count.window = first.y;
  count.window_first = first.z;
  count.sinks = first.w;
  count.prompt_pages = second.x;
  count.prompt_tokens = second.y;
  count.sealed = second.z;
  count.segments = second.w;
  count.intervals = layer.counts[sequence].intervals;
  return count;
}

/// Fills prefix[i] = units of items before i, times heads; prefix [num_items + 1] in shared memory.
/// One warp.
template <class Policies, class Storage>
__device__ attend_line plan_line(const device_layer<Policies, Storage>& layer,
                                 const attend_batch<Storage>& batch, uint32_t max_teams,
                                 uint32_t* prefix) {
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
  bool equal = true;
  uint32_t expected = 0;
#pragma unroll 1
  for (int32_t first = 0; first < batch.num_items; first += 32) {
    const int32_t item = first + lane;
    const bool some = item < batch.num_items;
    const uint32_t units =
        some ? static_cast<uint32_t>(load_units(layer, batch.sequences[item])) : 0;
    if (first == 0) expected = __shfl_sync(whole_warp, units, 0);
    equal = equal && (!some || units == expected);
    if (some) prefix[item] = units;
  }
  equal = __all_sync(whole_warp, equal);
  const uint32_t beside = equal ? 0 : begin_units(layer);
  uint32_t sum = 0;
#pragma unroll 1
  for (int32_t first = 0; first < batch.num_items; first += 32) {
    const int32_t item = first + lane;
    const bool some = item < batch.num_items;
    const uint32_t own = some ? attend_line::on_line(prefix[item], beside, layer.num_kv_heads) : 0;
    uint32_t inclusive = own;
#pragma unroll
    for (int32_t step = 1; step < 32; step *= 2) {
      const uint32_t below = __shfl_up_sync(whole_warp, inclusive, step);
      if (lane >= step) inclusive += below;
    }
    if (some) prefix[item] = sum + inclusive - own;
    sum += __shfl_sync(whole_warp, inclusive, 31);
  }
  if (lane == 0) prefix[batch.num_items] = sum;
  __syncwarp();
  const auto slots = static_cast<uint32_t>(batch.num_items * layer.num_kv_heads);
  return attend_line::make(sum, slots, max_teams, beside);
}

/// Sequences without a token have no unit, so nobody else writes their output: zeros, and -inf as
/// lse.
template <class Policies, class Storage>
__device__ void write_empty_items(const device_layer<Policies, Storage>& layer,
                                  const attend_batch<Storage>& batch, const uint32_t* prefix) {
  for (int32_t item = static_cast<int32_t>(blockIdx.x); item < batch.num_items;
       item += static_cast<int32_t>(gridDim.x)) {
    if (prefix[item + 1] > prefix[item]) continue;
    const int64_t first_row = static_cast<int64_t>(item) * layer.num_qo_heads;
    const int32_t values = layer.num_qo_heads * layer.head_dim;
#pragma unroll 1
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < values; i += block_threads()) {
      batch.out[first_row * layer.head_dim + i] = from_float<Storage>(0.0f);
      if (i < layer.num_qo_heads && batch.lse != nullptr) batch.lse[first_row + i] = -INFINITY;
    }
  }
}

/// The pieces of a block, one after the other, in shared memory.
struct attend_tasks {
  attend_line line;
  uint32_t passes;
  uint32_t unit;  ///< what is left of the block's stretch: [unit, end)
  uint32_t end;
  bool all_equal;      ///< all lengths; then there is no prefix, and one piece at most
  bool some;           ///< whether there is a piece at hand
  attend_piece piece;  ///< the piece at hand
  sequence_counts count;

  /// Where all items are equally long, `teams_for_each` teams work on each (item, head), which is
  /// known before any length is. So the block's own counts are on their way together with those
  /// that must be equal to them, start(sequence, item, head) may begin with what needs no length,
  /// and nothing is left to search. False if lengths differ or do not suit. Whole block; its first
  /// warp plans, since the same instructions in every warp would only take turns.
  template <class Policies, class Storage, class Start>
  __device__ bool begin_equal(const device_layer<Policies, Storage>& layer,
                              const attend_batch<Storage>& batch, const attend_division& division,
                              Start&& start) {
    if (division.teams_for_each == 0) return false;
    const auto own = equal_part::of_block(division, static_cast<uint32_t>(batch.num_items),
                                          static_cast<uint32_t>(layer.num_kv_heads));
    const int32_t sequence = batch.sequences[own.item];
    const bool planned = thread_of_block() < 32;
    int32_t other = thread_of_block();
    const auto sequence_of = [&](int32_t item) {
      return item < batch.num_items ? batch.sequences[item] : sequence;
    };
    // Two latencies for all of up to 64 items: sequences are asked for, then counts.
    int32_t others[2] = {sequence, sequence};
    if (planned) {
      others[0] = sequence_of(other);
      others[1] = sequence_of(other + 32);
    }
    if (own.some) start(sequence, static_cast<int32_t>(own.item), static_cast<int32_t>(own.head));
    bool equal = true;
    if (planned) {
      int32_t units[2] = {load_units(layer, others[0]), load_units(layer, others[1])};
      const sequence_counts own_count = load_counts(layer, sequence);
      const int32_t own_units = units_of(layer, own_count);
      equal = static_cast<uint32_t>(own_units) >= division.teams_for_each;
#pragma unroll 1
      for (;;) {
        equal = equal && units[0] == own_units && units[1] == own_units;
        other += 64;
        if (other - other % 32 >= batch.num_items) break;
        units[0] = load_units(layer, sequence_of(other));
        units[1] = load_units(layer, sequence_of(other + 32));
      }
      if (other % 32 == 0) {
        all_equal = true;
        some = own.some;
        if (some) piece = own.piece(division, static_cast<uint32_t>(own_units));
        piece.sequence = sequence;
        count = own_count;
      }
    }
    return __syncthreads_and(equal) != 0;
  }
  /// Any lengths. The block's first warp.
  template <class Policies, class Storage>
  __device__ void begin(const device_layer<Policies, Storage>& layer,
                        const attend_batch<Storage>& batch, const attend_division& division,
                        uint32_t* prefix) {
    const attend_line planned = plan_line(layer, batch, division.max_teams, prefix);
    if (threadIdx.x % 32 != 0) return;
    passes = division.passes;
    const uint32_t team = blockIdx.x / passes;
    line = planned;
    unit = line.begin_of(team);
    end = team < division.max_teams ? line.begin_of(team + 1) : unit;
    all_equal = false;
  }
  /// The block's first warp.
  template <class Policies, class Storage>
  __device__ void next(const device_layer<Policies, Storage>& layer,
                       const attend_batch<Storage>& batch, const uint32_t* prefix) {
    if (threadIdx.x % 32 != 0) return;
    some = unit < end;
    if (!some) return;
    piece = find_piece(line, prefix, batch.num_items, layer.num_kv_heads, passes, unit, end);
    piece.sequence = batch.sequences[piece.item];
    count = load_counts(layer, piece.sequence);
  }
};

/// Calls work() for every piece of the block, with all its threads. `prefix` [num_items + 1] in
/// shared memory. start(sequence, item, head): see begin_equal; it was called for the piece where
/// `tasks.all_equal`. Where it was called in vain, give_up() comes before the first piece.
template <class Policies, class Storage, class Start, class GiveUp, class Work>
__device__ void for_each_piece(const device_layer<Policies, Storage>& layer,
                               const attend_batch<Storage>& batch, const attend_division& division,
                               attend_tasks& tasks, uint32_t* prefix, Start&& start,
                               GiveUp&& give_up, Work&& work) {
  if (!tasks.begin_equal(layer, batch, division, start)) {
    give_up();
    if (threadIdx.x < 32) tasks.begin(layer, batch, division, prefix);
    __syncthreads();
  }
#pragma unroll 1
  for (;;) {
    if (!tasks.all_equal) {
      if (thread_of_block() < 32) tasks.next(layer, batch, prefix);
      __syncthreads();
    }
    if (!tasks.some) break;
    work();
    if (tasks.all_equal) return;
    __syncthreads();
  }
  if (!tasks.all_equal) write_empty_items(layer, batch, prefix);
}

}  // namespace zipcache::detail

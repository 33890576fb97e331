// How decode attention is divided over a GPU, and how the parts come together again; the arithmetic
// of a tile is elsewhere. All work is a line of units of about equal bytes: the pages of every
// (sequence, KV head), then its 16-bit tiles. A fixed grid cuts that line into equal pieces, so one
// launch serves any batch, ragged or not, and its lengths may change between replays of a captured
// graph. A block that ends inside a (sequence, head) leaves a partial softmax state; the last block
// to arrive there merges all of them in block order, so results are reproducible.
#pragma once

#include <cstdint>

#include <zipcache/attend/softmax_state.hpp>
#include <zipcache/detail/warp.cuh>
#include <zipcache/store/device_layer.cuh>

namespace zipcache {

/// A batch of decode queries in device memory. Item i is the query of one token of sequence
/// `sequences[i]`: its newest token, or an earlier one of the window if `hidden[i]` of the newest
/// tokens are to be hidden from it.
template <class Storage>
struct attend_batch {
  int32_t num_items = 0;
  const int32_t* sequences = nullptr;  ///< [num_items]
  const int32_t* hidden = nullptr;     ///< [num_items], or null for zeros
  const Storage* q = nullptr;          ///< [num_items, num_qo_heads, head_dim]
  Storage* out = nullptr;              ///< [num_items, num_qo_heads, head_dim]
  float* lse = nullptr;                ///< [num_items, num_qo_heads], natural logarithm, or null
};

namespace detail {

inline constexpr int32_t attend_warps = 4;
inline constexpr int32_t attend_threads = attend_warps * 32;
/// 2^x by the special function unit: relative error 2^-22, x of any size, 0 for -inf.
__device__ __forceinline__ float exp2_unit(float x) {
  float result;
  asm volatile("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

/// Items whose prefix sums a block keeps; longer batches are launched in parts.
inline constexpr int32_t attend_max_items = 1024;

/// Partial states between blocks: [blocks, 2, heads, head_dim + 2] floats and one counter for each
/// (item, head, pass).
struct attend_workspace {
  float* partials;
  uint32_t* arrivals;
};

/// 16-bit tiles that a sequence has in use.
template <class Policies, class Storage>
__device__ inline int32_t window_tiles_in_use(const device_layer<Policies, Storage>& layer,
                                              const sequence_counts& count) {
  if (count.window == 0) return 0;
  return count.window_first == 0 ? ceil_div(count.window, tile_tokens) : layer.window_tiles;
}

template <class Policies, class Storage>
__device__ inline int32_t units_of(const device_layer<Policies, Storage>& layer,
                                   const sequence_counts& count) {
  return count.pages + window_tiles_in_use(layer, count) + ceil_div(count.sinks, tile_tokens);
}

/// One stretch of one (item, KV head, pass).
struct attend_piece {
  int32_t item;
  int32_t head;
  int32_t pass;
  int32_t first;  ///< pages and 16-bit tiles [first, last); may be none
  int32_t last;
  bool begins;          ///< with the (item, head, pass)'s first unit
  bool ends;            ///< with its last one
  uint32_t units;       ///< on the line
  uint32_t line_begin;  ///< of the (item, head, pass) on the line
  uint32_t line_last;   ///< its last unit
};

/// Units that an (item, head, pass) has on the line beside its tiles where lengths differ, for what
/// beginning with it takes. Without them the block that gets all the short sequences comes last.
inline constexpr uint32_t begin_units = 2;

/// The line of all units and how blocks share it. The line is cut into equal sections and each of
/// those into `parts` stretches, one for a block; blocks beyond have none. In 32 bits, since long
/// divisions would take a good part of a short launch.
struct attend_line {
  uint32_t total;
  uint32_t section;  ///< units of a section
  uint32_t parts;    ///< blocks of a section
  uint32_t blocks;
  uint32_t beside;  ///< units of an (item, head, pass) that stand for no tile; they come first

  /// Sections are (item, head, pass) where all are equally long and the grid has about a whole
  /// number of blocks for each; then no block works on two of them. Otherwise the line is one.
  __device__ attend_line(uint32_t units, uint32_t slots, bool equal_lengths)
      : total(units), beside(equal_lengths ? 0 : begin_units) {
    const uint32_t grid = gridDim.x;
    section = total;
    parts = least(grid, total);
    blocks = parts;
    if (!equal_lengths || slots == 0 || slots > grid || total == 0) return;
    const uint32_t for_each = least(grid / slots, total / slots);
    if (for_each * slots < grid - grid / 8 && for_each < total / slots) return;
    section = total / slots;
    parts = for_each;
    blocks = for_each * slots;
  }
  __device__ uint32_t begin_of(uint32_t block) const {
    if (block >= blocks) return total;
    const uint32_t part = block % parts;
    return block / parts * section + section / parts * part + least(part, section % parts);
  }
  /// The block that has unit `unit`.
  __device__ uint32_t block_of(uint32_t unit) const {
    const uint32_t in_section = unit % section;
    const uint32_t size = section / parts;
    const uint32_t larger = section % parts;  // so many first parts have one unit more
    const uint32_t part = in_section < larger * (size + 1)
                              ? in_section / (size + 1)
                              : larger + (in_section - larger * (size + 1)) / size;
    return unit / section * parts + part;
  }
};

/// Units of an item on the line, by one lane.
template <class Policies, class Storage>
__device__ uint32_t line_units_of(const device_layer<Policies, Storage>& layer,
                                  const attend_batch<Storage>& batch, int32_t item) {
  if (item >= batch.num_items) return 0;
  return static_cast<uint32_t>(units_of(layer, layer.counts[batch.sequences[item]]));
}

/// Fills prefix[i] = units of items before i, times heads and passes; prefix [num_items + 1] in
/// shared memory.
template <class Policies, class Storage>
__device__ attend_line plan_line(const device_layer<Policies, Storage>& layer,
                                 const attend_batch<Storage>& batch, int32_t copies,
                                 uint32_t* prefix) {
  // Every warp scans, 32 items at a time; all write the same numbers.
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
  const uint32_t first_units = line_units_of(layer, batch, lane);
  bool equal = true;
  {
    const uint32_t expected = __shfl_sync(whole_warp, first_units, 0);
    for (int32_t first = 0; first < batch.num_items; first += 32) {
      const uint32_t units = first == 0 ? first_units : line_units_of(layer, batch, first + lane);
      equal = equal && (first + lane >= batch.num_items || units == expected);
    }
    equal = __all_sync(whole_warp, equal);
  }
  uint32_t sum = 0;
  for (int32_t first = 0; first < batch.num_items; first += 32) {
    const int32_t item = first + lane;
    const uint32_t units = first == 0 ? first_units : line_units_of(layer, batch, item);
    const uint32_t own =
        units == 0 ? 0 : (units + (equal ? 0 : begin_units)) * static_cast<uint32_t>(copies);
    uint32_t inclusive = own;
#pragma unroll
    for (int32_t step = 1; step < 32; step *= 2) {
      const uint32_t below = __shfl_up_sync(whole_warp, inclusive, step);
      if (lane >= step) inclusive += below;
    }
    if (item < batch.num_items) prefix[item] = sum + inclusive - own;
    sum += __shfl_sync(whole_warp, inclusive, 31);
  }
  if (lane == 0) prefix[batch.num_items] = sum;
  __syncthreads();
  return attend_line(sum, static_cast<uint32_t>(batch.num_items * copies), equal);
}

/// The piece that begins at `unit`, cut at the end of its (item, head, pass) and at `end`.
__device__ inline attend_piece find_piece(const attend_line& line, const uint32_t* prefix,
                                          int32_t num_items, int32_t copies, int32_t passes,
                                          uint32_t unit, uint32_t end) {
  int32_t low = 0;
  int32_t high = num_items;  // the last item with prefix <= unit
  while (high - low > 1) {
    const int32_t middle = (low + high) / 2;
    if (prefix[middle] <= unit)
      low = middle;
    else
      high = middle;
  }
  const uint32_t total = (prefix[low + 1] - prefix[low]) / static_cast<uint32_t>(copies);
  const uint32_t offset = unit - prefix[low];
  const uint32_t copy = offset / total;
  const uint32_t first = offset - copy * total;
  const uint32_t last = least(total, first + end - unit);
  attend_piece piece;
  piece.item = low;
  piece.head = static_cast<int32_t>(copy) / passes;
  piece.pass = static_cast<int32_t>(copy) % passes;
  piece.first = static_cast<int32_t>(first - least(first, line.beside));
  piece.last = static_cast<int32_t>(last - least(last, line.beside));
  piece.begins = first == 0;
  piece.ends = last == total;
  piece.units = last - first;
  piece.line_begin = prefix[low] + copy * total;
  piece.line_last = piece.line_begin + total - 1;
  return piece;
}

/// Where the query of an item is kept if it is a probe of the interval that its sequence is
/// filling; -1 otherwise.
template <class Policies, class Storage>
__device__ inline int32_t kept_slot(const device_layer<Policies, Storage>& layer,
                                    const attend_batch<Storage>& batch, int32_t item) {
  if constexpr (!Policies::needs_probes) return -1;
  if (layer.probes.planned == nullptr) return -1;
  const int32_t sequence = batch.sequences[item];
  const sequence_counts count = layer.counts[sequence];
  const int32_t hidden = batch.hidden != nullptr ? batch.hidden[item] : 0;
  const int32_t row = count.window - 1 - hidden - layer.recent;
  if (row < 0 || row >= layer.interval || count.intervals >= layer.probes.max_intervals) return -1;
  const uint32_t* planned = layer.probes.planned_of(sequence, count.intervals);
  if ((planned[row / 32] >> (row % 32) & 1u) == 0) return -1;
  int32_t slot = __popc(planned[row / 32] & ((1u << (row % 32)) - 1u));
  for (int32_t word = 0; word < row / 32; ++word) slot += __popc(planned[word]);
  return slot;
}

/// One head's state in a warp: channels lane + 32 * n of the output, not yet divided by the sum.
template <int32_t HeadDim>
struct head_state {
  static constexpr int32_t rounds = ceil_div(HeadDim, 32);
  float maximum = -INFINITY;
  float sum = 0.0f;
  float values[rounds] = {};

  /// Calls visit(round, channel) for the lane's channels.
  template <class Visit>
  __device__ __forceinline__ static void for_each_channel(Visit&& visit) {
    const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
#pragma unroll
    for (int32_t round = 0; round < rounds; ++round) {
      const int32_t channel = round * 32 + lane;
      if (HeadDim % 32 == 0 || channel < HeadDim) visit(round, channel);
    }
  }
};

/// What becomes of a finished (item, head): output, log-sum-exp, and the query if it is a probe.
/// One warp.
template <int32_t HeadDim, class Policies, class Storage>
__device__ void write_output(const device_layer<Policies, Storage>& layer,
                             const attend_batch<Storage>& batch, int32_t item, int32_t qo_head,
                             const head_state<HeadDim>& state, int32_t kept) {
  const int64_t row = static_cast<int64_t>(item) * layer.num_qo_heads + qo_head;
  const bool some = state.sum > 0.0f;
  const float inverse = some ? 1.0f / state.sum : 0.0f;
  const float lse = some ? (state.maximum + log2f(state.sum)) * ln_2 : -INFINITY;
  Storage* out = batch.out + row * HeadDim;
  state.for_each_channel([&](int32_t round, int32_t channel) {
    out[channel] = from_float<Storage>(state.values[round] * inverse);
  });
  const bool first_lane = threadIdx.x % 32 == 0;
  if (first_lane && batch.lse != nullptr) batch.lse[row] = lse;
  if (kept < 0) return;
  const int32_t sequence = batch.sequences[item];
  const int64_t kept_row =
      (static_cast<int64_t>(sequence) * layer.probes.max_kept + kept) * layer.num_qo_heads +
      qo_head;
  state.for_each_channel([&](int32_t, int32_t channel) {
    layer.probes.q[kept_row * HeadDim + channel] = batch.q[row * HeadDim + channel];
  });
  if (!first_lane) return;
  layer.probes.lse[kept_row] = lse;
  if (qo_head != 0) return;
  const int32_t hidden = batch.hidden != nullptr ? batch.hidden[item] : 0;
  const int32_t interval_row = layer.counts[sequence].window - 1 - hidden - layer.recent;
  atomicOr(layer.probes.recorded_of(sequence) + interval_row / 32, 1u << (interval_row % 32));
}

/// Sequences without a token have no unit, so nobody else writes their output: zeros, and -inf as
/// lse.
template <int32_t HeadDim, class Policies, class Storage>
__device__ void write_empty_items(const device_layer<Policies, Storage>& layer,
                                  const attend_batch<Storage>& batch, const uint32_t* prefix) {
  for (int32_t item = static_cast<int32_t>(blockIdx.x); item < batch.num_items;
       item += static_cast<int32_t>(gridDim.x)) {
    if (prefix[item + 1] > prefix[item]) continue;
    const int64_t first_row = static_cast<int64_t>(item) * layer.num_qo_heads;
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < layer.num_qo_heads * HeadDim;
         i += attend_threads) {
      batch.out[first_row * HeadDim + i] = from_float<Storage>(0.0f);
      if (i < layer.num_qo_heads && batch.lse != nullptr) batch.lse[first_row + i] = -INFINITY;
    }
  }
}

/// A block's share of one (item, head, pass) in shared memory, by warp: states [warps, heads], out
/// [warps, heads, head_dim].
template <int32_t Heads>
struct block_states {
  float maximum[attend_warps][Heads];
  float sum[attend_warps][Heads];
};

/// Merges the warps' states of one head. One warp.
template <int32_t HeadDim, int32_t Heads, class OutOf>
__device__ head_state<HeadDim> merge_warps(const block_states<Heads>& states, const OutOf& out_of,
                                           int32_t head) {
  head_state<HeadDim> merged;
  for (int32_t warp = 0; warp < attend_warps; ++warp) {
    if (states.sum[warp][head] > 0.0f)
      merged.maximum = fmaxf(merged.maximum, states.maximum[warp][head]);
  }
  for (int32_t warp = 0; warp < attend_warps; ++warp) {
    const float sum = states.sum[warp][head];
    if (!(sum > 0.0f)) continue;
    const float factor = exp2_unit(states.maximum[warp][head] - merged.maximum);
    const float* out = out_of(warp) + head * HeadDim;
    merged.sum += factor * sum;
    merged.for_each_channel([&](int32_t round, int32_t channel) {
      merged.values[round] = fmaf(factor, out[channel], merged.values[round]);
    });
  }
  return merged;
}

/// Counts an arrival: what the block wrote before is seen by whoever counts after it.
__device__ inline uint32_t arrive(uint32_t* counter) {
  uint32_t before;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;"
               : "=r"(before)
               : "l"(counter)
               : "memory");
  return before;
}

/// Partial states of one (item, head, pass), each [heads, HeadDim + 2]: maximum, sum, values. A
/// block leaves at most two: the second of its places is for one that continues an earlier block's.
template <int32_t Heads, int32_t HeadDim>
struct partial_states {
  static constexpr int32_t size = Heads * (HeadDim + 2);
  float* partials;

  __device__ float* of(int32_t block, bool continues, int32_t head) const {
    return partials + (static_cast<int64_t>(block) * 2 + (continues ? 1 : 0)) * size +
           head * (HeadDim + 2);
  }
};

/// Merges one head's partial states of blocks [first, last], in block order. One warp: lanes are
/// blocks for the factors and channels for the sums, so that most loads are in flight together.
template <int32_t Heads, int32_t HeadDim>
__device__ head_state<HeadDim> merge_blocks(partial_states<Heads, HeadDim> parts, int32_t first,
                                            int32_t last, int32_t head) {
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
  head_state<HeadDim> merged;
  for (int32_t block = first + lane; block <= last; block += 32) {
    const float* part = parts.of(block, block > first, head);
    merged.maximum = fmaxf(merged.maximum, __ldcg(part + 1) > 0.0f ? __ldcg(part) : -INFINITY);
  }
  for (int32_t step = 1; step < 32; step *= 2)
    merged.maximum = fmaxf(merged.maximum, __shfl_xor_sync(whole_warp, merged.maximum, step));
  for (int32_t base = first; base <= last; base += 32) {
    float factor = 0.0f;
    if (base + lane <= last) {
      const float* part = parts.of(base + lane, base + lane > first, head);
      const float sum = __ldcg(part + 1);
      factor = sum > 0.0f ? exp2_unit(__ldcg(part) - merged.maximum) : 0.0f;
      merged.sum += factor * sum;
    }
    const int32_t count = least(32, last - base + 1);
    const float* values = parts.of(base, true, head) + 2;
#pragma unroll 4
    for (int32_t i = 0; i < count; ++i, values += 2 * parts.size) {
      const float scale = __shfl_sync(whole_warp, factor, i);
      const float* own = base + i > first ? values : values - parts.size;
      merged.for_each_channel([&](int32_t round, int32_t channel) {
        merged.values[round] = fmaf(scale, __ldcg(own + channel), merged.values[round]);
      });
    }
  }
  for (int32_t step = 1; step < 32; step *= 2)
    merged.sum += __shfl_xor_sync(whole_warp, merged.sum, step);
  return merged;
}

/// Hands the block's merged state on: to the output if the block has the whole (item, head, pass),
/// else to the workspace, and if all other parts are there already, merges them in block order. A
/// warp works on a head.
template <int32_t HeadDim, int32_t Heads, class Policies, class Storage, class OutOf>
__device__ void finish_piece(const device_layer<Policies, Storage>& layer,
                             const attend_batch<Storage>& batch, const attend_workspace& workspace,
                             const attend_line& line, const attend_piece& piece,
                             const block_states<Heads>& states, const OutOf& out_of, int32_t passes,
                             uint32_t* arrival) {
  static_assert(Heads <= attend_warps, "zipcache: a warp merges one head");
  const int32_t group = layer.group();
  const int32_t head = static_cast<int32_t>(threadIdx.x) / 32;
  const bool has_head = head < least(Heads, group - piece.pass * Heads);
  const partial_states<Heads, HeadDim> parts{workspace.partials};
  head_state<HeadDim> merged;
  if (has_head) merged = merge_warps<HeadDim>(states, out_of, head);
  if (!piece.begins || !piece.ends) {
    if (has_head) {
      float* part = parts.of(static_cast<int32_t>(blockIdx.x), !piece.begins, head);
      merged.for_each_channel(
          [&](int32_t round, int32_t channel) { part[2 + channel] = merged.values[round]; });
      part[0] = merged.maximum;
      part[1] = merged.sum;
    }
    const auto first_block = static_cast<int32_t>(line.block_of(piece.line_begin));
    const auto last_block = static_cast<int32_t>(line.block_of(piece.line_last));
    uint32_t* const counter =
        workspace.arrivals +
        (static_cast<int64_t>(piece.item) * layer.num_kv_heads + piece.head) * passes + piece.pass;
    __syncthreads();
    if (threadIdx.x == 0) *arrival = arrive(counter);
    __syncthreads();
    if (*arrival != static_cast<uint32_t>(last_block - first_block)) return;
    if (threadIdx.x == 0) *counter = 0;  // ready for the next launch
    if (has_head) merged = merge_blocks(parts, first_block, last_block, head);
  }
  if (has_head) {
    write_output(layer, batch, piece.item, piece.head * group + piece.pass * Heads + head, merged,
                 kept_slot(layer, batch, piece.item));
  }
}

}  // namespace detail
}  // namespace zipcache

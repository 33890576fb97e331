// How decode attention is divided over a GPU. All work is a line of units of about equal bytes: the
// pages of every (sequence, KV head), then its 16-bit tiles. A fixed grid cuts that line into equal
// pieces, so one launch serves any batch, ragged or not, and its lengths may change between replays
// of a captured graph. How the pieces' results come together: attend_merge.cuh.
#pragma once

#include <cstdint>

#include <zipcache/core/launch.cuh>
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
/// Items whose prefix sums a block keeps; longer batches are launched in parts.
inline constexpr int32_t attend_max_items = 1024;

/// 16-bit tiles that a sequence has in use.
template <class Policies, class Storage>
__device__ inline int32_t window_tiles_in_use(const device_layer<Policies, Storage>& layer,
                                              const sequence_counts& count) {
  if (count.window == 0) return 0;
  return count.window_first == 0 ? ceil_div(count.window, tile_tokens) : layer.window_tiles;
}

/// What takes time but is no page is counted in pages of 16 KiB; so many units are one.
template <class Policies, class Storage>
__device__ inline int32_t units_of_16_kib(const device_layer<Policies, Storage>& layer) {
  return layer.page_bytes > 12 << 10 ? 1 : 2;
}

/// Of a sequence's units, the first that is a 16-bit tile. They wait for another form of the
/// queries and are taken by all warps together, so the first four cost what four pages of 16 KiB
/// do: what is missing to that lies before them as units without work.
template <class Policies, class Storage>
__device__ inline int32_t first_row_unit(const device_layer<Policies, Storage>& layer,
                                         const sequence_counts& count) {
  const int32_t tiles = window_tiles_in_use(layer, count) + ceil_div(count.sinks, tile_tokens);
  return count.pages + (tiles > 0 ? most(0, attend_warps * units_of_16_kib(layer) - tiles) : 0);
}

/// Pages of a sequence, and its 16-bit tiles.
template <class Policies, class Storage>
__device__ inline int32_t units_of(const device_layer<Policies, Storage>& layer,
                                   const sequence_counts& count) {
  return first_row_unit(layer, count) + window_tiles_in_use(layer, count) +
         ceil_div(count.sinks, tile_tokens);
}

/// One stretch of one (item, KV head), for the pass of the block.
struct attend_piece {
  int32_t item;
  int32_t sequence;  ///< of the item
  int32_t head;
  int32_t first;  ///< units [first, last) of the sequence; may be none
  int32_t last;
  uint32_t first_team;  ///< the (item, head) is the work of teams [first_team, last_team]
  uint32_t last_team;
  bool begins;  ///< with the (item, head)'s first unit

  __device__ bool is_whole() const { return first_team == last_team; }
};

/// Units that an (item, head) has on the line beside its tiles where lengths differ, for what
/// beginning with it takes. Without them the block that gets all the short sequences comes last.
/// (19 sequences of 100 to 131072 tokens on an H200: 119 us with two of 16 KiB, 107 with four, 109
/// with eight.)
template <class Policies, class Storage>
__device__ inline uint32_t begin_units(const device_layer<Policies, Storage>& layer) {
  return 4 * static_cast<uint32_t>(units_of_16_kib(layer));
}

/// The line of all units and how teams share it; a team is a block for each pass over the query
/// heads. Its blocks read the same tiles at about the same time, so that L2 may have them.
/// The line is cut into equal sections and each of those into `parts` stretches, one for a team;
/// teams beyond have none. In 32 bits, since long divisions would take a good part of a short
/// launch.
struct attend_line {
  uint32_t total;
  uint32_t section;  ///< units of a section
  uint32_t parts;    ///< teams of a section
  uint32_t teams;
  uint32_t beside;  ///< units of an (item, head) that stand for no tile; they come first

  /// @param beside  0 where all lengths are equal
  /// Sections are (item, head) where all are equally long and there is about a whole number of
  /// teams for each; then no team works on two of them. Otherwise the line is one.
  __device__ static attend_line make(uint32_t units, uint32_t slots, uint32_t max_teams,
                                     uint32_t beside) {
    attend_line line{units, units, least(max_teams, units), least(max_teams, units), beside};
    if (beside != 0 || slots == 0 || slots > max_teams || units == 0) return line;
    const uint32_t section = units / slots;
    const uint32_t for_each = least(max_teams / slots, section);
    if (for_each * slots < max_teams - max_teams / 8 && for_each < section) return line;
    line.section = section;
    line.parts = for_each;
    line.teams = for_each * slots;
    return line;
  }
  __device__ uint32_t begin_of(uint32_t team) const {
    if (team >= teams) return total;
    const uint32_t part = team % parts;
    return team / parts * section + section / parts * part + least(part, section % parts);
  }
  /// The team that has unit `unit`.
  __device__ uint32_t team_of(uint32_t unit) const {
    const uint32_t in_section = unit % section;
    const uint32_t size = section / parts;
    const uint32_t larger = section % parts;  // so many first parts have one unit more
    const uint32_t part = in_section < larger * (size + 1)
                              ? in_section / (size + 1)
                              : larger + (in_section - larger * (size + 1)) / size;
    return unit / section * parts + part;
  }
};

/// The counts of an item's sequence.
template <class Policies, class Storage>
__device__ __forceinline__ const sequence_counts& counts_of(
    const device_layer<Policies, Storage>& layer, const attend_batch<Storage>& batch,
    int32_t item) {
  return layer.counts[batch.sequences[item]];
}

/// Units of an item, by one lane.
template <class Policies, class Storage>
__device__ uint32_t units_of_item(const device_layer<Policies, Storage>& layer,
                                  const attend_batch<Storage>& batch, int32_t item) {
  if (item >= batch.num_items) return 0;
  return static_cast<uint32_t>(units_of(layer, counts_of(layer, batch, item)));
}

/// Fills prefix[i] = units of items before i, times heads; prefix [num_items + 1] in shared memory.
/// One warp.
template <class Policies, class Storage>
__device__ attend_line plan_line(const device_layer<Policies, Storage>& layer,
                                 const attend_batch<Storage>& batch, uint32_t max_teams,
                                 uint32_t* prefix) {
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
  const uint32_t expected = units_of_item(layer, batch, 0);
  const uint32_t first_units = units_of_item(layer, batch, lane);
  bool equal = true;
  for (int32_t first = 0; first < batch.num_items; first += 32) {
    const uint32_t units = first == 0 ? first_units : units_of_item(layer, batch, first + lane);
    equal = equal && (first + lane >= batch.num_items || units == expected);
  }
  equal = __all_sync(whole_warp, equal);
  const auto heads = static_cast<uint32_t>(layer.num_kv_heads);
  const uint32_t beside = equal ? 0 : begin_units(layer);
  uint32_t sum = 0;
  for (int32_t first = 0; first < batch.num_items; first += 32) {
    const int32_t item = first + lane;
    const uint32_t units = first == 0 ? first_units : units_of_item(layer, batch, item);
    const uint32_t own = units == 0 ? 0 : (units + beside) * heads;
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
  __syncwarp();
  return attend_line::make(sum, static_cast<uint32_t>(batch.num_items) * heads, max_teams, beside);
}

/// The piece of units [unit, end) or what of it lies in the first (item, head) there; `unit` goes
/// on to its end.
__device__ inline attend_piece find_piece(const attend_line& line, const uint32_t* prefix,
                                          int32_t num_items, int32_t num_kv_heads, uint32_t& unit,
                                          uint32_t end) {
  int32_t low = 0;
  int32_t high = num_items;  // the last item with prefix <= unit
  while (high - low > 1) {
    const int32_t middle = (low + high) / 2;
    if (prefix[middle] <= unit)
      low = middle;
    else
      high = middle;
  }
  const uint32_t total = (prefix[low + 1] - prefix[low]) / static_cast<uint32_t>(num_kv_heads);
  const uint32_t offset = unit - prefix[low];
  const uint32_t head = offset / total;
  const uint32_t first = offset - head * total;
  const uint32_t last = least(total, first + end - unit);
  const uint32_t line_begin = unit - first;
  attend_piece piece;
  piece.item = low;
  piece.head = static_cast<int32_t>(head);
  piece.first = static_cast<int32_t>(first - least(first, line.beside));
  piece.last = static_cast<int32_t>(last - least(last, line.beside));
  piece.first_team = line.team_of(line_begin);
  piece.last_team = line.team_of(line_begin + total - 1);
  piece.begins = first == 0;
  unit += last - first;
  return piece;
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
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < values; i += attend_threads) {
      batch.out[first_row * layer.head_dim + i] = from_float<Storage>(0.0f);
      if (i < layer.num_qo_heads && batch.lse != nullptr) batch.lse[first_row + i] = -INFINITY;
    }
  }
}

/// What the host knows of how a launch divides its work: nothing of lengths, which are on the
/// device only.
struct attend_division {
  uint32_t passes = 1;  ///< over the query heads of a KV head
  uint32_t max_teams = 0;
  uint32_t teams_for_each = 0;  ///< of every (item, head) where all items are equally long; 0: the
                                ///< line of units is cut without regard to where they begin

  /// @param slots  (items, heads)
  /// Up to one team in eight may be left without work where that keeps (items, heads) apart.
  static attend_division make(int32_t slots, int32_t blocks, int32_t passes) {
    const int32_t max_teams = blocks / passes;
    const int32_t for_each = max_teams / slots;
    const bool suits = for_each * slots >= max_teams - max_teams / 8;
    return {static_cast<uint32_t>(passes), static_cast<uint32_t>(max_teams),
            suits ? static_cast<uint32_t>(for_each) : 0u};
  }
};

/// The pieces of a block, one after the other, in shared memory.
struct attend_tasks {
  attend_line line;
  uint32_t unit;  ///< what is left of the block's stretch: [unit, end)
  uint32_t end;
  bool all_equal;      ///< all lengths; then there is no prefix
  bool some;           ///< whether there is a piece at hand
  attend_piece piece;  ///< the piece at hand
  sequence_counts count;

  /// Where all items are equally long, `teams_for_each` teams work on each (item, head), which is
  /// known before any length is. So the block's own counts are on their way together with those
  /// that must be equal to them, `start(sequence, item, head)` may begin with what needs no length,
  /// and nothing is left to search. False if lengths differ or do not suit. Whole block.
  template <class Policies, class Storage, class Start>
  __device__ bool begin_equal(const device_layer<Policies, Storage>& layer,
                              const attend_batch<Storage>& batch, const attend_division& division,
                              Start&& start) {
    const uint32_t for_each = division.teams_for_each;
    if (for_each == 0) return false;
    const auto heads = static_cast<uint32_t>(layer.num_kv_heads);
    const uint32_t team = blockIdx.x / division.passes;
    const uint32_t slot = team / for_each;
    const bool works = slot < static_cast<uint32_t>(batch.num_items) * heads;
    const uint32_t item = works ? slot / heads : 0;
    const uint32_t head = works ? slot - item * heads : 0;
    // Two latencies for all: both sequences are asked for, then the counts of both.
    auto other = static_cast<int32_t>(threadIdx.x);
    const int32_t sequence = batch.sequences[item];
    int32_t other_sequence = other < batch.num_items ? batch.sequences[other] : -1;
    if (works) start(sequence, static_cast<int32_t>(item), static_cast<int32_t>(head));
    const sequence_counts own = layer.counts[sequence];
    int32_t other_units = other_sequence >= 0 ? units_of(layer, layer.counts[other_sequence]) : -1;
    const int32_t units = units_of(layer, own);
    bool equal = static_cast<uint32_t>(units) >= for_each;
#pragma unroll 1
    while (other_sequence >= 0) {
      equal = equal && other_units == units;
      other += attend_threads;
      other_sequence = other < batch.num_items ? batch.sequences[other] : -1;
      if (other_sequence >= 0) other_units = units_of(layer, layer.counts[other_sequence]);
    }
    if (threadIdx.x == 0) {
      const uint32_t part = team - slot * for_each;
      const uint32_t size = static_cast<uint32_t>(units) / for_each;
      const uint32_t larger = static_cast<uint32_t>(units) - size * for_each;
      const uint32_t first = size * part + least(part, larger);
      unit = end = 0;
      all_equal = true;
      some = works;
      piece.item = static_cast<int32_t>(item);
      piece.sequence = sequence;
      piece.head = static_cast<int32_t>(head);
      piece.first = static_cast<int32_t>(first);
      piece.last = static_cast<int32_t>(first + size + (part < larger ? 1 : 0));
      piece.first_team = slot * for_each;
      piece.last_team = piece.first_team + for_each - 1;
      piece.begins = part == 0;
      count = own;
    }
    return __syncthreads_and(equal) != 0;
  }
  /// Any lengths. The block's first warp, since the same instructions in every warp would only take
  /// turns.
  template <class Policies, class Storage>
  __device__ void begin(const device_layer<Policies, Storage>& layer,
                        const attend_batch<Storage>& batch, const attend_division& division,
                        uint32_t* prefix) {
    const uint32_t team = blockIdx.x / division.passes;
    const attend_line planned = plan_line(layer, batch, division.max_teams, prefix);
    if (threadIdx.x % 32 != 0) return;
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
    piece = find_piece(line, prefix, batch.num_items, layer.num_kv_heads, unit, end);
    piece.sequence = batch.sequences[piece.item];
    count = layer.counts[piece.sequence];
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

}  // namespace detail
}  // namespace zipcache

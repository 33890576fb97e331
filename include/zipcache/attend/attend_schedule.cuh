// How decode attention is divided over a GPU. All work is a line of units of about equal bytes: the
// pages of every (sequence, KV head), then its 16-bit tiles. A fixed grid cuts that line into equal
// pieces, so one launch serves any batch, ragged or not, and its lengths may change between replays
// of a captured graph. What a block gets of it: attend_tasks.cuh. How results come together:
// attend_merge.cuh.
#pragma once

#include <cstdint>

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

/// Warps of a block: four, or eight where the kernel can have them and a launch has work for them.
inline constexpr int32_t least_attend_warps = 4;
inline constexpr int32_t most_attend_warps = 8;
__device__ __forceinline__ int32_t block_threads() { return static_cast<int32_t>(blockDim.x); }
__device__ __forceinline__ int32_t block_warps() { return block_threads() / 32; }
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

/// Pages of 16 KiB that take as long as a block's first 16-bit tiles.
__device__ __forceinline__ int32_t row_pages() {
  return block_warps() == most_attend_warps ? 12 : 4;
}

/// Of a sequence's units, the first that is a 16-bit tile. They wait for another form of the
/// queries and are taken by all warps together, so that the first few cost what some pages of
/// 16 KiB do, as measured: what is missing to that lies before them as units without work.
template <class Policies, class Storage>
__device__ inline int32_t first_row_unit(const device_layer<Policies, Storage>& layer,
                                         const sequence_counts& count) {
  const int32_t tiles = window_tiles_in_use(layer, count) + ceil_div(count.sinks, tile_tokens);
  return count.pages + (tiles > 0 ? most(0, row_pages() * units_of_16_kib(layer) - tiles) : 0);
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
  uint32_t team;        ///< whose piece it is
  uint32_t first_team;  ///< the (item, head) is the work of teams [first_team, last_team]
  uint32_t last_team;
  bool begins;  ///< with the (item, head)'s first unit

  __device__ bool is_whole() const { return first_team == last_team; }
};

/// Units that an (item, head) has on the line beside its tiles where lengths differ, for what
/// beginning with it takes. Without them the block that gets all the short sequences comes last.
template <class Policies, class Storage>
__device__ inline uint32_t begin_units(const device_layer<Policies, Storage>& layer) {
  return static_cast<uint32_t>(block_warps() * units_of_16_kib(layer));
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

  /// What all heads of an item of `units` units take of the line.
  __device__ static uint32_t on_line(uint32_t units, uint32_t beside, int32_t num_kv_heads) {
    return units == 0 ? 0 : (units + beside) * static_cast<uint32_t>(num_kv_heads);
  }

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

/// The piece of units [unit, end) or what of it lies in the first (item, head) there; `unit` goes
/// on to its end.
__device__ inline attend_piece find_piece(const attend_line& line, const uint32_t* prefix,
                                          int32_t num_items, int32_t num_kv_heads, uint32_t passes,
                                          uint32_t& unit, uint32_t end) {
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
  piece.team = blockIdx.x / passes;
  piece.first_team = line.team_of(line_begin);
  piece.last_team = line.team_of(line_begin + total - 1);
  piece.begins = first == 0;
  unit += last - first;
  return piece;
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
    const auto suits = [&](int32_t for_each) {
      return for_each * slots >= max_teams - max_teams / 8;
    };
    int32_t for_each = max_teams / slots;
    // States of 32 teams come together with one latency (attend_merge.cuh).
    const int32_t in_rounds = for_each - for_each % 32;
    if (suits(in_rounds)) for_each = in_rounds;
    return {static_cast<uint32_t>(passes), static_cast<uint32_t>(max_teams),
            suits(for_each) ? static_cast<uint32_t>(for_each) : 0u};
  }
};

/// The part of an (item, head) that a block works on where all items are equally long.
struct equal_part {
  bool some;  ///< whether the block has work at all
  uint32_t item;
  uint32_t head;
  uint32_t part;
  uint32_t slot;  ///< item, head

  __device__ static equal_part of_block(const attend_division& division, uint32_t num_items,
                                        uint32_t num_kv_heads) {
    const uint32_t team = blockIdx.x / division.passes;
    equal_part result;
    result.slot = team / division.teams_for_each;
    result.part = team - result.slot * division.teams_for_each;
    result.some = result.slot < num_items * num_kv_heads;
    result.item = result.some ? result.slot / num_kv_heads : 0;
    result.head = result.some ? result.slot - result.item * num_kv_heads : 0;
    return result;
  }
  /// @param units  of every item, at least one for each part
  __device__ attend_piece piece(const attend_division& division, uint32_t units) const {
    const uint32_t parts = division.teams_for_each;
    const uint32_t size = units / parts;
    const uint32_t larger = units - size * parts;  // so many first parts have one more
    const uint32_t first = size * part + least(part, larger);
    attend_piece piece;
    piece.item = static_cast<int32_t>(item);
    piece.head = static_cast<int32_t>(head);
    piece.first = static_cast<int32_t>(first);
    piece.last = static_cast<int32_t>(first + size + (part < larger ? 1 : 0));
    piece.first_team = slot * parts;
    piece.team = piece.first_team + part;
    piece.last_team = piece.first_team + parts - 1;
    piece.begins = part == 0;
    return piece;
  }
};

}  // namespace detail
}  // namespace zipcache

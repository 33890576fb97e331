// The decode attention kernel for policies whose codes tensor cores can take as they are
// (tensor_core_tile.cuh).
#pragma once

#include <cstdint>

#include <zipcache/attend/attend_schedule.cuh>
#include <zipcache/attend/tensor_core_tile.cuh>
#include <zipcache/store/segment.hpp>

namespace zipcache::detail {

/// Query heads that a pass serves: with two digits each they fill the eight columns of the
/// instruction.
inline constexpr int32_t pass_heads = 4;

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

/// Numbers of the kernel, with what they were measured to be best at.
struct attend_tuning {
  int32_t blocks_per_multiprocessor = 2;
  int32_t stages = 2;  ///< tiles in a warp's ring
};

template <class Policies, int32_t HeadDim>
struct attend_shared {
  using salient = tile_record<Policies, token_class::salient>;
  using regular = tile_record<Policies, token_class::regular>;
  template <class Tile>
  static constexpr int64_t ring_tile_bytes() {
    return has_pairs(Tile::key_bits) ? Tile::bytes(HeadDim)
                                     : 0;  // 16-bit tiles are read from global memory
  }
  static constexpr int32_t stages = attend_tuning{}.stages;
  static constexpr int64_t slot_bytes =
      most(ring_tile_bytes<salient>(), ring_tile_bytes<regular>());
  static constexpr int32_t class_words = query_words<HeadDim> * 32;

  struct query_set {
    uint32_t digits[num_token_classes][class_words];
    float scale[num_token_classes][pass_heads];
    float bias[num_token_classes][pass_heads];
  };

  alignas(16) float q[pass_heads][HeadDim];               // in base-2 units
  alignas(16) uint32_t row_query[HeadDim / 16 * 2 * 32];  // operands for 16-bit tiles
  alignas(16) query_set sets[attend_warps];
  alignas(16) float out[attend_warps][pass_heads][HeadDim];
  float row_scale[pass_heads];
  block_states<pass_heads> states;
  int32_t counts[attend_warps][stages];
  uint32_t arrival;
  alignas(128) std::byte ring[attend_warps][stages][slot_bytes > 0 ? slot_bytes : 16];
};

__device__ __forceinline__ void copy_16_bytes_async(void* shared, const void* global) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(global) : "memory");
}
__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int32_t Pending>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

/// Softmax of a lane's query head over what its warp has seen of the current segment, and the
/// lane's part of the output in operand layout.
template <int32_t HeadDim>
struct lane_state {
  float maximum = -INFINITY;
  float sum = 0.0f;          // of the lane's own tokens; all segments
  float zero = 0.0f;         // sum of p * min over the lane's own tokens; this segment
  float value_scale = 0.0f;  // power of two that keeps p * step within halves; this segment
  float sums[HeadDim / 16][4];
  float stored_maximum =
      -INFINITY;  // maximum against which shared memory holds earlier segments' output

  static constexpr float initial_value_scale = 1.2676506e30f;  // 2^100: the first tile lowers it
  /// A maximum may be exceeded by this much (base 2) before everything is rescaled.
  static constexpr float margin = 8.0f;
  static constexpr float largest_scaled_step = 16.0f;

  __device__ void begin_segment() {
    zero = 0.0f;
    value_scale = initial_value_scale;
#pragma unroll
    for (int32_t block = 0; block < HeadDim / 16; ++block) {
#pragma unroll
      for (int32_t i = 0; i < 4; ++i) sums[block][i] = 0.0f;
    }
  }
  __device__ void scale_sums(float factor) {
#pragma unroll
    for (int32_t block = 0; block < HeadDim / 16; ++block) {
#pragma unroll
      for (int32_t i = 0; i < 4; ++i) sums[block][i] *= factor;
    }
  }
  /// Raises the maximum to the tile's and lowers the value scale to the tile's steps. All lanes of
  /// the warp.
  __device__ __forceinline__ void adapt(float tile_maximum, float tile_step) {
    for (int32_t lanes = 4; lanes < 32; lanes *= 2)
      tile_maximum = fmaxf(tile_maximum, __shfl_xor_sync(full_warp, tile_maximum, lanes));
    for (int32_t lanes = 4; lanes < 32; lanes *= 2)
      tile_step = fmaxf(tile_step, __shfl_xor_sync(full_warp, tile_step, lanes));
    float factor = 1.0f;
    if (tile_maximum > maximum) {
      factor = exp2_unit(maximum - tile_maximum);
      maximum = tile_maximum;
      sum *= factor;
      zero *= factor;
    }
    if (tile_step * value_scale > largest_scaled_step) {
      const float lowered = float_of((254u - (bits_of(tile_step) >> 23))
                                     << 23);  // 2^-exponent: the step becomes 1..2
      factor *= lowered / value_scale;
      value_scale = lowered;
    }
    scale_sums(factor);
  }
};

/// One warp's view of a piece of work.
template <class Policies, class Storage, int32_t HeadDim>
class piece_worker {
 public:
  using shared_memory = attend_shared<Policies, HeadDim>;
  using query_set = typename shared_memory::query_set;
  static constexpr int32_t blocks = HeadDim / 16;

  __device__ piece_worker(const device_layer<Policies, Storage>& layer,
                          const attend_batch<Storage>& batch, shared_memory& shared,
                          const attend_piece& piece, const sequence_counts& count)
      : layer_(layer),
        shared_(shared),
        piece_(piece),
        count_(count),
        sequence_(batch.sequences[piece.item]),
        visible_window_(count.window - (batch.hidden != nullptr ? batch.hidden[piece.item] : 0)),
        warp_(static_cast<int32_t>(threadIdx.x) / 32),
        lane_(static_cast<int32_t>(threadIdx.x) % 32) {}

  /// Everything of the piece; at the end the warp's state is in shared memory.
  __device__ void run(const attend_batch<Storage>& batch) {
    load_queries(batch);
    float* const own_out = &shared_.out[warp_][0][0];
    for (int32_t i = lane_; i < pass_heads * HeadDim; i += 32) own_out[i] = 0.0f;
    state_.begin_segment();
    __syncthreads();

    const int32_t pages_end = least(piece_.last, count_.pages);
    const int32_t prompt_end = least(pages_end, count_.prompt_pages);
    if (piece_.first < prompt_end) {
      prepare_shared_set(0);
      __syncthreads();
      sweep_together(piece_.first, prompt_end, shared_.sets[0]);
      __syncthreads();  // the set may be overwritten from here on
    }
    // Later segments are a few pages each; a warp takes whole ones, and then 16-bit tiles.
    int32_t unit = most(piece_.first, prompt_end);
    int32_t turn = 0;
    while (unit < pages_end) {
      const int32_t end = least(pages_end, layer_.segment_end_page(count_, unit));
      if (turn++ % attend_warps == warp_) sweep_alone(unit, end);
      unit = end;
    }
    for (unit = most(piece_.first, count_.pages); unit < piece_.last; ++unit) {
      if (turn++ % attend_warps == warp_) attend_row_tile(unit - count_.pages);
    }
    publish();
  }

 private:
  /// The queries of the pass as floats, and as (high, low) halves for 16-bit tiles. Whole block.
  __device__ void load_queries(const attend_batch<Storage>& batch) {
    const int32_t group = layer_.group();
    const int32_t heads = least(pass_heads, group - piece_.pass * pass_heads);
    const Storage* rows = batch.q + (static_cast<int64_t>(piece_.item) * layer_.num_qo_heads +
                                     piece_.head * group + piece_.pass * pass_heads) *
                                        HeadDim;
    const float factor = layer_.sm_scale * log2_e;
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < pass_heads * HeadDim;
         i += attend_threads) {
      shared_.q[i / HeadDim][i % HeadDim] = i < heads * HeadDim ? to_float(rows[i]) * factor : 0.0f;
    }
    __syncthreads();
    if (warp_ < pass_heads) {
      float largest = 0.0f;
      for (int32_t channel = lane_; channel < HeadDim; channel += 32)
        largest = fmaxf(largest, fabsf(shared_.q[warp_][channel]));
      for (int32_t lanes = 1; lanes < 32; lanes *= 2)
        largest = fmaxf(largest, __shfl_xor_sync(full_warp, largest, lanes));
      // A power of two, so that scaling loses nothing.
      if (lane_ == 0)
        shared_.row_scale[warp_] = largest > 0.0f ? float_of(bits_of(largest) & 0x7f800000u) : 1.0f;
    }
    __syncthreads();
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < blocks * 2 * 32; i += attend_threads) {
      // Operand B: word (block, r) of lane 4 * g + t holds channels 16 * block + 8 * r + 2 * t +
      // {0, 1} of column g, which is the high (g even) or low (g odd) part of head g / 2.
      const int32_t lane = i % 32;
      const int32_t column = lane / 4;
      const int32_t channel = i / 64 * 16 + i / 32 % 2 * 8 + lane % 4 * 2;
      const float inverse = 1.0f / shared_.row_scale[column / 2];
      uint32_t word = 0;
      for (int32_t e = 0; e < 2; ++e) {
        const uint32_t parts =
            split_in_halves<Storage>(shared_.q[column / 2][channel + e] * inverse);
        word |= (column % 2 == 0 ? parts & 0xffffu : parts >> 16) << (16 * e);
      }
      shared_.row_query[i] = word;
    }
  }

  /// Folds one class's key parameters into one head's query: digits, scale and bias of the set. One
  /// warp.
  template <token_class Class>
  __device__ void prepare_head(query_set& set, const std::byte* record, int32_t head) {
    using granularity = typename Policies::key_quantizer_policy::granularity;
    constexpr int32_t index = Class == token_class::salient ? 0 : 1;
    constexpr int32_t rounds = (HeadDim / 4 + 31) / 32;
    float folded[rounds][4];
    float largest = 0.0f;
    float bias = 0.0f;
#pragma unroll
    for (int32_t round = 0; round < rounds; ++round) {
      const int32_t quad = round * 32 + lane_;
#pragma unroll
      for (int32_t j = 0; j < 4; ++j) {
        const int32_t channel = quad * 4 + j;
        folded[round][j] = 0.0f;
        if (channel >= HeadDim) continue;
        const float q = shared_.q[head][channel];
        if constexpr (granularity::axis == parameter_axis::channel) {
          const auto pair = reinterpret_cast<const affine_params<Storage>*>(
              record +
              segment_record<Policies>::template key_pairs_offset<Class>(HeadDim))[channel];
          folded[round][j] = q * to_float(pair.step);
          bias += q * to_float(pair.min);
        } else {
          folded[round][j] = granularity::has_channel_magnitudes
                                 ? q * to_float(reinterpret_cast<const Storage*>(
                                           record + segment_record<Policies>::key_magnitudes_offset(
                                                        HeadDim))[channel])
                                 : q;
          bias += folded[round][j];
        }
        largest = fmaxf(largest, fabsf(folded[round][j]));
      }
    }
    for (int32_t lanes = 1; lanes < 32; lanes *= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(full_warp, largest, lanes));
      bias += __shfl_xor_sync(full_warp, bias, lanes);
    }
    constexpr float digits_range = 32512.0f;  // 127 * 256: both digits stay within signed bytes
    const float inverse = largest > 0.0f ? digits_range / largest : 0.0f;
#pragma unroll
    for (int32_t round = 0; round < rounds; ++round) {
      const int32_t quad = round * 32 + lane_;
      if (quad * 4 >= HeadDim) continue;
      uint32_t high = 0;
      uint32_t low = 0;
#pragma unroll
      for (int32_t j = 0; j < 4; ++j) {
        const int32_t fixed = __float2int_rn(folded[round][j] * inverse);
        const int32_t digit = (fixed + 128) >> 8;
        high |= (static_cast<uint32_t>(digit) & 0xffu) << (8 * j);
        low |= (static_cast<uint32_t>(fixed - digit * 256) & 0xffu) << (8 * j);
      }
      // Operand B: word `block` of lane 4 * g + t holds channels 16 * block + 4 * t .. + 3 of
      // column g.
      uint32_t* const target = set.digits[index] + quad / 4 * 32 + quad % 4;
      target[(2 * head) * 4] = high;
      target[(2 * head + 1) * 4] = low;
    }
    if (blocks % 2 == 1 && lane_ < 8)
      set.digits[index][blocks * 32 + (2 * head + lane_ / 4) * 4 + lane_ % 4] = 0;
    if (lane_ == 0) {
      set.scale[index][head] = largest / digits_range;
      set.bias[index][head] = bias;
    }
  }

  /// Whether classes have codes, so that queries must be folded.
  template <token_class Class>
  static constexpr bool has_codes = has_pairs(Policies::template key_bits<Class>);

  template <token_class Class>
  __device__ void prepare_heads(query_set& set, const std::byte* record, int32_t first,
                                int32_t step) {
    if constexpr (has_codes<Class>) {
      for (int32_t head = first; head < pass_heads; head += step)
        prepare_head<Class>(set, record, head);
    }
  }

  /// A set for the whole block: warps 0..3 fold the salient class, 4..7 the regular one.
  __device__ void prepare_shared_set(int32_t segment) {
    const std::byte* record = layer_.record_of(sequence_, segment, piece_.head);
    if (warp_ < pass_heads) {
      prepare_heads<token_class::salient>(shared_.sets[0], record, warp_, pass_heads);
    } else {
      prepare_heads<token_class::regular>(shared_.sets[0], record, warp_ - pass_heads, pass_heads);
    }
  }

  /// Pages [first, last) of the prompt's segment, shared by the block's warps.
  __device__ void sweep_together(int32_t first, int32_t last, const query_set& set) {
    sweep<token_class::salient>(first, last, set, warp_, attend_warps);
    switch_class();
    sweep<token_class::regular>(first, last, set, attend_warps - 1 - warp_, attend_warps);
    end_segment(layer_.record_of(sequence_, 0, piece_.head));
  }

  /// Pages [first, last) of one later segment, by one warp.
  __device__ void sweep_alone(int32_t first, int32_t last) {
    query_set& set = shared_.sets[warp_];
    const std::byte* record =
        layer_.record_of(sequence_, layer_.segment_of_page(count_, first), piece_.head);
    __syncwarp();
    prepare_heads<token_class::salient>(set, record, 0, 1);
    prepare_heads<token_class::regular>(set, record, 0, 1);
    __syncwarp();
    sweep<token_class::salient>(first, last, set, 0, 1);
    switch_class();
    sweep<token_class::regular>(first, last, set, 0, 1);
    end_segment(record);
  }

  /// Where a class's tiles lie in a page, and how many tokens they have.
  template <token_class Class>
  __device__ int32_t tokens_of(page_entry entry) const {
    return Class == token_class::salient ? entry.salient_tokens : entry.regular_tokens;
  }
  template <token_class Class>
  __device__ const std::byte* tiles_of(page_entry entry) const {
    const int64_t skipped =
        Class == token_class::salient
            ? 0
            : entry.salient_tiles() * segment_shape<Policies>::salient_tile_bytes(HeadDim);
    return layer_.page(entry.page) + skipped;
  }

  /// A position in the line of one class's tiles over pages.
  template <token_class Class>
  struct tile_cursor {
    const page_entry* table;
    int32_t page;
    int32_t last_page;
    int32_t tile;
    page_entry entry;
    page_entry next;  // loaded one page ahead

    __device__ void start(const page_entry* entries, int32_t first, int32_t last,
                          int32_t tile_in_page) {
      table = entries;
      page = first;
      last_page = last;
      tile = tile_in_page;
      entry = page < last_page ? table[page] : page_entry{};
      next = page + 1 < last_page ? table[page + 1] : page_entry{};
    }
    __device__ void next_page() {
      ++page;
      tile = 0;
      entry = next;
      next = page + 1 < last_page ? table[page + 1] : page_entry{};
    }
  };

  /// Tiles of one class in pages [first, last), the `share`-th of `shares` parts of them.
  template <token_class Class>
  __device__ void sweep(int32_t first, int32_t last, const query_set& set, int32_t share,
                        int32_t shares) {
    if constexpr (!Policies::template evicts<Class>) {
      const page_entry* table = layer_.table_of(sequence_, piece_.head);
      const int32_t pages = last - first;
      tile_cursor<Class> cursor;
      int32_t tiles = INT32_MAX;
      if (shares == 1) {
        cursor.start(table, first, last, 0);
      } else if (pages > 32) {
        const int32_t begin = static_cast<int32_t>(static_cast<int64_t>(pages) * share / shares);
        const int32_t end =
            static_cast<int32_t>(static_cast<int64_t>(pages) * (share + 1) / shares);
        cursor.start(table, first + begin, first + end, 0);
      } else {
        // Few pages: parts are cut between tiles. Lane j counts the tiles of page j.
        const int32_t own =
            lane_ < pages ? ceil_div(tokens_of<Class>(table[first + lane_]), tile_tokens) : 0;
        int32_t inclusive = own;
        for (int32_t step = 1; step < 32; step *= 2) {
          const int32_t below = __shfl_up_sync(full_warp, inclusive, step);
          if (lane_ >= step) inclusive += below;
        }
        const int32_t total = __shfl_sync(full_warp, inclusive, 31);
        const int32_t begin = total * share / shares;
        tiles = total * (share + 1) / shares - begin;
        if (tiles == 0) return;
        const int32_t page = __popc(__ballot_sync(full_warp, inclusive <= begin));
        cursor.start(table, first + page, last,
                     begin - __shfl_sync(full_warp, inclusive - own, page));
      }
      if constexpr (has_codes<Class>) {
        sweep_codes<Class>(cursor, tiles, set);
      } else {
        sweep_rows<Class>(cursor, tiles);
      }
    }
  }

  /// Streams tiles through the warp's ring.
  template <token_class Class>
  __device__ void sweep_codes(tile_cursor<Class>& cursor, int32_t tiles, const query_set& set) {
    using tile = tile_record<Policies, Class>;
    constexpr int32_t index = Class == token_class::salient ? 0 : 1;
    constexpr int32_t tile_bytes = static_cast<int32_t>(tile::bytes(HeadDim));
    constexpr int32_t stages = shared_memory::stages;
    uint32_t q[query_words<HeadDim>];
#pragma unroll
    for (int32_t i = 0; i < query_words<HeadDim>; ++i) q[i] = set.digits[index][i * 32 + lane_];
    const float scale = set.scale[index][lane_ % 4];
    const float bias = set.bias[index][lane_ % 4];

    int32_t issued = 0;
    // Starts copying the next tile; false when there is none.
    const auto issue = [&](int32_t slot) {
      while (cursor.page < cursor.last_page &&
             cursor.tile * tile_tokens >= tokens_of<Class>(cursor.entry))
        cursor.next_page();
      const bool some = issued < tiles && cursor.page < cursor.last_page;
      if (some) {
        const std::byte* source =
            tiles_of<Class>(cursor.entry) + static_cast<int64_t>(cursor.tile) * tile_bytes;
        std::byte* target = shared_.ring[warp_][slot];
#pragma unroll
        for (int32_t offset = 0; offset < tile_bytes; offset += 512) {
          if (offset + 512 <= tile_bytes || offset + lane_ * 16 < tile_bytes)
            copy_16_bytes_async(target + offset + lane_ * 16, source + offset + lane_ * 16);
        }
        if (lane_ == 0)
          shared_.counts[warp_][slot] =
              least(tile_tokens, tokens_of<Class>(cursor.entry) - cursor.tile * tile_tokens);
        ++cursor.tile;
        ++issued;
      }
      commit_copies();
      return some;
    };
    __syncwarp();
    int32_t pending = 0;
#pragma unroll
    for (int32_t i = 0; i < stages - 1; ++i) pending += issue(i) ? 1 : 0;
    for (int32_t slot = 0; pending > 0; --pending) {
      wait_for_copies<stages - 2>();
      __syncwarp();
      pending += issue(slot == 0 ? stages - 1 : slot - 1) ? 1 : 0;
      attend_codes<Class>(shared_.ring[warp_][slot], shared_.counts[warp_][slot], q, scale, bias);
      slot = slot + 1 == stages ? 0 : slot + 1;
    }
    wait_for_copies<0>();
    __syncwarp();
  }

  /// One tile of codes in shared memory.
  template <token_class Class>
  __device__ __forceinline__ void attend_codes(const std::byte* tile_bytes, int32_t count,
                                               const uint32_t (&q)[query_words<HeadDim>],
                                               float scale, float bias) {
    using tile = tile_record<Policies, Class>;
    constexpr bool keys_by_token =
        Policies::key_quantizer_policy::granularity::axis == parameter_axis::token;
    const int32_t row = lane_ / 4;
    int32_t sums[2][4];
    score_codes<tile::key_bits, HeadDim>(tile_bytes, lane_, q, sums);
    float scores[4];
    const uint4 value_pairs =
        reinterpret_cast<const uint4*>(tile_bytes + tile::value_pairs_offset(HeadDim))[row];
    uint4 key_pairs{};
    if constexpr (keys_by_token)
      key_pairs = reinterpret_cast<const uint4*>(tile_bytes + tile::key_pairs_offset(HeadDim))[row];
    float steps[4];
    float mins[4];
#pragma unroll
    for (int32_t octet = 0; octet < 4; ++octet) {
      const int32_t dot = sums[octet / 2][octet % 2 * 2] * 256 + sums[octet / 2][octet % 2 * 2 + 1];
      const float octet_scale = scale * (1.0f / score_factor<tile::key_bits>(octet));
      if constexpr (keys_by_token) {
        const float2 pair = widen_pair(word_of(key_pairs, octet));
        scores[octet] = fmaf(static_cast<float>(dot) * octet_scale, pair.x, pair.y * bias);
      } else {
        scores[octet] = fmaf(static_cast<float>(dot), octet_scale, bias);
      }
      const float2 pair = widen_pair(word_of(value_pairs, octet));
      steps[octet] = pair.x;
      mins[octet] = pair.y;
    }
    if (count < tile_tokens) {
#pragma unroll
      for (int32_t octet = 0; octet < 4; ++octet) {
        if (8 * octet + row < count) continue;
        scores[octet] = -INFINITY;
        steps[octet] = 0.0f;
        mins[octet] = 0.0f;
      }
    }
    const float tile_maximum = fmaxf(fmaxf(scores[0], scores[1]), fmaxf(scores[2], scores[3]));
    const float tile_step = fmaxf(fmaxf(steps[0], steps[1]), fmaxf(steps[2], steps[3]));
    const bool outside = tile_maximum > state_.maximum + lane_state<HeadDim>::margin ||
                         tile_step * state_.value_scale > lane_state<HeadDim>::largest_scaled_step;
    if (__any_sync(full_warp, outside)) state_.adapt(tile_maximum, tile_step);
    uint32_t weights[4];
#pragma unroll
    for (int32_t octet = 0; octet < 4; ++octet) {
      const float p = exp2_unit(scores[octet] - state_.maximum);
      state_.sum += p;
      state_.zero = fmaf(p, mins[octet], state_.zero);
      weights[octet] =
          transpose_8x8(split_in_halves<half>(p * (steps[octet] * state_.value_scale)));
    }
    accumulate_codes<tile::value_bits, HeadDim>(tile_bytes + tile::value_codes_offset(HeadDim),
                                                lane_, weights, state_.sums);
  }

  __device__ static uint32_t word_of(const uint4& words, int32_t index) {
    return index == 0 ? words.x : (index == 1 ? words.y : (index == 2 ? words.z : words.w));
  }
  __device__ static float2 widen_pair(uint32_t pair) {
    return {to_float(Storage{static_cast<uint16_t>(pair & 0xffffu)}),
            to_float(Storage{static_cast<uint16_t>(pair >> 16)})};
  }

  /// Tiles of a class that is kept in 16 bits.
  template <token_class Class>
  __device__ void sweep_rows(tile_cursor<Class>& cursor, int32_t tiles) {
    constexpr int64_t tile_bytes = tile_record<Policies, Class>::bytes(HeadDim);
    for (int32_t done = 0; done < tiles; ++done) {
      while (cursor.page < cursor.last_page &&
             cursor.tile * tile_tokens >= tokens_of<Class>(cursor.entry))
        cursor.next_page();
      if (cursor.page >= cursor.last_page) break;
      const int32_t count = tokens_of<Class>(cursor.entry) - cursor.tile * tile_tokens;
      attend_rows_tile(reinterpret_cast<const Storage*>(tiles_of<Class>(cursor.entry) +
                                                        cursor.tile * tile_bytes),
                       [&](int32_t token) { return token < count; });
      ++cursor.tile;
    }
  }

  /// Tile `index` behind the pages: the window's ring, then the sinks. It is a segment of its own.
  __device__ void attend_row_tile(int32_t index) {
    const int32_t in_window = window_tiles_in_use(layer_, count_);
    const int32_t slots = layer_.window_tiles * tile_tokens;
    if (index < in_window) {
      attend_rows_tile(layer_.window_tile(sequence_, piece_.head, index), [&](int32_t token) {
        int32_t age =
            index * tile_tokens + token - count_.window_first;  // 0 is the window's oldest token
        if (age < 0) age += slots;
        return age < visible_window_;
      });
    } else {
      attend_rows_tile(
          layer_.sink_tile(sequence_, piece_.head, index - in_window),
          [&](int32_t token) { return (index - in_window) * tile_tokens + token < count_.sinks; });
    }
    fold_rows();
  }

  /// One tile of 16-bit keys and values in global memory; is_valid(token) says which of its slots
  /// hold a visible token.
  template <class IsValid>
  __device__ void attend_rows_tile(const Storage* tile, IsValid&& is_valid) {
    const int32_t row = lane_ / 4;
    float sums[2][4];
    score_rows<Storage, HeadDim>(tile, lane_, shared_.row_query, sums);
    const float scale = shared_.row_scale[lane_ % 4];
    float scores[4];
    float tile_maximum = -INFINITY;
#pragma unroll
    for (int32_t octet = 0; octet < 4; ++octet) {
      const float score =
          (sums[octet / 2][octet % 2 * 2] + sums[octet / 2][octet % 2 * 2 + 1]) * scale;
      scores[octet] = is_valid(8 * octet + row) ? score : -INFINITY;
      tile_maximum = fmaxf(tile_maximum, scores[octet]);
    }
    if (__any_sync(full_warp, tile_maximum > state_.maximum + lane_state<HeadDim>::margin))
      state_.adapt(tile_maximum, 0.0f);
    uint32_t weights[4];
#pragma unroll
    for (int32_t octet = 0; octet < 4; ++octet) {
      const float p = scores[octet] > -INFINITY ? exp2_unit(scores[octet] - state_.maximum) : 0.0f;
      state_.sum += p;
      weights[octet] = transpose_8x8(split_in_halves<Storage>(p));
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

  /// From salient to regular tiles of one segment: the place of the fields changes.
  __device__ void switch_class() {
    constexpr int from = Policies::template value_bits<token_class::salient>;
    constexpr int to = Policies::template value_bits<token_class::regular>;
    if constexpr (from == 16 && has_pairs(to)) {
      fold_rows();
    } else if constexpr (has_pairs(from) && has_pairs(to) && from != to) {
#pragma unroll
      for (int32_t block = 0; block < blocks; ++block) {
#pragma unroll
        for (int32_t i = 0; i < 4; ++i)
          state_.sums[block][i] *=
              output_factor<to>(block, i / 2) / output_factor<from>(block, i / 2);
      }
    }
  }

  /// The segment's output goes to shared memory, with what was left out of the inner loop.
  __device__ void end_segment(const std::byte* record) {
    constexpr int salient_bits = Policies::template value_bits<token_class::salient>;
    constexpr int regular_bits = Policies::template value_bits<token_class::regular>;
    // The layout that the sums are in now.
    constexpr int last_bits = has_pairs(regular_bits) ? regular_bits : salient_bits;
    if constexpr (regular_bits == 16 || (salient_bits == 16 && regular_bits == 0)) {
      if constexpr (has_pairs(salient_bits))
        static_assert(!has_pairs(salient_bits),
                      "zipcache: a class of codes comes before a class of 16 bits");
      fold_rows();
    } else {
      using granularity = typename Policies::value_quantizer_policy::granularity;
      const Storage* magnitudes = reinterpret_cast<const Storage*>(
          record + segment_record<Policies>::value_magnitudes_offset(HeadDim));
      const float zero = sum_over_rows(state_.zero);
      const float inverse = 16777216.0f / state_.value_scale;
      fold([&](int32_t block, int32_t octet, float sum) {
        const float value =
            fmaf(sum, inverse * (1.0f / output_factor<last_bits>(block, octet)), zero);
        return granularity::has_channel_magnitudes
                   ? value * to_float(magnitudes[block * 16 + octet * 8 + lane_ / 4])
                   : value;
      });
    }
  }
  __device__ void fold_rows() {
    fold([](int32_t, int32_t, float sum) { return sum; });
  }

  __device__ static float sum_over_rows(float x) {
    for (int32_t lanes = 4; lanes < 32; lanes *= 2) x += __shfl_xor_sync(full_warp, x, lanes);
    return x;
  }

  template <class Value>
  __device__ void fold(Value&& value_of) {
    float* const out = shared_.out[warp_][lane_ % 4];
    const float kept = state_.stored_maximum > -INFINITY
                           ? exp2_unit(state_.stored_maximum - state_.maximum)
                           : 0.0f;
#pragma unroll
    for (int32_t block = 0; block < blocks; ++block) {
#pragma unroll
      for (int32_t octet = 0; octet < 2; ++octet) {
        float& target = out[block * 16 + octet * 8 + lane_ / 4];
        target = target * kept +
                 value_of(block, octet,
                          state_.sums[block][2 * octet] + state_.sums[block][2 * octet + 1]);
      }
    }
    state_.stored_maximum = state_.maximum;
    state_.begin_segment();
  }

  /// The warp's maximum and sum; the output may still stand against an older maximum.
  __device__ void publish() {
    const float sum = sum_over_rows(state_.sum);
    if (lane_ < pass_heads) {
      shared_.states.maximum[warp_][lane_] = state_.maximum;
      shared_.states.sum[warp_][lane_] = sum;
    }
    if (state_.stored_maximum < state_.maximum && state_.stored_maximum > -INFINITY) fold_rows();
    __syncthreads();
  }

  const device_layer<Policies, Storage>& layer_;
  shared_memory& shared_;
  const attend_piece& piece_;
  const sequence_counts& count_;
  int32_t sequence_;
  int32_t visible_window_;
  int32_t warp_;
  int32_t lane_;
  lane_state<HeadDim> state_;
};

/// Decode attention of a batch over all cached tokens.
/// grid: any number of blocks; each has an equal stretch of the units (attend_schedule.cuh)
/// warp: a share of the stretch's tiles, by itself; states meet in shared memory at the end of a
/// (sequence, head) lane: query head lane % 4, tokens and channels lane / 4 + 8 * n memory:
/// attend_shared, and the prefix sums of the batch behind it
template <class Policies, class Storage, int32_t HeadDim>
static __global__ void __launch_bounds__(attend_threads, attend_tuning{}.blocks_per_multiprocessor)
    attend_tensor_core_kernel(device_layer<Policies, Storage> layer, attend_batch<Storage> batch,
                              attend_workspace workspace) {
  extern __shared__ __align__(128) std::byte dynamic_memory[];
  using shared_memory = attend_shared<Policies, HeadDim>;
  shared_memory& shared = *reinterpret_cast<shared_memory*>(dynamic_memory);
  int64_t* const prefix = reinterpret_cast<int64_t*>(dynamic_memory + sizeof(shared_memory));
  const int32_t passes = ceil_div(layer.group(), pass_heads);
  const int32_t copies = layer.num_kv_heads * passes;
  const attend_line line = plan_line(layer, batch, copies, prefix);
  write_empty_items(layer, batch, prefix);
  for (int64_t unit = line.begin; unit < line.end;) {
    const attend_piece piece = find_piece(line, prefix, batch.num_items, copies, passes, unit);
    const sequence_counts count = layer.counts[batch.sequences[piece.item]];
    piece_worker<Policies, Storage, HeadDim> worker(layer, batch, shared, piece, count);
    worker.run(batch);
    finish_piece<pass_heads>(layer, batch, workspace, line, piece, shared.states,
                             &shared.out[0][0][0], passes, &shared.arrival);
    __syncthreads();
    unit += piece.last - piece.first;
  }
}

}  // namespace zipcache::detail

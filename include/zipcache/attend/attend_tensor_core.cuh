// The decode attention kernel for policies whose codes tensor cores can take as they are
// (tensor_core_tile.cuh).
#pragma once

#include <cstdint>

#include <zipcache/attend/attend_schedule.cuh>
#include <zipcache/attend/tensor_core_tile.cuh>
#include <zipcache/attend/tile_stream.cuh>
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

/// Numbers of the kernel for one head dimension.
template <int32_t HeadDim>
struct attend_tuning {
  static constexpr int32_t blocks_per_multiprocessor = HeadDim > 160 ? 2 : 4;  // by registers
  static constexpr int32_t stages = 3;  // tiles in a warp's ring
};
inline constexpr int32_t most_attend_blocks = 4;

/// Queries folded with one segment's key parameters. Words of a lane are grouped by four, so that
/// it reads its operands in 16-byte loads.
template <int32_t HeadDim>
struct query_set {
  static constexpr int32_t quads = (query_words<HeadDim> + 3) / 4;
  uint4 digits[num_token_classes][quads][32];
  uint4 low_digits[num_token_classes][quads][16];  // one lane's words for both columns of a head
  float scale[num_token_classes][pass_heads];
  float bias[num_token_classes][pass_heads];

  __device__ uint32_t& digit_word(int32_t token_class_index, int32_t word, int32_t lane) {
    return reinterpret_cast<uint32_t*>(&digits[token_class_index][word / 4][lane])[word % 4];
  }
  __device__ static int32_t low_lane(int32_t lane) { return lane / 8 * 4 + lane % 4; }
  __device__ uint32_t& low_digit_word(int32_t token_class_index, int32_t word, int32_t lane) {
    return reinterpret_cast<uint32_t*>(
        &low_digits[token_class_index][word / 4][low_lane(lane)])[word % 4];
  }
};

template <class Policies, class Storage, int32_t HeadDim>
struct attend_shared {
  using salient = tile_record<Policies, token_class::salient>;
  using regular = tile_record<Policies, token_class::regular>;
  template <class Tile>
  static constexpr int64_t ring_tile_bytes() {
    // 16-bit tiles are read from global memory.
    return has_pairs(Tile::key_bits) ? Tile::bytes(HeadDim) : 0;
  }
  static constexpr int32_t stages = attend_tuning<HeadDim>::stages;
  static constexpr int64_t slot_bytes =
      most<int64_t>(most(ring_tile_bytes<salient>(), ring_tile_bytes<regular>()), 16);

  /// What a warp keeps once its ring is drained: the output of earlier segments, and the queries
  /// of the segment that it works on alone. It lies over the ring's slots behind the first one.
  struct kept_state {
    float out[pass_heads][HeadDim];
    query_set<HeadDim> set;
  };
  union warp_memory {
    std::byte ring[stages][slot_bytes];
    struct {
      std::byte first_slot[slot_bytes];
      alignas(16) kept_state kept;
    };
    __device__ warp_memory() {}
  };

  alignas(128) warp_memory warps[attend_warps];
  alignas(16) Storage q[pass_heads][HeadDim];
  union {
    query_set<HeadDim> set;                                 // of the prompt's segment, used first
    alignas(16) uint32_t row_query[HeadDim / 16 * 2 * 32];  // operands for 16-bit tiles
  };
  float row_scale[pass_heads];
  block_states<pass_heads> states;
  int32_t counts[attend_warps][stages];
  tile_copies<stages> copies[attend_warps];
  uint32_t arrival;

  __device__ attend_shared() {}
  __device__ const float* out_of(int32_t warp) const { return &warps[warp].kept.out[0][0]; }
};

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
  using shared_memory = attend_shared<Policies, Storage, HeadDim>;
  /// Tiles that the block's warps share, and those of a warp alone.
  using shared_list = tile_list<Policies, Storage, HeadDim, attend_warps>;
  using lone_list = tile_list<Policies, Storage, HeadDim, 1>;
  static constexpr int32_t blocks = HeadDim / 16;
  static constexpr int salient_bits = Policies::template value_bits<token_class::salient>;
  static constexpr int regular_bits = Policies::template value_bits<token_class::regular>;
  static constexpr bool has_row_class = salient_bits == 16 || regular_bits == 16;
  static_assert(!(has_pairs(salient_bits) && regular_bits == 16) &&
                    !(salient_bits == 16 && has_pairs(regular_bits)),
                "zipcache: the tensor core kernel takes codes or 16-bit values, not both");

  __device__ piece_worker(const device_layer<Policies, Storage>& layer,
                          const attend_batch<Storage>& batch, shared_memory& shared,
                          const attend_piece& piece, const sequence_counts& count, uint32_t& phases)
      : layer_(layer),
        shared_(shared),
        piece_(piece),
        count_(count),
        sequence_(batch.sequences[piece.item]),
        visible_window_(count.window - (batch.hidden != nullptr ? batch.hidden[piece.item] : 0)),
        warp_(static_cast<int32_t>(threadIdx.x) / 32),
        lane_(static_cast<int32_t>(threadIdx.x) % 32),
        phases_(phases) {}

  /// Everything of the piece; at the end the warp's state is in shared memory.
  __device__ void run(const attend_batch<Storage>& batch) {
    const int32_t pages_end = least(piece_.last, count_.pages);
    const int32_t prompt_end = least(pages_end, count_.prompt_pages);
    const page_entry* table = layer_.table_of(sequence_, piece_.head);
    state_.begin_segment();
    uint4 fetched[query_rounds];
    fetch_queries(batch, fetched);
    if (piece_.first < prompt_end) {
      // The first tiles are on their way while the queries are prepared, and what preparing them
      // needs is fetched before that.
      prefetch_record(layer_.record_of(sequence_, 0, piece_.head));
      shared_list tiles(layer_, table, piece_.first, prompt_end, warp_);
      if constexpr (!has_row_class) start_ring(tiles);
      keep_queries(fetched);
      __syncthreads();
      if constexpr (has_row_class) {
        prepare_row_queries();
        __syncthreads();
        sweep_rows(tiles);
        fold_rows();
      } else {
        prepare_shared_set();
        __syncthreads();
        sweep_codes<shared_memory::stages>(tiles, shared_.set);
        end_segment(layer_.record_of(sequence_, 0, piece_.head));
        if (piece_.last > count_.pages) {
          __syncthreads();
          prepare_row_queries();
          __syncthreads();
        }
      }
    } else {
      keep_queries(fetched);
      __syncthreads();
      if (has_row_class || piece_.last > count_.pages) prepare_row_queries();
      __syncthreads();
    }
    // Later segments are a few pages each; a warp takes whole ones, and then 16-bit tiles.
    int32_t unit = most(piece_.first, prompt_end);
    int32_t turn = 0;
    while (unit < pages_end) {
      const int32_t end = least(pages_end, layer_.segment_end_page(count_, unit));
      if (turn++ % attend_warps == warp_) sweep_alone(table, unit, end);
      unit = end;
    }
    for (unit = most(piece_.first, count_.pages); unit < piece_.last; ++unit) {
      if (turn++ % attend_warps == warp_) attend_row_tile(unit - count_.pages);
    }
    publish();
  }

 private:
  __device__ void prefetch_record(const std::byte* record) {
    const int32_t offset = static_cast<int32_t>(threadIdx.x) * 128;
    if (offset < segment_record<Policies>::bytes(HeadDim))
      asm volatile("prefetch.global.L1 [%0];" ::"l"(record + offset));
  }

  /// The queries of the pass, eight channels a thread: asked for by `fetch_queries`, so that they
  /// are on their way early, and put into shared memory by `keep_queries`. Whole block.
  static constexpr int32_t query_rounds = ceil_div(pass_heads * HeadDim / 8, attend_threads);
  __device__ void fetch_queries(const attend_batch<Storage>& batch,
                                uint4 (&fetched)[query_rounds]) {
    const int32_t group = layer_.group();
    const int32_t heads = least(pass_heads, group - piece_.pass * pass_heads);
    const Storage* rows = batch.q + (static_cast<int64_t>(piece_.item) * layer_.num_qo_heads +
                                     piece_.head * group + piece_.pass * pass_heads) *
                                        HeadDim;
#pragma unroll
    for (int32_t round = 0; round < query_rounds; ++round) {
      const int32_t i = round * attend_threads + static_cast<int32_t>(threadIdx.x);
      fetched[round] = i * 8 < heads * HeadDim ? reinterpret_cast<const uint4*>(rows)[i] : uint4{};
    }
  }
  __device__ void keep_queries(const uint4 (&fetched)[query_rounds]) {
#pragma unroll
    for (int32_t round = 0; round < query_rounds; ++round) {
      const int32_t i = round * attend_threads + static_cast<int32_t>(threadIdx.x);
      if (i * 8 < pass_heads * HeadDim)
        reinterpret_cast<uint4*>(&shared_.q[0][0])[i] = fetched[round];
    }
  }
  /// In base-2 units.
  __device__ float query(int32_t head, int32_t channel) const {
    return to_float(shared_.q[head][channel]) * (layer_.sm_scale * log2_e);
  }

  /// The queries as (high, low) halves, for 16-bit tiles. Whole block.
  __device__ void prepare_row_queries() {
    if (warp_ < pass_heads) {
      float largest = 0.0f;
      for (int32_t channel = lane_; channel < HeadDim; channel += 32)
        largest = fmaxf(largest, fabsf(query(warp_, channel)));
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
        const uint32_t parts = split_in_halves<Storage>(query(column / 2, channel + e) * inverse);
        word |= (column % 2 == 0 ? parts & 0xffffu : parts >> 16) << (16 * e);
      }
      shared_.row_query[i] = word;
    }
  }

  /// Folds one class's key parameters into one head's query: digits, scale and bias of the set.
  /// One warp.
  template <token_class Class>
  __device__ void prepare_head(query_set<HeadDim>& set, const std::byte* record, int32_t head) {
    using granularity = typename Policies::key_quantizer_policy::granularity;
    using records = segment_record<Policies>;
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
        const float q = query(head, channel);
        if constexpr (granularity::axis == parameter_axis::channel) {
          const auto pair = reinterpret_cast<const affine_params<Storage>*>(
              record + records::template key_pairs_offset<Class>(HeadDim))[channel];
          folded[round][j] = q * to_float(pair.step);
          bias += q * to_float(pair.min);
        } else {
          folded[round][j] = q;
          if constexpr (granularity::has_channel_magnitudes) {
            folded[round][j] *= to_float(reinterpret_cast<const Storage*>(
                record + records::key_magnitudes_offset(HeadDim))[channel]);
          }
          bias += folded[round][j];
        }
        largest = fmaxf(largest, fabsf(folded[round][j]));
      }
    }
#pragma unroll
    for (int32_t lanes = 1; lanes < 32; lanes *= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(full_warp, largest, lanes));
      bias += __shfl_xor_sync(full_warp, bias, lanes);
    }
    constexpr float digits_range = 8323072.0f;  // 127 * 2^16: all digits stay signed bytes
    const float inverse = largest > 0.0f ? digits_range / largest : 0.0f;
#pragma unroll
    for (int32_t round = 0; round < rounds; ++round) {
      const int32_t quad = round * 32 + lane_;
      if (quad * 4 >= HeadDim) continue;
      uint32_t high = 0;
      uint32_t middle = 0;
      uint32_t low = 0;
#pragma unroll
      for (int32_t j = 0; j < 4; ++j) {
        const int32_t fixed = __float2int_rn(folded[round][j] * inverse);
        const int32_t upper = (fixed + 128) >> 8;
        const int32_t digit = (upper + 128) >> 8;
        high |= (static_cast<uint32_t>(digit) & 0xffu) << (8 * j);
        middle |= (static_cast<uint32_t>(upper - digit * 256) & 0xffu) << (8 * j);
        low |= (static_cast<uint32_t>(fixed - upper * 256) & 0xffu) << (8 * j);
      }
      // Operand B: word `block` of lane 4 * g + t holds channels 16 * block + 4 * t .. + 3 of
      // column g.
      const int32_t column = 2 * head * 4 + quad % 4;
      set.digit_word(index, quad / 4, column) = high;
      set.digit_word(index, quad / 4, column + 4) = middle;
      set.low_digit_word(index, quad / 4, column) = low;
    }
    // The partner of a last block without one.
    if (blocks % 2 == 1 && lane_ < 8) {
      set.digit_word(index, blocks, 2 * head * 4 + lane_) = 0;
      if (lane_ < 4) set.low_digit_word(index, blocks, 2 * head * 4 + lane_) = 0;
    }
    if (lane_ == 0) {
      set.scale[index][head] = largest / digits_range * 256.0f;
      set.bias[index][head] = bias;
    }
  }

  template <token_class Class>
  __device__ void prepare_heads(query_set<HeadDim>& set, const std::byte* record, int32_t first,
                                int32_t step) {
    if constexpr (has_pairs(Policies::template key_bits<Class>)) {
      for (int32_t head = first; head < pass_heads; head += step)
        prepare_head<Class>(set, record, head);
    }
  }

  /// The prompt's set, for the whole block: a warp folds one head at a time.
  __device__ void prepare_shared_set() {
    const std::byte* record = layer_.record_of(sequence_, 0, piece_.head);
    prepare_heads<token_class::salient>(shared_.set, record, warp_, attend_warps);
    prepare_heads<token_class::regular>(shared_.set, record, warp_, attend_warps);
  }

  /// Pages [first, last) of one later segment, by one warp.
  __device__ void sweep_alone(const page_entry* table, int32_t first, int32_t last) {
    lone_list tiles(layer_, table, first, last, 0);
    if constexpr (has_row_class) {
      sweep_rows(tiles);
      fold_rows();
    } else {
      // What is kept lies over the ring's other slots, so here the ring has one.
      query_set<HeadDim>& set = shared_.warps[warp_].kept.set;
      const std::byte* record =
          layer_.record_of(sequence_, layer_.segment_of_page(count_, first), piece_.head);
      __syncwarp();
      prepare_heads<token_class::salient>(set, record, 0, 1);
      prepare_heads<token_class::regular>(set, record, 0, 1);
      __syncwarp();
      sweep_codes<1>(tiles, set);
      end_segment(record);
    }
  }

  /// Starts copying the next tile into a slot.
  template <class List>
  __device__ __forceinline__ bool issue(List& tiles, int32_t slot) {
    const bool some = !tiles.empty();
    if (some) {
      // The lane that knows the tile starts its copy, where one lane can.
      const bool salient = tiles.is_salient();
      const int32_t bytes =
          salient ? copied_bytes<token_class::salient>() : copied_bytes<token_class::regular>();
      std::byte* target = shared_.warps[warp_].ring[slot];
      auto& copies = shared_.copies[warp_];
      const bool knows = tiles.is_lanes_own();
      if constexpr (tile_copies<shared_memory::stages>::by_one_lane()) {
        if (knows) copies.start(slot, target, layer_.pages + tiles.own_offset(), bytes);
      } else {
        copies.start(slot, target, layer_.pages + tiles.offset(), bytes);
      }
      if (knows) {
        shared_.counts[warp_][slot] =
            least(tiles.own_tokens(), tile_tokens) | (salient ? 0 : regular_mark);
      }
      tiles.advance();
    }
    tile_copies<shared_memory::stages>::commit();
    return some;
  }
  static constexpr int32_t regular_mark = 256;

  template <token_class Class>
  __device__ static constexpr int32_t copied_bytes() {
    return has_pairs(Policies::template key_bits<Class>)
               ? static_cast<int32_t>(tile_record<Policies, Class>::bytes(HeadDim))
               : 0;
  }

  template <class List>
  __device__ __forceinline__ void start_ring(List& tiles) {
    tile_copies<shared_memory::stages>::order_after_stores();
    pending_ = 0;
#pragma unroll
    for (int32_t slot = 0; slot < shared_memory::stages - 1; ++slot)
      pending_ += issue(tiles, slot) ? 1 : 0;
  }

  /// Streams tiles through the warp's ring of `Stages` slots; with more than one, it was started.
  template <int32_t Stages, class List>
  __device__ __forceinline__ void sweep_codes(List& tiles, const query_set<HeadDim>& set) {
    bool salient = salient_bits > 0;  // the class whose field places the sums carry
    if (Stages == 1) pending_ = issue(tiles, 0) ? 1 : 0;
    for (int32_t slot = 0; pending_ > 0; --pending_) {
      shared_.copies[warp_].template wait<(Stages > 1 ? Stages - 2 : 0)>(slot,
                                                                         phases_ >> slot & 1u);
      phases_ ^= 1u << slot;
      if (Stages > 1) pending_ += issue(tiles, slot == 0 ? Stages - 1 : slot - 1) ? 1 : 0;
      const int32_t mark = shared_.counts[warp_][slot];
      const int32_t count = mark & (regular_mark - 1);
      const std::byte* tile = shared_.warps[warp_].ring[slot];
      if (mark < regular_mark) {
        if constexpr (has_pairs(salient_bits)) {
          if (!salient) change_places<regular_bits, salient_bits>();
          attend_codes<token_class::salient>(tile, count, set);
        }
        salient = true;
      } else {
        if constexpr (has_pairs(regular_bits)) {
          if (salient) change_places<salient_bits, regular_bits>();
          attend_codes<token_class::regular>(tile, count, set);
        }
        salient = false;
      }
      slot = slot + 1 == Stages ? 0 : slot + 1;
      if (Stages == 1) {
        __syncwarp();
        pending_ += issue(tiles, 0) ? 1 : 0;
      }
    }
    __syncwarp();
    if (salient) change_places<salient_bits, regular_bits>();
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
          if (factor != unit) state_.sums[block][i] *= factor;
        }
      }
    }
  }

  /// One tile of codes in shared memory.
  template <token_class Class>
  __device__ __forceinline__ void attend_codes(const std::byte* tile_bytes, int32_t count,
                                               const query_set<HeadDim>& set) {
    using tile = tile_record<Policies, Class>;
    constexpr bool keys_by_token =
        Policies::key_quantizer_policy::granularity::axis == parameter_axis::token;
    constexpr int32_t index = Class == token_class::salient ? 0 : 1;
    const int32_t row = lane_ / 4;
    int32_t sums[2][4];
    int32_t low[2][4];
    {
      uint32_t q[query_set<HeadDim>::quads * 4];
      uint32_t q_low[query_set<HeadDim>::quads * 4];
#pragma unroll
      for (int32_t i = 0; i < query_set<HeadDim>::quads; ++i) {
        split_words(set.digits[index][i][lane_], q + 4 * i);
        split_words(set.low_digits[index][i][query_set<HeadDim>::low_lane(lane_)], q_low + 4 * i);
      }
      score_codes<tile::key_bits, HeadDim>(tile_bytes, lane_, q, q_low, sums, low);
    }
    const float scale = set.scale[index][lane_ % 4];
    const float bias = set.bias[index][lane_ % 4];
    float scores[4];
    const uint4 value_pairs =
        reinterpret_cast<const uint4*>(tile_bytes + tile::value_pairs_offset(HeadDim))[row];
    uint4 key_pairs{};
    if constexpr (keys_by_token) {
      key_pairs = reinterpret_cast<const uint4*>(tile_bytes + tile::key_pairs_offset(HeadDim))[row];
    }
    float steps[4];
    float mins[4];
#pragma unroll
    for (int32_t octet = 0; octet < 4; ++octet) {
      const int32_t upper =
          sums[octet / 2][octet % 2 * 2] * 256 + sums[octet / 2][octet % 2 * 2 + 1];
      const float dot = fmaf(static_cast<float>(low[octet / 2][octet % 2 * 2]), 1.0f / 256.0f,
                             static_cast<float>(upper));
      const float octet_scale = scale * (1.0f / score_factor<tile::key_bits>(octet));
      if constexpr (keys_by_token) {
        const float2 pair = widen_pair(word_of(key_pairs, octet));
        scores[octet] = fmaf(dot * octet_scale, pair.x, pair.y * bias);
      } else {
        scores[octet] = fmaf(dot, octet_scale, bias);
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

  __device__ __forceinline__ static void split_words(const uint4& four, uint32_t* words) {
    words[0] = four.x;
    words[1] = four.y;
    words[2] = four.z;
    words[3] = four.w;
  }
  __device__ static uint32_t word_of(const uint4& words, int32_t index) {
    return index == 0 ? words.x : (index == 1 ? words.y : (index == 2 ? words.z : words.w));
  }
  __device__ static float2 widen_pair(uint32_t pair) {
    return {to_float(Storage{static_cast<uint16_t>(pair & 0xffffu)}),
            to_float(Storage{static_cast<uint16_t>(pair >> 16)})};
  }

  /// Tiles of a class that is kept in 16 bits.
  template <class List>
  __device__ void sweep_rows(List& tiles) {
    for (; !tiles.empty(); tiles.advance()) {
      const int32_t count = tiles.tokens();
      attend_rows_tile(reinterpret_cast<const Storage*>(layer_.pages + tiles.offset()),
                       [&](int32_t token) { return token < count; });
    }
  }

  /// Tile `index` behind the pages: the window's ring, then the sinks. It is a segment of its own.
  __device__ void attend_row_tile(int32_t index) {
    const int32_t in_window = window_tiles_in_use(layer_, count_);
    const int32_t slots = layer_.window_tiles * tile_tokens;
    if (index < in_window) {
      attend_rows_tile(layer_.window_tile(sequence_, piece_.head, index), [&](int32_t token) {
        // 0 is the window's oldest token.
        int32_t age = index * tile_tokens + token - count_.window_first;
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

  /// The segment's output goes to what the warp keeps, with what was left out of the inner loop.
  /// The ring must be drained.
  __device__ void end_segment(const std::byte* record) {
    using granularity = typename Policies::value_quantizer_policy::granularity;
    constexpr int last_bits = has_pairs(regular_bits) ? regular_bits : salient_bits;
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
  __device__ void fold_rows() {
    fold([](int32_t, int32_t, float sum) { return sum; });
  }

  __device__ static float sum_over_rows(float x) {
    for (int32_t lanes = 4; lanes < 32; lanes *= 2) x += __shfl_xor_sync(full_warp, x, lanes);
    return x;
  }

  template <class Value>
  __device__ void fold(Value&& value_of) {
    float* const out = shared_.warps[warp_].kept.out[lane_ % 4];
    const bool first = !(state_.stored_maximum > -INFINITY);
    const float kept = first ? 0.0f : exp2_unit(state_.stored_maximum - state_.maximum);
#pragma unroll
    for (int32_t block = 0; block < blocks; ++block) {
#pragma unroll
      for (int32_t octet = 0; octet < 2; ++octet) {
        float& target = out[block * 16 + octet * 8 + lane_ / 4];
        const float value = value_of(
            block, octet, state_.sums[block][2 * octet] + state_.sums[block][2 * octet + 1]);
        target = first ? value : fmaf(target, kept, value);
      }
    }
    state_.stored_maximum = state_.maximum;
    state_.begin_segment();
  }

  /// The warp's maximum and sum; the output stands against the maximum.
  __device__ void publish() {
    const float sum = sum_over_rows(state_.sum);
    if (lane_ < pass_heads) {
      shared_.states.maximum[warp_][lane_] = state_.maximum;
      shared_.states.sum[warp_][lane_] = sum;
    }
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
  int32_t pending_ = 0;
  uint32_t& phases_;  // of the ring's slots, across pieces
  lane_state<HeadDim> state_;
};

/// Decode attention of a batch over all cached tokens.
/// grid: any number of blocks; each has an equal stretch of the units (attend_schedule.cuh)
/// warp: a share of the stretch's tiles, by itself; states meet in shared memory at the end of a
/// (sequence, head) lane: query head lane % 4, tokens and channels lane / 4 + 8 * n memory:
/// attend_shared, and the prefix sums of the batch behind it
template <class Policies, class Storage, int32_t HeadDim>
static __global__ void __launch_bounds__(attend_threads,
                                         attend_tuning<HeadDim>::blocks_per_multiprocessor)
    attend_tensor_core_kernel(device_layer<Policies, Storage> layer, attend_batch<Storage> batch,
                              attend_workspace workspace) {
  extern __shared__ __align__(128) std::byte dynamic_memory[];
  using shared_memory = attend_shared<Policies, Storage, HeadDim>;
  shared_memory& shared = *reinterpret_cast<shared_memory*>(dynamic_memory);
  uint32_t* const prefix = reinterpret_cast<uint32_t*>(dynamic_memory + sizeof(shared_memory));
  const int32_t passes = ceil_div(layer.group(), pass_heads);
  const int32_t copies = layer.num_kv_heads * passes;
  const attend_line line = plan_line(layer, batch, copies, prefix);
  write_empty_items<HeadDim>(layer, batch, prefix);
  shared.copies[threadIdx.x / 32].init();
  uint32_t phases = 0;
  const uint32_t end = line.begin_of(blockIdx.x + 1);
  for (uint32_t unit = line.begin_of(blockIdx.x); unit < end;) {
    const attend_piece piece = find_piece(prefix, batch.num_items, copies, passes, unit, end);
    const sequence_counts count = layer.counts[batch.sequences[piece.item]];
    piece_worker<Policies, Storage, HeadDim> worker(layer, batch, shared, piece, count, phases);
    worker.run(batch);
    finish_piece<HeadDim>(
        layer, batch, workspace, line, piece, shared.states,
        [&](int32_t warp) { return shared.out_of(warp); }, passes, &shared.arrival);
    __syncthreads();
    unit += static_cast<uint32_t>(piece.last - piece.first);
  }
}

}  // namespace zipcache::detail

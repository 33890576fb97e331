// The decode attention kernel for every other policy: any group layout, any bits. It reads codes
// one by one through the layout's own functions, so it is right for whatever a policy says and
// slower than the tensor core kernel by a large factor; attend_kernel_name() tells which one a
// policy gets. It is also the reference for the tensor core kernel.
#pragma once

#include <cstdint>

#include <zipcache/attend/attend_merge.cuh>
#include <zipcache/attend/attend_schedule.cuh>
#include <zipcache/attend/attend_tasks.cuh>
#include <zipcache/attend/attend_tensor_core.cuh>
#include <zipcache/core/launch.cuh>
#include <zipcache/store/token_pair.hpp>

namespace zipcache::detail {

/// Query heads that a pass of this kernel serves.
inline constexpr int32_t general_heads = 4;

template <int32_t HeadDim>
struct general_shared {
  float q[general_heads][HeadDim];
  float weights[least_attend_warps][general_heads][tile_tokens];
  float out[least_attend_warps][general_heads][HeadDim];
  block_states<general_heads> states;
  attend_tasks tasks;
  uint32_t arrival;
};

/// Reads one side of a tile as values, one at a time.
template <template <int> class Layout, class Granularity, int Bits, class Storage>
struct tile_reader {
  const uint32_t* codes;
  const affine_params<Storage>* tile_pairs;
  const affine_params<Storage>* segment_pairs;
  const Storage* magnitudes;

  __device__ float operator()(int32_t head_dim, int32_t token, int32_t channel) const {
    const uint32_t code = code_tile<Layout, Bits>::load(codes, head_dim, token, channel);
    if constexpr (Bits == 16) {
      return to_float(Storage{static_cast<uint16_t>(code)});
    } else {
      affine_params<Storage> pair;
      if constexpr (Granularity::axis == parameter_axis::token) {
        pair = load_token_pair<Granularity, Bits>(
            tile_pairs, token, channel / channels_per_group<Granularity>(head_dim));
      } else {
        pair = (Granularity::home == parameter_home::tile ? tile_pairs : segment_pairs)[channel];
      }
      const float x = fmaf(static_cast<float>(code), to_float(pair.step), to_float(pair.min));
      return Granularity::has_channel_magnitudes ? x * to_float(magnitudes[channel]) : x;
    }
  }
};

/// One warp's running softmax: lanes are tokens for scores and channels for output.
template <class Policies, class Storage, int32_t HeadDim>
class general_worker {
 public:
  static constexpr int32_t rounds = ceil_div(HeadDim, 32);

  __device__ general_worker(const device_layer<Policies, Storage>& layer,
                            general_shared<HeadDim>& shared, const attend_piece& piece,
                            const sequence_counts& count, int32_t sequence, int32_t visible_window)
      : layer_(layer),
        shared_(shared),
        piece_(piece),
        count_(count),
        sequence_(sequence),
        visible_window_(visible_window),
        warp_(static_cast<int32_t>(threadIdx.x) / 32),
        lane_(static_cast<int32_t>(threadIdx.x) % 32) {}

  __device__ void run() {
    for (int32_t unit = piece_.first + warp_; unit < piece_.last; unit += block_warps()) {
      if (unit < count_.pages) {
        const page_entry entry = layer_.table_of(sequence_, piece_.head)[unit];
        const std::byte* record =
            layer_.record_of(sequence_, layer_.segment_of_page(count_, unit), piece_.head);
        attend_class<token_class::salient>(layer_.template tile<token_class::salient>(entry, 0),
                                           entry.salient_tokens, record);
        attend_class<token_class::regular>(layer_.template tile<token_class::regular>(entry, 0),
                                           entry.regular_tokens, record);
      } else if (unit >= first_row_unit(layer_, count_)) {
        attend_rows(unit - first_row_unit(layer_, count_));
      }
    }
    publish();
  }

 private:
  template <token_class Class>
  __device__ void attend_class(tile_place tile, int32_t tokens, const std::byte* record) {
    if constexpr (!Policies::template evicts<Class>) {
      using format = tile_record<Policies, Class>;
      using records = segment_record<Policies>;
      using pair = affine_params<Storage>;
      const tile_size size{format::code_bytes(HeadDim), format::pair_bytes(HeadDim)};
      for (; tokens > 0; tokens -= tile_tokens, tile = tile + size) {
        const tile_reader<key_layout, typename format::key_granularity, format::key_bits, Storage>
            keys{
                reinterpret_cast<const uint32_t*>(tile.codes),
                reinterpret_cast<const pair*>(tile.pairs),
                reinterpret_cast<const pair*>(record +
                                              records::template key_pairs_offset<Class>(HeadDim)),
                reinterpret_cast<const Storage*>(record + records::key_magnitudes_offset(HeadDim))};
        const tile_reader<value_layout, typename format::value_granularity, format::value_bits,
                          Storage>
            values{
                reinterpret_cast<const uint32_t*>(tile.codes + format::value_codes_offset(HeadDim)),
                reinterpret_cast<const pair*>(tile.pairs + format::value_pairs_offset(HeadDim)),
                reinterpret_cast<const pair*>(record +
                                              records::template value_pairs_offset<Class>(HeadDim)),
                reinterpret_cast<const Storage*>(record +
                                                 records::value_magnitudes_offset(HeadDim))};
        const int32_t count = least(tokens, tile_tokens);
        attend_tile(keys, values, [count](int32_t token) { return token < count; });
      }
    }
  }

  /// Tile `index` behind the pages: the window's ring, then the sinks.
  __device__ void attend_rows(int32_t index) {
    const int32_t in_window = window_tiles_in_use(layer_, count_);
    const bool is_window = index < in_window;
    const Storage* tile = is_window ? layer_.window_tile(sequence_, piece_.head, index)
                                    : layer_.sink_tile(sequence_, piece_.head, index - in_window);
    const uint32_t* words = reinterpret_cast<const uint32_t*>(tile);
    const tile_reader<key_layout, tokenwise, 16, Storage> keys{words, nullptr, nullptr, nullptr};
    const tile_reader<value_layout, tokenwise, 16, Storage> values{
        words + tile_tokens * HeadDim / 2, nullptr, nullptr, nullptr};
    const int32_t slots = layer_.window_tiles * tile_tokens;
    attend_tile(keys, values, [&](int32_t token) {
      if (!is_window) return (index - in_window) * tile_tokens + token < count_.sinks;
      int32_t age = index * tile_tokens + token - count_.window_first;
      if (age < 0) age += slots;
      return age < visible_window_;
    });
  }

  template <class Keys, class Values, class IsValid>
  __device__ void attend_tile(const Keys& keys, const Values& values, IsValid&& is_valid) {
    float scores[general_heads] = {};
    if (is_valid(lane_)) {
      for (int32_t channel = 0; channel < HeadDim; ++channel) {
        const float key = keys(HeadDim, lane_, channel);
#pragma unroll
        for (int32_t head = 0; head < general_heads; ++head)
          scores[head] = fmaf(shared_.q[head][channel], key, scores[head]);
      }
    } else {
#pragma unroll
      for (int32_t head = 0; head < general_heads; ++head) scores[head] = -INFINITY;
    }
    __syncwarp();
#pragma unroll
    for (int32_t head = 0; head < general_heads; ++head) {
      float tile_maximum = scores[head];
      for (int32_t lanes = 1; lanes < 32; lanes *= 2)
        tile_maximum = fmaxf(tile_maximum, __shfl_xor_sync(whole_warp, tile_maximum, lanes));
      if (tile_maximum > maximum_[head]) {
        const float factor = exp2f(maximum_[head] - tile_maximum);
        maximum_[head] = tile_maximum;
        sum_[head] *= factor;
#pragma unroll
        for (int32_t round = 0; round < rounds; ++round) out_[head][round] *= factor;
      }
      const float p = scores[head] > -INFINITY ? exp2f(scores[head] - maximum_[head]) : 0.0f;
      sum_[head] += p;
      shared_.weights[warp_][head][lane_] = p;
    }
    __syncwarp();
    for (int32_t token = 0; token < tile_tokens; ++token) {
      if (!is_valid(token)) continue;  // its slot may hold anything
#pragma unroll
      for (int32_t round = 0; round < rounds; ++round) {
        const int32_t channel = round * 32 + lane_;
        if (channel >= HeadDim) continue;
        const float value = values(HeadDim, token, channel);
#pragma unroll
        for (int32_t head = 0; head < general_heads; ++head)
          out_[head][round] = fmaf(shared_.weights[warp_][head][token], value, out_[head][round]);
      }
    }
  }

  __device__ void publish() {
#pragma unroll
    for (int32_t head = 0; head < general_heads; ++head) {
      float sum = sum_[head];
      for (int32_t lanes = 1; lanes < 32; lanes *= 2)
        sum += __shfl_xor_sync(whole_warp, sum, lanes);
      if (lane_ == 0) {
        shared_.states.maximum[warp_][head] = maximum_[head];
        shared_.states.sum[warp_][head] = sum;
      }
#pragma unroll
      for (int32_t round = 0; round < rounds; ++round) {
        if (round * 32 + lane_ < HeadDim)
          shared_.out[warp_][head][round * 32 + lane_] = out_[head][round];
      }
    }
    __syncthreads();
  }

  const device_layer<Policies, Storage>& layer_;
  general_shared<HeadDim>& shared_;
  const attend_piece& piece_;
  const sequence_counts& count_;
  int32_t sequence_;
  int32_t visible_window_;
  int32_t warp_;
  int32_t lane_;
  float maximum_[general_heads] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
  float sum_[general_heads] = {};
  float out_[general_heads][rounds] = {};
};

/// Decode attention of a batch over all cached tokens.
/// grid: any number of blocks; each has an equal stretch of the units (attend_schedule.cuh)
/// warp: every fourth unit of a stretch
/// lane: a token of a tile for scores, channels lane + 32 * n for the output
/// memory: general_shared, and the prefix sums of the batch behind it
template <class Policies, class Storage, int32_t HeadDim>
static __global__ void __launch_bounds__(32 * least_attend_warps)
    attend_general_kernel(device_layer<Policies, Storage> layer, attend_batch<Storage> batch,
                          attend_division division, attend_workspace workspace) {
  extern __shared__ __align__(128) std::byte dynamic_memory[];
  general_shared<HeadDim>& shared = *reinterpret_cast<general_shared<HeadDim>*>(dynamic_memory);
  uint32_t* const prefix =
      reinterpret_cast<uint32_t*>(dynamic_memory + round_up<size_t>(sizeof(shared), 16));
  const int32_t group = layer.group();
  const auto passes = static_cast<int32_t>(division.passes);
  const int32_t pass = static_cast<int32_t>(blockIdx.x) % passes;
  const auto nothing = [](auto...) {};
  wait_for_earlier_kernels();
  for_each_piece(layer, batch, division, shared.tasks, prefix, nothing, nothing, [&] {
    const attend_piece& piece = shared.tasks.piece;
    const sequence_counts& count = shared.tasks.count;
    const int32_t sequence = piece.sequence;
    const Storage* rows = batch.q + (static_cast<int64_t>(piece.item) * layer.num_qo_heads +
                                     piece.head * group + pass * general_heads) *
                                        HeadDim;
    const int32_t heads = least(general_heads, group - pass * general_heads);
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < general_heads * HeadDim;
         i += block_threads()) {
      shared.q[i / HeadDim][i % HeadDim] =
          i < heads * HeadDim ? to_float(rows[i]) * (layer.sm_scale * log2_e) : 0.0f;
    }
    __syncthreads();
    const int32_t visible_window =
        count.window - (batch.hidden != nullptr ? batch.hidden[piece.item] : 0);
    general_worker<Policies, Storage, HeadDim> worker(layer, shared, piece, count, sequence,
                                                      visible_window);
    worker.run();
    finish_piece<HeadDim>(
        layer, batch, workspace, piece, count, shared.states,
        [&](int32_t warp) { return &shared.out[warp][0][0]; }, passes, &shared.arrival);
  });
}

}  // namespace zipcache::detail

// How the parts of decode attention on a GPU come together again. In: softmax states of a block's
// warps in shared memory. A block that has a whole (sequence, head) writes its output; one that
// ends inside leaves a partial state in the workspace, and the last to arrive there merges all of
// them in order, so results are reproducible. Out: output, log-sum-exp, and the query if it is a
// probe.
#pragma once

#include <cmath>
#include <cstdint>

#include <zipcache/attend/attend_schedule.cuh>
#include <zipcache/core/numerics.hpp>
#include <zipcache/detail/warp.cuh>
#include <zipcache/store/device_layer.cuh>

namespace zipcache {
namespace detail {

/// 2^x by the special function unit: relative error 2^-22, x of any size, 0 for -inf.
__device__ __forceinline__ float exp2_unit(float x) {
  float result;
  asm volatile("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

/// Partial states between teams: [teams, 2, passes, heads, head_dim + 2] floats, and one counter
/// for each (item, head, pass).
struct attend_workspace {
  float* partials;
  uint32_t* arrivals;
};

/// Which row of the interval that its sequence is filling the query of a piece's item is, if not
/// negative.
template <class Policies, class Storage>
__device__ inline int32_t interval_row(const device_layer<Policies, Storage>& layer,
                                       const attend_batch<Storage>& batch,
                                       const attend_piece& piece, const sequence_counts& count) {
  const int32_t hidden = batch.hidden != nullptr ? batch.hidden[piece.item] : 0;
  return count.window - 1 - hidden - layer.recent;
}

/// Where that query is kept if it is a probe of the interval; -1 otherwise.
template <class Policies, class Storage>
__device__ inline int32_t kept_slot(const device_layer<Policies, Storage>& layer,
                                    const attend_batch<Storage>& batch, const attend_piece& piece,
                                    const sequence_counts& count) {
  if constexpr (!Policies::needs_probes) return -1;
  if (layer.probes.planned == nullptr) return -1;
  const int32_t row = interval_row(layer, batch, piece, count);
  if (row < 0 || row >= layer.interval || count.intervals >= layer.probes.max_intervals) return -1;
  const uint32_t* planned = layer.probes.planned_of(piece.sequence, count.intervals);
  if ((planned[row / 32] >> (row % 32) & 1u) == 0) return -1;
  int32_t slot = __popc(planned[row / 32] & ((1u << (row % 32)) - 1u));
  for (int32_t word = 0; word < row / 32; ++word) slot += __popc(planned[word]);
  return slot;
}

/// One head's state in a warp, output not yet divided by the sum. A lane has `rounds` channels in a
/// row, so that it reads and writes them together.
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
      const int32_t channel = lane * rounds + round;
      if (HeadDim % 32 == 0 || channel < HeadDim) visit(round, channel);
    }
  }
  /// Writes the lane's values to a row [HeadDim].
  __device__ __forceinline__ void store(float* row) const {
    for_each_channel([&](int32_t round, int32_t channel) { row[channel] = values[round]; });
  }
  /// The lane's channels of a row [HeadDim].
  __device__ __forceinline__ static void load_row(const float* row, float (&x)[rounds]) {
    for_each_channel([&](int32_t round, int32_t channel) { x[round] = row[channel]; });
  }
  /// The lane's channels of a row [HeadDim] that other blocks may have written, aligned to 16
  /// bytes.
  __device__ __forceinline__ static void load_written_row(const float* row, float (&x)[rounds]) {
    const int32_t lane = static_cast<int32_t>(threadIdx.x) % 32;
    if constexpr (HeadDim % 128 == 0) {
#pragma unroll
      for (int32_t i = 0; i < rounds / 4; ++i) {
        const float4 four = __ldcg(reinterpret_cast<const float4*>(row + lane * rounds) + i);
        x[4 * i] = four.x;
        x[4 * i + 1] = four.y;
        x[4 * i + 2] = four.z;
        x[4 * i + 3] = four.w;
      }
    } else {
      for_each_channel([&](int32_t round, int32_t channel) { x[round] = __ldcg(row + channel); });
    }
  }
};

/// What becomes of a finished (item, head): output, log-sum-exp, and the query if it is a probe.
/// What that needs of lengths is at hand: at the end of a launch every load is waited for. One
/// warp.
template <int32_t HeadDim, class Policies, class Storage>
__device__ void write_output(const device_layer<Policies, Storage>& layer,
                             const attend_batch<Storage>& batch, const attend_piece& piece,
                             const sequence_counts& count, int32_t qo_head,
                             const head_state<HeadDim>& state) {
  const int64_t row = static_cast<int64_t>(piece.item) * layer.num_qo_heads + qo_head;
  const bool some = state.sum > 0.0f;
  const float inverse = some ? 1.0f / state.sum : 0.0f;
  const float lse = some ? (state.maximum + log2f(state.sum)) * ln_2 : -INFINITY;
  Storage* out = batch.out + row * HeadDim;
  state.for_each_channel([&](int32_t round, int32_t channel) {
    out[channel] = from_float<Storage>(state.values[round] * inverse);
  });
  const bool first_lane = threadIdx.x % 32 == 0;
  if (first_lane && batch.lse != nullptr) batch.lse[row] = lse;
  const int32_t kept = kept_slot(layer, batch, piece, count);
  if (kept < 0) return;
  const int64_t kept_row =
      (static_cast<int64_t>(piece.sequence) * layer.probes.max_kept + kept) * layer.num_qo_heads +
      qo_head;
  state.for_each_channel([&](int32_t, int32_t channel) {
    layer.probes.q[kept_row * HeadDim + channel] = batch.q[row * HeadDim + channel];
  });
  if (!first_lane) return;
  layer.probes.lse[kept_row] = lse;
  if (qo_head != 0) return;
  const int32_t row_of_interval = interval_row(layer, batch, piece, count);
  atomicOr(layer.probes.recorded_of(piece.sequence) + row_of_interval / 32,
           1u << (row_of_interval % 32));
}

/// A block's share of one (item, head, pass) in shared memory, by warp: what a softmax needs beside
/// the output [warps, heads, head_dim], which stands elsewhere.
template <int32_t Heads>
struct block_states {
  float maximum[most_attend_warps][Heads];
  float sum[most_attend_warps][Heads];
};

/// Merges one head's states of the first `shares` warps, in their order. One warp.
template <int32_t HeadDim, int32_t Heads, class OutOf>
__device__ head_state<HeadDim> merge_warps(const block_states<Heads>& states, const OutOf& out_of,
                                           int32_t shares, int32_t head) {
  using state = head_state<HeadDim>;
  const auto lane = static_cast<int32_t>(threadIdx.x) % 32;
  // Every eight lanes know all warps.
  const int32_t warp = lane % most_attend_warps;
  const float sum = warp < shares ? states.sum[warp][head] : 0.0f;
  const float maximum = sum > 0.0f ? states.maximum[warp][head] : -INFINITY;
  float highest = maximum;
#pragma unroll
  for (int32_t step = 1; step < most_attend_warps; step *= 2)
    highest = fmaxf(highest, __shfl_xor_sync(whole_warp, highest, step));
  const float factor = sum > 0.0f ? exp2_unit(maximum - highest) : 0.0f;
  state merged;
  merged.maximum = highest;
  merged.sum = factor * sum;
#pragma unroll
  for (int32_t step = 1; step < most_attend_warps; step *= 2)
    merged.sum += __shfl_xor_sync(whole_warp, merged.sum, step);
#pragma unroll
  for (int32_t first = 0; first < most_attend_warps; first += least_attend_warps) {
    if (first >= shares) break;
    float rows[least_attend_warps][state::rounds];
#pragma unroll
    for (int32_t i = 0; i < least_attend_warps; ++i)
      state::load_row(out_of(first + i) + head * HeadDim, rows[i]);
#pragma unroll
    for (int32_t i = 0; i < least_attend_warps; ++i) {
      const float scale = __shfl_sync(whole_warp, factor, first + i);
#pragma unroll
      for (int32_t round = 0; round < state::rounds; ++round) {
        // Where there was no token, there is no output either.
        merged.values[round] =
            fmaf(scale, scale > 0.0f ? rows[i][round] : 0.0f, merged.values[round]);
      }
    }
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

/// Partial states, for the pass of a block: [teams, 2, passes] of values [heads, HeadDim], then
/// (maximum, sum) [heads]. A team leaves at most two: the second place is for a piece that
/// continues an earlier team's.
template <int32_t Heads, int32_t HeadDim>
struct partial_states {
  static constexpr int32_t size = Heads * (HeadDim + 2);
  float* first;
  int32_t stride;  ///< from one place to the next

  __device__ partial_states(float* partials, int32_t pass, int32_t passes)
      : first(partials + pass * size), stride(passes * size) {}
  __device__ float* of(uint32_t team, bool continues) const {
    return first + (static_cast<int64_t>(team) * 2 + (continues ? 1 : 0)) * stride;
  }
  __device__ static float* values(float* part, int32_t head) { return part + head * HeadDim; }
  __device__ static float* softmax(float* part, int32_t head) {
    return part + Heads * HeadDim + 2 * head;
  }
};

/// So many partial states are on their way together: every wait is for the L2, and there may be
/// many.
template <int32_t HeadDim>
inline constexpr uint32_t teams_together = head_state<HeadDim>::rounds <= 4 ? 16 : 8;

/// Merges one head's partial states of teams [first, last], every `step`th from `begin` on, in
/// their order. One warp.
template <int32_t Heads, int32_t HeadDim>
__device__ head_state<HeadDim> merge_teams(const partial_states<Heads, HeadDim>& parts,
                                           uint32_t first, uint32_t last, uint32_t begin,
                                           uint32_t step, int32_t head) {
  using state = head_state<HeadDim>;
  constexpr uint32_t together = teams_together<HeadDim>;
  const auto lane = static_cast<uint32_t>(threadIdx.x % 32);
  state merged;
#pragma unroll 1
  for (uint32_t base = begin; base <= last; base += together * step) {
    float values[together][state::rounds] = {};
#pragma unroll
    for (uint32_t i = 0; i < together; ++i) {
      const uint32_t team = base + i * step;
      if (team <= last)
        state::load_written_row(parts.values(parts.of(team, team > first), head), values[i]);
    }
    float maximum = -INFINITY;
    float sum = 0.0f;
    const uint32_t own = base + lane * step;
    if (lane < together && own <= last) {
      const float2 one =
          __ldcg(reinterpret_cast<const float2*>(parts.softmax(parts.of(own, own > first), head)));
      sum = one.y;
      if (sum > 0.0f) maximum = one.x;
    }
    float highest = fmaxf(maximum, merged.maximum);
    for (int32_t lanes = 1; lanes < 32; lanes *= 2)
      highest = fmaxf(highest, __shfl_xor_sync(whole_warp, highest, lanes));
    const float kept = merged.sum > 0.0f ? exp2_unit(merged.maximum - highest) : 0.0f;
    const float factor = sum > 0.0f ? exp2_unit(maximum - highest) : 0.0f;
    merged.maximum = highest;
    merged.sum = merged.sum * kept + warp_sum(factor * sum);
#pragma unroll
    for (int32_t round = 0; round < state::rounds; ++round) merged.values[round] *= kept;
#pragma unroll
    for (uint32_t i = 0; i < together; ++i) {
      const float scale = __shfl_sync(whole_warp, factor, i);
#pragma unroll
      for (int32_t round = 0; round < state::rounds; ++round) {
        // No weight: no state, or one of no token.
        if (scale > 0.0f)
          merged.values[round] = fmaf(scale, values[i][round], merged.values[round]);
      }
    }
  }
  return merged;
}

/// Hands the block's merged state on: to the output if its team has the whole (item, head), else to
/// the workspace, and if all other teams' parts are there already, merges them: a warp a head, or
/// two where there are many and warps enough, which leave what they have as if it were the block's
/// own. out_of(warp) is what a warp has of the output in shared memory.
template <int32_t HeadDim, int32_t Heads, class Policies, class Storage, class OutOf>
__device__ void finish_piece(const device_layer<Policies, Storage>& layer,
                             const attend_batch<Storage>& batch, const attend_workspace& workspace,
                             const attend_piece& piece, const sequence_counts& count,
                             block_states<Heads>& states, const OutOf& out_of, int32_t passes,
                             uint32_t* arrival) {
  const int32_t pass = static_cast<int32_t>(blockIdx.x) % passes;
  const int32_t group = layer.group();
  const int32_t heads = least(Heads, group - pass * Heads);
  const partial_states<Heads, HeadDim> parts(workspace.partials, pass, passes);
  const uint32_t teams = piece.last_team - piece.first_team + 1;
  const auto write = [&](int32_t head, const head_state<HeadDim>& state) {
    write_output(layer, batch, piece, count, piece.head * group + pass * Heads + head, state);
  };
  bool complete = piece.is_whole();
  int32_t shares = block_warps();
#pragma unroll 1
  for (;;) {
    float* const part = parts.of(piece.team, !piece.begins);
#pragma unroll 1
    for (int32_t head = thread_of_block() / 32; head < heads; head += block_warps()) {
      const auto state = merge_warps<HeadDim>(states, out_of, shares, head);
      if (complete) {
        write(head, state);
        continue;
      }
      state.store(parts.values(part, head));
      *reinterpret_cast<float2*>(parts.softmax(part, head)) = {state.maximum, state.sum};
    }
    if (complete) return;
    uint32_t* const counter =
        workspace.arrivals +
        (static_cast<int64_t>(piece.item) * layer.num_kv_heads + piece.head) * passes + pass;
    __syncthreads();
    if (threadIdx.x == 0) *arrival = arrive(counter);
    __syncthreads();
    if (*arrival + 1 != teams) return;
    if (threadIdx.x == 0) *counter = 0;  // ready for the next launch
    shares = teams > teams_together<HeadDim> && block_warps() >= 2 * Heads ? 2 : 1;
#pragma unroll 1
    for (int32_t i = thread_of_block() / 32; i < shares * Heads; i += block_warps()) {
      const int32_t head = i % Heads;
      const int32_t share = i / Heads;
      if (head >= heads) continue;
      const auto state = merge_teams(parts, piece.first_team, piece.last_team,
                                     piece.first_team + static_cast<uint32_t>(share),
                                     static_cast<uint32_t>(shares), head);
      if (shares == 1) {
        write(head, state);
        continue;
      }
      state.store(out_of(share) + head * HeadDim);
      if (threadIdx.x % 32 != 0) continue;
      states.maximum[share][head] = state.maximum;
      states.sum[share][head] = state.sum;
    }
    if (shares == 1) return;
    __syncthreads();
    complete = true;
  }
}

}  // namespace detail
}  // namespace zipcache

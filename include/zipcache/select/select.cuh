// Selection on the device: scores to salient tokens, as a bitmap and as a list. The num_salient
// first keys in rank order (order.hpp) are those below a threshold, found digit by digit with
// histograms, and the first of those that tie with it; one block finds and lists them for one head.
// In: score [num_heads, num_tokens]. Out: bitmap, salient tokens ascending. Twin: select.hpp.
// @equality same_bytes
#pragma once

#include <cstdint>

#include <zipcache/core/cuda.cuh>
#include <zipcache/core/numerics.hpp>
#include <zipcache/detail/warp.cuh>
#include <zipcache/select/order.hpp>
#include <zipcache/select/select.hpp>

namespace zipcache {
namespace detail {

/// What one block selects with. Shared memory.
struct selection_scratch {
  static constexpr int32_t digit_bits = 11;
  static constexpr int32_t num_digits = 1 << digit_bits;
  static constexpr int32_t max_warps = 32;

  int32_t histogram[num_digits];
  int32_t warp_below[max_warps];
  int32_t warp_ties[max_warps];
  uint32_t digit;  ///< of the threshold
  int32_t before;  ///< tokens with a smaller one
};

/// Tokens below `value` are salient, and the first `ties` of those at it.
struct rank_threshold {
  uint32_t value;
  int32_t ties;
};

/// The part of the rank key that the score decides; the token decides among equals.
__device__ inline uint32_t score_key(float score) {
  return static_cast<uint32_t>(rank_key(score, 0) >> 32);
}

/// Adds one to a digit's count for each lane in `active`. Lanes that share the first one's digit
/// are counted at once, so that equal scores do not queue.
__device__ inline void count_digit(int32_t* histogram, bool active, uint32_t digit, int32_t lane) {
  const uint32_t lanes = __ballot_sync(whole_warp, active);
  if (lanes == 0) return;
  const int32_t first = __ffs(static_cast<int32_t>(lanes)) - 1;
  const uint32_t first_digit = __shfl_sync(whole_warp, digit, first);
  const bool joins = active && digit == first_digit;
  const uint32_t joined = __ballot_sync(whole_warp, joins);
  if (lane == first) {
    atomicAdd(&histogram[first_digit], __popc(joined));
  } else if (active && !joins) {
    atomicAdd(&histogram[digit], 1);
  }
}

/// Finds the digit whose tokens contain the `wanted`-th (from 1) and writes it to the scratch.
__device__ inline void find_digit(block_team team, selection_scratch& scratch, int32_t wanted) {
  const int32_t lane = team.thread % 32;
  const int32_t warp = team.thread / 32;
  const int32_t per_thread = ceil_div(selection_scratch::num_digits, team.num_threads);
  const int32_t first = least(team.thread * per_thread, selection_scratch::num_digits);
  const int32_t last = least(first + per_thread, selection_scratch::num_digits);
  int32_t own = 0;
  for (int32_t digit = first; digit < last; ++digit) own += scratch.histogram[digit];
  const int32_t up_to_here = warp_prefix_sum(own, lane);
  if (lane == 31) scratch.warp_below[warp] = up_to_here;
  team.sync();
  int32_t before = up_to_here - own;
  for (int32_t other = 0; other < warp; ++other) before += scratch.warp_below[other];
  for (int32_t digit = first; digit < last; ++digit) {
    const int32_t count = scratch.histogram[digit];
    if (before < wanted && wanted <= before + count) {
      scratch.digit = static_cast<uint32_t>(digit);
      scratch.before = before;
    }
    before += count;
  }
  team.sync();
}

/// Scores that a thread has under way at once.
inline constexpr int32_t scores_at_once = 8;

/// Keys of tokens `first`, `first + step`, ...; the largest key where a token is not ranked.
__device__ inline void load_keys(const float* scores, int64_t first, int64_t step,
                                 int64_t num_ranked, uint32_t (&keys)[scores_at_once]) {
  ZIPCACHE_UNROLL
  for (int32_t i = 0; i < scores_at_once; ++i) {
    const int64_t token = first + i * step;
    keys[i] = token < num_ranked ? bits_of(scores[token]) : 0u;
  }
  ZIPCACHE_UNROLL
  for (int32_t i = 0; i < scores_at_once; ++i)
    keys[i] = first + i * step < num_ranked ? score_key(float_of(keys[i])) : 0xffffffffu;
}

/// The threshold below and at which there are `count` of the tokens [0, num_ranked).
/// 1 <= count <= num_ranked. Called by the whole block.
__device__ inline rank_threshold find_threshold(block_team team, const float* scores,
                                                int64_t num_ranked, int64_t count,
                                                selection_scratch& scratch) {
  const int32_t lane = team.thread % 32;
  uint32_t value = 0;
  int32_t wanted = static_cast<int32_t>(count);
  int32_t known_bits = 0;
  while (known_bits < 32) {
    const int32_t digit_bits = least(selection_scratch::digit_bits, 32 - known_bits);
    const int32_t shift = 32 - known_bits - digit_bits;
    for (int32_t i = team.thread; i < selection_scratch::num_digits; i += team.num_threads)
      scratch.histogram[i] = 0;
    team.sync();
    const int64_t stride = int64_t{team.num_threads} * scores_at_once;
    for (int64_t first = team.thread - lane; first < num_ranked; first += stride) {
      uint32_t keys[scores_at_once];
      load_keys(scores, first + lane, team.num_threads, num_ranked, keys);
      ZIPCACHE_UNROLL
      for (int32_t i = 0; i < scores_at_once; ++i) {
        const uint32_t key = keys[i];
        // Two shifts, since one by 32 is not defined.
        const bool matches = ((key ^ value) >> shift >> digit_bits) == 0u;
        count_digit(scratch.histogram,
                    matches && first + lane + int64_t{i} * team.num_threads < num_ranked,
                    key >> shift & ((1u << digit_bits) - 1u), lane);
      }
    }
    team.sync();
    find_digit(team, scratch, wanted);
    value |= scratch.digit << shift;
    wanted -= scratch.before;
    known_bits += digit_bits;
    team.sync();
  }
  return {value, wanted};
}

/// How the tokens of one warp's lanes stand to the threshold.
struct ranked_lanes {
  uint32_t below;
  uint32_t ties;
};

__device__ inline ranked_lanes rank_lanes(uint32_t key, bool ranked, uint32_t threshold) {
  return {__ballot_sync(whole_warp, ranked && key < threshold),
          __ballot_sync(whole_warp, ranked && key == threshold)};
}

/// Calls visit(word, how its lanes rank) for words [first, last), in order.
template <class Visit>
__device__ inline void for_each_word(const float* scores, int64_t first, int64_t last, int32_t lane,
                                     int64_t num_ranked, uint32_t threshold, const Visit& visit) {
  for (int64_t word = first; word < last; word += scores_at_once) {
    uint32_t keys[scores_at_once];
    load_keys(scores, word * 32 + lane, 32, num_ranked, keys);
    ZIPCACHE_UNROLL
    for (int32_t i = 0; i < scores_at_once; ++i) {
      if (word + i >= last) break;
      visit(word + i, rank_lanes(keys[i], (word + i) * 32 + lane < num_ranked, threshold));
    }
  }
}

/// @brief Selects for one head; called by a whole block of at most 1024 threads.
/// @param scores  [size.num_tokens], memory that the block can read
/// @param[out] salient  [size.num_salient] ascending, or null
/// @param[out] bitmap  [ceil(size.num_tokens / 32)]
/// Results are visible to the block after its next sync.
__device__ inline void select_head(block_team team, const float* scores, selection_size size,
                                   int32_t* salient, uint32_t* bitmap, selection_scratch& scratch) {
  const int32_t lane = team.thread % 32;
  const int32_t warp = team.thread / 32;
  const int32_t num_warps = team.num_threads / 32;
  const int64_t num_ranked = size.num_tokens - size.num_recent;
  const int64_t num_heavy = size.num_salient - size.num_recent;
  rank_threshold threshold{0u, 0};  // no key is below, and no tie is taken
  if (num_heavy > 0) threshold = find_threshold(team, scores, num_ranked, num_heavy, scratch);

  // Each warp lists the tokens of a span of whole words, once it knows how many lie before it.
  const int64_t num_words = ceil_div<int64_t>(size.num_tokens, 32);
  const int64_t span = ceil_div<int64_t>(num_words, num_warps);
  const int64_t first = least(warp * span, num_words);
  const int64_t last = least(first + span, num_words);
  int32_t below = 0;
  int32_t ties = 0;
  for_each_word(scores, first, last, lane, num_ranked, threshold.value,
                [&](int64_t, ranked_lanes lanes) {
                  below += __popc(lanes.below);
                  ties += __popc(lanes.ties);
                });
  if (lane == 0) {
    scratch.warp_below[warp] = below;
    scratch.warp_ties[warp] = ties;
  }
  team.sync();
  below = 0;
  ties = 0;
  for (int32_t other = 0; other < warp; ++other) {
    below += scratch.warp_below[other];
    ties += scratch.warp_ties[other];
  }
  const uint32_t lower_lanes = (1u << lane) - 1u;
  const auto write_word = [&](int64_t word, ranked_lanes lanes) {
    const int64_t token = word * 32 + lane;
    const int32_t ties_before = ties + __popc(lanes.ties & lower_lanes);
    const bool is_tie = (lanes.ties >> lane & 1u) != 0;
    const bool is_recent = token >= num_ranked && token < size.num_tokens;
    const bool is_salient =
        (lanes.below >> lane & 1u) != 0 || (is_tie && ties_before < threshold.ties) || is_recent;
    const uint32_t bits = __ballot_sync(whole_warp, is_salient);
    if (lane == 0) bitmap[word] = bits;
    if (salient != nullptr && is_salient) {
      const int64_t place = is_recent ? num_heavy + token - num_ranked
                                      : below + __popc(lanes.below & lower_lanes) +
                                            least(ties_before, threshold.ties);
      salient[place] = static_cast<int32_t>(token);
    }
    below += __popc(lanes.below);
    ties += __popc(lanes.ties);
  };
  for_each_word(scores, first, last, lane, num_ranked, threshold.value, write_word);
}

struct select_tuning {
  /// A block this large hides its reads; small heads leave most of it idle, and then nothing waits
  /// for them.
  static constexpr int32_t threads = 1024;
};

namespace {

// Grid: one block for each head, striding. Warp: every n-th 32 tokens for the histograms, then a
// span of the bitmap. Lane: one token of 32. Memory: a histogram of 2048 digits in shared memory;
// scores are read five times, from the L1 cache where a head fits into it.
__global__ void __launch_bounds__(select_tuning::threads)
    select_kernel(const float* scores, int32_t num_heads, selection_size size, int32_t* salient,
                  uint32_t* bitmap) {
  __shared__ selection_scratch scratch;
  const block_team team{static_cast<int32_t>(threadIdx.x), static_cast<int32_t>(blockDim.x)};
  const int64_t num_words = ceil_div<int64_t>(size.num_tokens, 32);
  for (int64_t head = blockIdx.x; head < num_heads; head += gridDim.x) {
    select_head(team, scores + head * size.num_tokens, size,
                salient == nullptr ? nullptr : salient + head * size.num_salient,
                bitmap + head * num_words, scratch);
    team.sync();
  }
}

}  // namespace
}  // namespace detail

/// @brief The `num_salient` first tokens in rank order (score down, then index up) of every head.
/// @param[in] scores  device memory [num_heads, num_tokens]; NaN ranks last
/// @param[out] salient  device memory [num_heads, num_salient], ascending within a head; or null
/// @param[out] bitmap  device memory [num_heads, ceil(num_tokens / 32)]: bit token % 32 of word
/// token / 32
/// Heads of several sequences may be given as one larger number of heads. Needs no workspace.
/// @throws argument_error  sizes that do not fit, host pointers; nothing was launched
/// @equality same_bytes
inline void select(cuda_backend backend, const float* scores, int32_t num_heads,
                   selection_size size, int32_t* salient, uint32_t* bitmap) {
  detail::require_between("num_heads", num_heads, 0, 2147483647);
  detail::require_between("num_tokens", size.num_tokens, int64_t{0}, int64_t{2147483647});
  detail::require_between("num_salient", size.num_salient, int64_t{0}, size.num_tokens);
  detail::require_between("num_recent", size.num_recent, int64_t{0}, size.num_salient);
  if (num_heads == 0 || size.num_tokens == 0) return;
  detail::check_device_pointer("scores", scores);
  if (salient != nullptr && size.num_salient > 0) detail::check_device_pointer("salient", salient);
  detail::check_device_pointer("bitmap", bitmap);
  detail::check_no_earlier_error();
  // Small heads take no more warps than they have words.
  const auto threads = static_cast<unsigned>(least<int64_t>(
      detail::select_tuning::threads, most<int64_t>(128, round_up<int64_t>(size.num_tokens, 32))));
  detail::select_kernel<<<static_cast<unsigned>(num_heads), threads, 0, backend.stream>>>(
      scores, num_heads, size, salient, bitmap);
  detail::check_launch("select_kernel");
}

}  // namespace zipcache

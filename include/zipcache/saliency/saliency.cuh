// Saliency on the device: attention mass that probe rows give to every token. One product on tensor
// cores and no score matrix in memory: a warp keeps keys in registers, reads probe rows through
// shared memory, and adds up its keys' columns as it goes. Without log-sum-exp of the probe rows,
// the same product with its sides changed finds it first, split over the context.
// In: probe queries, keys. Out: score [num_kv_heads, kv_len]. Twin: saliency.hpp.
// @equality within a bound: products are summed in the tensor cores' order, exponentials by the
// special function unit. The order of every sum follows from the shape alone, so runs are
// reproducible bit by bit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>

#include <zipcache/core/cuda.cuh>
#include <zipcache/core/numerics.hpp>
#include <zipcache/core/shape.hpp>
#include <zipcache/core/types.hpp>
#include <zipcache/core/view.hpp>
#include <zipcache/core/workspace.cuh>
#include <zipcache/detail/tensor_core.cuh>
#include <zipcache/detail/warp.cuh>
#include <zipcache/saliency/metric.hpp>

namespace zipcache {

/// Query rows that are looked at, in device memory. As probe_queries.
template <class Element>
struct device_probe_queries {
  tensor_view<const Element> q;        ///< [num_qo_heads, num_probes, head_dim]
  const int64_t* positions = nullptr;  ///< [num_probes], ascending
  const float* lse = nullptr;  ///< [num_qo_heads, num_probes], natural logarithm; null if unknown
};

/// Several sequences of the same shape, as distances in elements from one to the next. Their lse,
/// and their scores, lie one behind the other.
struct saliency_batch {
  int32_t num_sequences = 1;
  int64_t q_stride = 0;
  int64_t k_stride = 0;
  int64_t positions_stride = 0;  ///< 0: all sequences have the same probes
};

namespace detail {

/// How a block multiplies rows of `HeadDim` channels: rows that stay in registers against chunks of
/// rows that pass through shared memory.
template <int HeadDim>
struct probe_tuning {
  static constexpr int32_t num_warps = 8;
  static constexpr int32_t threads = 32 * num_warps;
  static constexpr int32_t blocks = 2;  ///< of a multiprocessor
  /// 16 rows each; a warp's rows take row_tiles * HeadDim / 4 registers a lane, 64 at most: four
  /// warps a scheduler hide each other's exponentials and the products' latency, two do not.
  static constexpr int32_t row_tiles = HeadDim <= 128 ? 2 : 1;
  static constexpr int32_t warp_rows = 16 * row_tiles;
  static constexpr int32_t block_rows = num_warps * warp_rows;
  static constexpr int32_t chunk_rows = HeadDim <= 128 ? 64 : 32;
  /// Eight rows of a matrix begin in different groups of four banks.
  static constexpr int32_t row_stride = HeadDim + 8;
  static constexpr int64_t target_blocks = 1024;
};

/// A score that is above a row's reference by more than 2^this moves the reference.
inline constexpr float reference_margin = 16.0f;
inline constexpr float no_reference = -1e30f;

template <class Element>
struct saliency_arguments {
  device_probe_queries<Element> probes;
  tensor_view<const Element> k;
  saliency_batch batch;
  float scale;  ///< sm_scale * log2(e)
  int32_t head_dim;
  int32_t group;
  int32_t group_shift;  ///< its logarithm, or -1 if it has none
  int32_t num_rows;     ///< probe rows of one KV head: probes ascending, then its query heads
  int32_t kv_len;
  int32_t num_splits;
  int32_t keys_per_split;
  float lse_factor;  ///< from `lse` to base 2
  const float* lse;  ///< [sequences, num_qo_heads, num_probes]
  float2* partials;  ///< [sequences * num_kv_heads, num_splits, num_rows]: reference, sum
  float* found_lse;  ///< like `lse`, in base 2
  float* sums;       ///< [sequences, num_kv_heads, kv_len] for per_layer
  float* scores;     ///< [sequences, num_kv_heads, kv_len]

  __host__ __device__ int32_t num_probes() const {
    return static_cast<int32_t>(probes.q.num_tokens);
  }
  /// KV heads of all sequences.
  __host__ __device__ int32_t num_items() const { return batch.num_sequences * k.num_heads; }
  /// The probe of a row of one KV head.
  __device__ int32_t probe_of(int32_t row) const {
    return group_shift >= 0 ? row >> group_shift : row / group;
  }
  __device__ int32_t head_in_group(int32_t row) const { return row - probe_of(row) * group; }
  /// Row 0 of an item, and any other one from it.
  __device__ const Element* queries_of(int32_t item) const {
    return probes.q.row(item % k.num_heads * group, 0) + item / k.num_heads * batch.q_stride;
  }
  __device__ const Element* query(const Element* queries, int32_t row) const {
    return queries + head_in_group(row) * probes.q.head_stride +
           probe_of(row) * probes.q.token_stride;
  }
  __device__ const Element* keys_of(int32_t item) const {
    return k.row(item % k.num_heads, 0) + item / k.num_heads * batch.k_stride;
  }
  __device__ const int64_t* positions(int32_t item) const {
    return probes.positions + item / k.num_heads * batch.positions_stride;
  }
  /// The last key that a row sees.
  __device__ int32_t last_key(int32_t item, int32_t row) const {
    return static_cast<int32_t>(least<int64_t>(positions(item)[probe_of(row)], kv_len - 1));
  }
  /// Where the row's log-sum-exp lies.
  __device__ int64_t lse_index(int32_t item, int32_t row) const {
    const int64_t head = int64_t{item} * group + head_in_group(row);
    return head * num_probes() + probe_of(row);
  }
};

/// Number of positions below `token`, found by a warp in steps of 32.
__device__ inline int32_t positions_below(const int64_t* positions, int32_t count, int64_t token,
                                          int32_t lane) {
  int32_t first = 0;  // positions before it are below
  int32_t last = count;
  while (first < last) {
    const int32_t step = ceil_div(last - first, 32);
    const int32_t index = first + (lane + 1) * step - 1;
    const bool is_below = index < last && positions[index] < token;
    const int32_t steps = __popc(__ballot_sync(whole_warp, is_below));
    first += steps * step;
    last = least(last, first + step - 1);
  }
  return first;
}

/// Who sees a token.
__device__ inline token_visibility visibility_of(const int64_t* positions, int32_t num_probes,
                                                 int32_t token, int32_t kv_len) {
  int32_t first = 0;
  int32_t last = num_probes;
  while (first < last) {
    const int32_t middle = first + (last - first) / 2;
    if (positions[middle] < token) {
      first = middle + 1;
    } else {
      last = middle;
    }
  }
  return {num_probes - first, int64_t{kv_len} - token};
}

/// A warp's rows in registers, as operand A.
template <class Element, int HeadDim>
struct stationary_rows {
  using tuning = probe_tuning<HeadDim>;
  uint32_t words[tuning::row_tiles][HeadDim / 16][4];

  /// `row_of(i)` is row i of the warp, or null for zeros.
  template <class RowOf>
  __device__ void load(int32_t head_dim, int32_t lane, const RowOf& row_of) {
    ZIPCACHE_UNROLL
    for (int32_t tile = 0; tile < tuning::row_tiles; ++tile) {
      ZIPCACHE_UNROLL
      for (int32_t upper = 0; upper < 2; ++upper) {
        const Element* row = row_of(16 * tile + 8 * upper + lane / 4);
        ZIPCACHE_UNROLL
        for (int32_t step = 0; step < HeadDim / 16; ++step) {
          const bool used = row != nullptr && 16 * step < head_dim;
          const Element* from = row + 16 * step + lane % 4 * 2;
          words[tile][step][upper] = used ? *reinterpret_cast<const uint32_t*>(from) : 0u;
          words[tile][step][upper + 2] = used ? *reinterpret_cast<const uint32_t*>(from + 8) : 0u;
        }
      }
    }
  }

  /// Products with eight rows in shared memory: sums[tile] as multiply_add says.
  __device__ __forceinline__ void multiply(const Element* shared, int32_t lane,
                                           float (&sums)[tuning::row_tiles][4]) const {
    ZIPCACHE_UNROLL
    for (int32_t tile = 0; tile < tuning::row_tiles; ++tile) {
      ZIPCACHE_UNROLL
      for (int32_t i = 0; i < 4; ++i) sums[tile][i] = 0.0f;
    }
    const Element* row = shared + lane % 8 * tuning::row_stride + lane / 8 * 8;
    ZIPCACHE_UNROLL
    for (int32_t step = 0; step < HeadDim / 16; step += 2) {
      uint32_t b[4];
      load_matrices(b, row + 16 * step);
      ZIPCACHE_UNROLL
      for (int32_t tile = 0; tile < tuning::row_tiles; ++tile)
        multiply_add<Element>(sums[tile], words[tile][step], b[0], b[1]);
      ZIPCACHE_UNROLL
      for (int32_t tile = 0; tile < tuning::row_tiles; ++tile)
        multiply_add<Element>(sums[tile], words[tile][step + 1], b[2], b[3]);
    }
  }
};

/// Rows of a chunk that a thread copies: every `row_step`-th one, from row `first` on.
template <int HeadDim>
struct chunk_copy {
  using tuning = probe_tuning<HeadDim>;
  static constexpr int32_t columns = HeadDim / 8;
  static constexpr int32_t pieces = tuning::chunk_rows * columns / tuning::threads;
  /// Whether a thread's pieces are in one column.
  static constexpr bool is_regular = tuning::threads % columns == 0;
  static constexpr int32_t row_step = tuning::threads / columns;
};

/// Begins to copy a chunk of rows into shared memory; `row_of(i)` is row i, or null for zeros.
template <int HeadDim, class Element, class RowOf>
__device__ void begin_chunk(Element* shared, int32_t thread, int32_t head_dim, const void* valid,
                            const RowOf& row_of) {
  using copy = chunk_copy<HeadDim>;
  ZIPCACHE_UNROLL
  for (int32_t i = 0; i < copy::pieces; ++i) {
    const int32_t piece = i * copy::tuning::threads + thread;
    const int32_t column = piece % copy::columns * 8;
    const Element* row = row_of(piece / copy::columns);
    const bool used = row != nullptr && column < head_dim;
    begin_copy(shared + piece / copy::columns * copy::tuning::row_stride + column,
               used ? static_cast<const void*>(row + column) : valid, used);
  }
}

/// The same for rows that are a fixed distance apart: row row_step * i + thread / columns is at
/// `first` + i * distance, and there are `num_rows` of the chunk.
template <int HeadDim, class Element>
__device__ void begin_regular_chunk(Element* shared, int32_t thread, int32_t head_dim,
                                    const Element* first, int64_t distance, int64_t num_rows) {
  using copy = chunk_copy<HeadDim>;
  const int32_t own = thread / copy::columns;
  const int32_t column = thread % copy::columns * 8;
  Element* to = shared + own * copy::tuning::row_stride + column;
  const int64_t left = column < head_dim ? num_rows - own : 0;
  const Element* from = first + column;
  ZIPCACHE_UNROLL
  for (int32_t i = 0; i < copy::pieces; ++i) {
    const bool used = i * copy::row_step < left;
    begin_copy(to + i * copy::row_step * copy::tuning::row_stride, used ? from : first, used);
    if (used) from += distance;
  }
}

// --- column sums
// ----------------------------------------------------------------------------------

/// What goes with the probe rows of a chunk.
template <int HeadDim>
struct probe_chunk {
  float minus_lse[probe_tuning<HeadDim>::chunk_rows];
  int32_t last_key[probe_tuning<HeadDim>::chunk_rows];
};

/// Adds the probabilities of a chunk's rows to the sums of a warp's keys, lane by lane: sums[tile]
/// are those of keys g and g + 8 of the tile over this lane's columns.
template <bool Masked, class Element, int HeadDim>
__device__ __forceinline__ void add_columns(const stationary_rows<Element, HeadDim>& keys,
                                            const Element* shared,
                                            const probe_chunk<HeadDim>& chunk, float scale,
                                            int32_t first_key, int32_t lane,
                                            float (&sums)[probe_tuning<HeadDim>::row_tiles][2]) {
  using tuning = probe_tuning<HeadDim>;
  constexpr float nothing = -__builtin_huge_valf();
  const auto add = [&](int32_t first, const float(&scores)[tuning::row_tiles][4]) {
    const int32_t column = first + lane % 4 * 2;
    const float2 minus_lse = *reinterpret_cast<const float2*>(chunk.minus_lse + column);
    ZIPCACHE_UNROLL
    for (int32_t tile = 0; tile < tuning::row_tiles; ++tile) {
      ZIPCACHE_UNROLL
      for (int32_t upper = 0; upper < 2; ++upper) {
        float left = fmaf(scores[tile][2 * upper], scale, minus_lse.x);
        float right = fmaf(scores[tile][2 * upper + 1], scale, minus_lse.y);
        if constexpr (Masked) {
          const int32_t key = first_key + 16 * tile + 8 * upper + lane / 4;
          left = key <= chunk.last_key[column] ? left : nothing;
          right = key <= chunk.last_key[column + 1] ? right : nothing;
        }
        sums[tile][upper] += exp2_approximate(left) + exp2_approximate(right);
      }
    }
  };
  // The products of the next eight rows are under way while these are added up.
  float even[tuning::row_tiles][4];
  float odd[tuning::row_tiles][4];
  keys.multiply(shared, lane, even);
#pragma unroll 1
  for (int32_t first = 0; first < tuning::chunk_rows - 16; first += 16) {
    keys.multiply(shared + (first + 8) * tuning::row_stride, lane, odd);
    add(first, even);
    keys.multiply(shared + (first + 16) * tuning::row_stride, lane, even);
    add(first + 8, odd);
  }
  constexpr int32_t last = tuning::chunk_rows - 16;
  keys.multiply(shared + (last + 8) * tuning::row_stride, lane, odd);
  add(last, even);
  add(last + 8, odd);
}

/// Writes what a warp's keys got: scores, or sums where heads share them.
template <class Metric, class Scope, class Element, int HeadDim>
__device__ void write_columns(const saliency_arguments<Element>& given, int32_t item,
                              int32_t first_key, int32_t lane,
                              const float (&sums)[probe_tuning<HeadDim>::row_tiles][2]) {
  float* out = (Scope::shared_by_heads ? given.sums : given.scores) + int64_t{item} * given.kv_len;
  const int64_t* positions = given.positions(item);
  ZIPCACHE_UNROLL
  for (int32_t tile = 0; tile < probe_tuning<HeadDim>::row_tiles; ++tile) {
    ZIPCACHE_UNROLL
    for (int32_t upper = 0; upper < 2; ++upper) {
      float sum = sums[tile][upper];
      sum += __shfl_xor_sync(whole_warp, sum, 1);
      sum += __shfl_xor_sync(whole_warp, sum, 2);
      const int32_t token = first_key + 16 * tile + 8 * upper + lane / 4;
      if (lane % 4 != 0 || token >= given.kv_len) continue;
      if constexpr (Scope::shared_by_heads) {
        out[token] = sum;
      } else {
        out[token] =
            Metric::score(sum, visibility_of(positions, given.num_probes(), token, given.kv_len));
      }
    }
  }
}

namespace {

// Grid: x = 256 keys (128 beyond 128 channels), y = KV head of a sequence (striding).
// Warp: 32 (16) of the keys, against all probe rows that see the block's first key, in chunks.
// Lane: operand rows of its keys, and sums of four (two) of them over a quarter of the rows.
// Memory: keys in registers; two chunks of 64 (32) probe rows in shared memory, copied ahead.
template <class Metric, class Scope, int HeadDim, class Element>
__global__ void __launch_bounds__(probe_tuning<HeadDim>::threads, probe_tuning<HeadDim>::blocks)
    column_sum_kernel(saliency_arguments<Element> given) {
  using tuning = probe_tuning<HeadDim>;
  __shared__ __align__(16) Element shared[2][tuning::chunk_rows * tuning::row_stride];
  __shared__ __align__(16) probe_chunk<HeadDim> chunks[2];
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  const int32_t lane = thread % 32;
  const int32_t block_key = static_cast<int32_t>(blockIdx.x) * tuning::block_rows;
  const int32_t warp_key = block_key + thread / 32 * tuning::warp_rows;
  const int32_t warp_last_key = warp_key + tuning::warp_rows - 1;
  for (int32_t item = static_cast<int32_t>(blockIdx.y); item < given.num_items();
       item += static_cast<int32_t>(gridDim.y)) {
    const Element* item_keys = given.keys_of(item);
    const Element* item_queries = given.queries_of(item);
    stationary_rows<Element, HeadDim> keys;
    keys.load(given.head_dim, lane, [&](int32_t i) {
      return warp_key + i < given.kv_len ? item_keys + (warp_key + i) * given.k.token_stride
                                         : nullptr;
    });
    const int32_t first_row =
        positions_below(given.positions(item), given.num_probes(), block_key, lane) * given.group;
    const int32_t num_chunks = ceil_div(given.num_rows - first_row, tuning::chunk_rows);

    // What goes with the rows of the chunk that begins next, loaded one chunk earlier.
    float minus_lse = 0.0f;
    int32_t last_key = 0;
    const auto load_info = [&](int32_t index) {
      const int32_t row = first_row + index * tuning::chunk_rows + thread;
      const bool used = thread < tuning::chunk_rows && row < given.num_rows;
      // A row that is not there weighs nothing.
      minus_lse =
          used ? -given.lse_factor * given.lse[given.lse_index(item, row)] : -__builtin_huge_valf();
      last_key = used ? given.last_key(item, row) : given.kv_len - 1;
    };
    const auto begin = [&](int32_t index) {
      const int32_t row = first_row + index * tuning::chunk_rows;
      using copy = chunk_copy<HeadDim>;
      if (copy::is_regular && given.group_shift >= 0 && given.group <= copy::row_step) {
        // A thread's rows have the same head.
        const int32_t own = least(row + thread / copy::columns, given.num_rows - 1);
        begin_regular_chunk<HeadDim>(
            shared[index % 2], thread, given.head_dim, given.query(item_queries, own),
            (copy::row_step >> given.group_shift) * given.probes.q.token_stride,
            given.num_rows - row);
      } else {
        begin_chunk<HeadDim>(
            shared[index % 2], thread, given.head_dim, given.k.data, [&](int32_t i) {
              return row + i < given.num_rows ? given.query(item_queries, row + i) : nullptr;
            });
      }
      if (thread < tuning::chunk_rows) {
        chunks[index % 2].minus_lse[thread] = minus_lse;
        chunks[index % 2].last_key[thread] = last_key;
      }
      load_info(index + 1);
    };

    float sums[tuning::row_tiles][2] = {};
    load_info(0);
    if (num_chunks > 0) begin(0);
    end_copy_group();
    for (int32_t index = 0; index < num_chunks; ++index) {
      if (index + 1 < num_chunks) begin(index + 1);
      end_copy_group();
      wait_copy_groups<1>();
      __syncthreads();
      const probe_chunk<HeadDim>& chunk = chunks[index % 2];
      if (chunk.last_key[0] >= warp_last_key) {
        add_columns<false>(keys, shared[index % 2], chunk, given.scale, warp_key, lane, sums);
      } else if (chunk.last_key[tuning::chunk_rows - 1] >= warp_key) {
        add_columns<true>(keys, shared[index % 2], chunk, given.scale, warp_key, lane, sums);
      }
      __syncthreads();
    }
    write_columns<Metric, Scope, Element, HeadDim>(given, item, warp_key, lane, sums);
  }
}

}  // namespace

// --- log-sum-exp of the rows
// ----------------------------------------------------------------------

/// Sum of 2^(score - reference) over what a lane, or more, has seen of a row. The reference need
/// not be the maximum, only not far below it.
struct row_sum {
  float reference = no_reference;
  float sum = 0.0f;
};

__device__ inline row_sum merge(row_sum a, row_sum b) {
  const float reference = most(a.reference, b.reference);
  return {reference, a.sum * exp2_approximate(a.reference - reference) +
                         b.sum * exp2_approximate(b.reference - reference)};
}

/// Adds eight keys to the sums of a warp's rows, lane by lane.
template <bool Masked, int RowTiles>
__device__ __forceinline__ void add_keys(const float (&scores)[RowTiles][4], float scale,
                                         int32_t key, const int32_t (&last_key)[RowTiles][2],
                                         row_sum (&rows)[RowTiles][2]) {
  constexpr float nothing = -__builtin_huge_valf();
  const auto is_seen = [&](int32_t tile, int32_t i) {
    return !Masked || key + i % 2 <= last_key[tile][i / 2];
  };
  float highest = nothing;
  ZIPCACHE_UNROLL
  for (int32_t tile = 0; tile < RowTiles; ++tile) {
    ZIPCACHE_UNROLL
    for (int32_t i = 0; i < 4; ++i) {
      const float above = fmaf(scores[tile][i], scale, -rows[tile][i / 2].reference);
      highest = fmaxf(highest, is_seen(tile, i) ? above : nothing);
    }
  }
  if (__any_sync(whole_warp, highest > reference_margin)) {
    ZIPCACHE_UNROLL
    for (int32_t tile = 0; tile < RowTiles; ++tile) {
      ZIPCACHE_UNROLL
      for (int32_t i = 0; i < 4; ++i) {
        row_sum& row = rows[tile][i / 2];
        const float score = is_seen(tile, i) ? scores[tile][i] * scale : nothing;
        const float reference = most(row.reference, score);
        row.sum *= exp2_approximate(row.reference - reference);
        row.reference = reference;
      }
    }
  }
  ZIPCACHE_UNROLL
  for (int32_t tile = 0; tile < RowTiles; ++tile) {
    ZIPCACHE_UNROLL
    for (int32_t i = 0; i < 4; ++i) {
      row_sum& row = rows[tile][i / 2];
      const float above = fmaf(scores[tile][i], scale, -row.reference);
      row.sum += exp2_approximate(is_seen(tile, i) ? above : nothing);
    }
  }
}

namespace {

// Grid: x = 256 probe rows (128 beyond 128 channels), y = split of the context, z = KV head of a
// sequence (striding). Warp: 32 (16) of the rows, against the keys of the split that they see.
// Lane: operand rows, and a row_sum of four (two) of them over a quarter of the keys.
// Memory: rows in registers; two chunks of 64 (32) keys in shared memory, copied ahead.
template <int HeadDim, class Element>
__global__ void __launch_bounds__(probe_tuning<HeadDim>::threads, probe_tuning<HeadDim>::blocks)
    row_sum_kernel(saliency_arguments<Element> given) {
  using tuning = probe_tuning<HeadDim>;
  __shared__ __align__(16) Element shared[2][tuning::chunk_rows * tuning::row_stride];
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  const int32_t lane = thread % 32;
  const int32_t block_row = static_cast<int32_t>(blockIdx.x) * tuning::block_rows;
  const int32_t warp_row = block_row + thread / 32 * tuning::warp_rows;
  const int32_t block_last_row = least(block_row + tuning::block_rows, given.num_rows) - 1;
  const int32_t split = static_cast<int32_t>(blockIdx.y);
  for (int32_t item = static_cast<int32_t>(blockIdx.z); item < given.num_items();
       item += static_cast<int32_t>(gridDim.z)) {
    const Element* item_queries = given.queries_of(item);
    const Element* item_keys = given.keys_of(item);
    stationary_rows<Element, HeadDim> queries;
    queries.load(given.head_dim, lane, [&](int32_t i) {
      return warp_row + i < given.num_rows ? given.query(item_queries, warp_row + i) : nullptr;
    });
    int32_t last_key[tuning::row_tiles][2];
    row_sum rows[tuning::row_tiles][2];
    ZIPCACHE_UNROLL
    for (int32_t tile = 0; tile < tuning::row_tiles; ++tile) {
      ZIPCACHE_UNROLL
      for (int32_t upper = 0; upper < 2; ++upper) {
        const int32_t row = warp_row + 16 * tile + 8 * upper + lane / 4;
        last_key[tile][upper] = given.last_key(item, least(row, given.num_rows - 1));
      }
    }
    const int32_t warp_first_seen = given.last_key(item, least(warp_row, given.num_rows - 1));
    const int32_t warp_last_seen =
        given.last_key(item, least(warp_row + tuning::warp_rows, given.num_rows) - 1);
    const int64_t first_key = int64_t{split} * given.keys_per_split;
    const int64_t end_key =
        least<int64_t>(first_key + given.keys_per_split, given.last_key(item, block_last_row) + 1);
    const int32_t num_chunks = static_cast<int32_t>(
        most<int64_t>(0, ceil_div<int64_t>(end_key - first_key, tuning::chunk_rows)));

    const auto begin = [&](int32_t index) {
      const int64_t key = first_key + index * tuning::chunk_rows;
      using copy = chunk_copy<HeadDim>;
      if constexpr (copy::is_regular) {
        const int64_t own = least<int64_t>(key + thread / copy::columns, given.kv_len - 1);
        begin_regular_chunk<HeadDim>(shared[index % 2], thread, given.head_dim,
                                     item_keys + own * given.k.token_stride,
                                     copy::row_step * given.k.token_stride, end_key - key);
      } else {
        begin_chunk<HeadDim>(
            shared[index % 2], thread, given.head_dim, given.k.data, [&](int32_t i) {
              return key + i < end_key ? item_keys + (key + i) * given.k.token_stride : nullptr;
            });
      }
    };

    if (num_chunks > 0) begin(0);
    end_copy_group();
    for (int32_t index = 0; index < num_chunks; ++index) {
      if (index + 1 < num_chunks) begin(index + 1);
      end_copy_group();
      wait_copy_groups<1>();
      __syncthreads();
      const int64_t chunk_key = first_key + index * tuning::chunk_rows;
      const int64_t chunk_end = chunk_key + tuning::chunk_rows;
      if (chunk_key <= warp_last_seen) {
        const bool masked = chunk_end - 1 > warp_first_seen || chunk_end > end_key;
        const auto add = [&](int32_t first, const float(&scores)[tuning::row_tiles][4]) {
          const int32_t key = static_cast<int32_t>(chunk_key) + first + lane % 4 * 2;
          if (masked) {
            add_keys<true>(scores, given.scale, key, last_key, rows);
          } else {
            add_keys<false>(scores, given.scale, key, last_key, rows);
          }
        };
        const Element* chunk = shared[index % 2];
        float even[tuning::row_tiles][4];
        float odd[tuning::row_tiles][4];
        queries.multiply(chunk, lane, even);
#pragma unroll 1
        for (int32_t first = 0; first < tuning::chunk_rows; first += 16) {
          queries.multiply(chunk + (first + 8) * tuning::row_stride, lane, odd);
          add(first, even);
          if (first + 16 < tuning::chunk_rows)
            queries.multiply(chunk + (first + 16) * tuning::row_stride, lane, even);
          add(first + 8, odd);
        }
      }
      __syncthreads();
    }

    ZIPCACHE_UNROLL
    for (int32_t tile = 0; tile < tuning::row_tiles; ++tile) {
      ZIPCACHE_UNROLL
      for (int32_t upper = 0; upper < 2; ++upper) {
        row_sum row = rows[tile][upper];
        ZIPCACHE_UNROLL
        for (int32_t distance = 1; distance < 4; distance *= 2) {
          row = merge(row, row_sum{__shfl_xor_sync(whole_warp, row.reference, distance),
                                   __shfl_xor_sync(whole_warp, row.sum, distance)});
        }
        const int32_t index = warp_row + 16 * tile + 8 * upper + lane / 4;
        if (lane % 4 == 0 && index < given.num_rows) {
          given.partials[(int64_t{item} * given.num_splits + split) * given.num_rows + index] =
              make_float2(row.reference, row.sum);
        }
      }
    }
  }
}

// Grid: x = 256 probe rows, y = KV head of a sequence (striding). Warp: 32 rows. Lane: one row.
// Memory: reads one float2 a split of the context, writes the row's log-sum-exp in base 2.
template <class Element>
__global__ void __launch_bounds__(256) row_lse_kernel(saliency_arguments<Element> given) {
  const int32_t row = static_cast<int32_t>(blockIdx.x * blockDim.x + threadIdx.x);
  if (row >= given.num_rows) return;
  for (int32_t item = static_cast<int32_t>(blockIdx.y); item < given.num_items();
       item += static_cast<int32_t>(gridDim.y)) {
    row_sum total;
    for (int32_t split = 0; split < given.num_splits; ++split) {
      const float2 part =
          given.partials[(int64_t{item} * given.num_splits + split) * given.num_rows + row];
      total = merge(total, row_sum{part.x, part.y});
    }
    given.found_lse[given.lse_index(item, row)] = total.reference + log2f(total.sum);
  }
}

// Grid: x = 256 tokens, y = sequence (striding). Warp: 32 tokens. Lane: one token of every head.
// Memory: reads the heads' sums in ascending order where there are any, writes the scores.
template <class Metric, class Scope, class Element>
__global__ void __launch_bounds__(256) score_kernel(saliency_arguments<Element> given) {
  const int32_t token = static_cast<int32_t>(blockIdx.x * blockDim.x + threadIdx.x);
  if (token >= given.kv_len) return;
  for (int32_t sequence = static_cast<int32_t>(blockIdx.y); sequence < given.batch.num_sequences;
       sequence += static_cast<int32_t>(gridDim.y)) {
    const int64_t first = int64_t{sequence} * given.k.num_heads * given.kv_len + token;
    float sum = 0.0f;
    if (given.sums != nullptr) {
      for (int32_t head = 0; head < given.k.num_heads; ++head)
        sum += given.sums[first + int64_t{head} * given.kv_len];
    }
    const float score =
        Metric::score(sum, visibility_of(given.positions(sequence * given.k.num_heads),
                                         given.num_probes(), token, given.kv_len));
    for (int32_t head = 0; head < given.k.num_heads; ++head)
      given.scores[first + int64_t{head} * given.kv_len] = score;
  }
}

}  // namespace

// --- host
// -----------------------------------------------------------------------------------------

/// Calls action(std::integral_constant) with the head dimension that a kernel is made for: head_dim
/// or the next larger one, whose further channels are zeros.
template <class Action>
void for_head_dim(int32_t head_dim, Action&& action) {
  if (head_dim <= 64) {
    action(std::integral_constant<int, 64>());
  } else if (head_dim <= 96) {
    action(std::integral_constant<int, 96>());
  } else if (head_dim <= 128) {
    action(std::integral_constant<int, 128>());
  } else {
    action(std::integral_constant<int, 256>());
  }
}

/// Lays out what a call needs; `workspace` null counts only.
template <class Metric, class Scope, class Element>
size_t carve_saliency(saliency_arguments<Element>& given, void* workspace) {
  workspace_cursor cursor(workspace);
  const int64_t items = given.num_items();
  if (!Metric::needs_probes || given.num_rows == 0) return 0;
  if (given.lse == nullptr) {
    // As many splits as fill the GPU, of 512 keys at least.
    const int64_t rows =
        given.head_dim <= 128 ? probe_tuning<128>::block_rows : probe_tuning<256>::block_rows;
    const int64_t blocks = items * ceil_div<int64_t>(given.num_rows, rows);
    const int64_t wanted = ceil_div(probe_tuning<128>::target_blocks, blocks);
    const int64_t splits = most<int64_t>(1, least<int64_t>(wanted, ceil_div(given.kv_len, 512)));
    given.keys_per_split =
        static_cast<int32_t>(round_up<int64_t>(ceil_div<int64_t>(given.kv_len, splits), 64));
    given.num_splits = ceil_div(given.kv_len, given.keys_per_split);
    given.found_lse = cursor.take<float>(items * given.num_rows);
    given.partials = cursor.take<float2>(items * given.num_rows * given.num_splits);
  }
  if (Scope::shared_by_heads) given.sums = cursor.take<float>(items * given.kv_len);
  return cursor.taken_bytes();
}

template <class Metric, class Element>
void check_saliency(const saliency_arguments<Element>& given) {
  const auto& q = given.probes.q;
  const auto& k = given.k;
  const auto check_rows_aligned = [](const char* name, const void* data, int64_t head_stride,
                                     int64_t token_stride, int64_t sequence_stride) {
    check_device_pointer(name, data);
    require(reinterpret_cast<uintptr_t>(data) % 16 == 0 && head_stride % 8 == 0 &&
                token_stride % 8 == 0 && sequence_stride % 8 == 0,
            std::string(name) + " and its strides must be aligned to 16 bytes");
  };
  check_device_pointer("scores", given.scores);
  if (q.num_tokens > 0) check_device_pointer("positions", given.probes.positions);
  if (!Metric::needs_probes || q.num_tokens == 0) return;
  require_equal("q.head_dim", q.head_dim, k.head_dim);
  require_between("q.num_heads", q.num_heads, 1, 65536);
  require(q.num_heads % k.num_heads == 0, "q.num_heads must be a multiple of k.num_heads");
  require(q.num_tokens * (q.num_heads / k.num_heads) <= 2147483647 - 1024,
          "there are too many probe rows");
  check_rows_aligned("q.data", q.data, q.head_stride, q.token_stride, given.batch.q_stride);
  check_rows_aligned("k.data", k.data, k.head_stride, k.token_stride, given.batch.k_stride);
  if (given.probes.lse != nullptr) check_device_pointer("lse", given.probes.lse);
}

template <class Metric, class Scope, class Element>
void launch_saliency(cudaStream_t stream, saliency_arguments<Element> given) {
  const auto up_to = [](int64_t count) {
    return static_cast<unsigned>(least<int64_t>(count, 65535));
  };
  const auto token_blocks = static_cast<unsigned>(ceil_div(given.kv_len, 256));
  const bool sums_up = Metric::needs_probes && given.num_rows > 0;
  if (sums_up) {
    for_head_dim(given.head_dim, [&](auto dim) {
      using tuning = probe_tuning<dim>;
      if (given.lse == nullptr) {
        const auto row_blocks = static_cast<unsigned>(ceil_div(given.num_rows, tuning::block_rows));
        const dim3 grid(row_blocks, static_cast<unsigned>(given.num_splits),
                        up_to(given.num_items()));
        row_sum_kernel<dim><<<grid, tuning::threads, 0, stream>>>(given);
        check_launch("saliency: row_sum_kernel");
        const dim3 lse_grid(static_cast<unsigned>(ceil_div(given.num_rows, 256)),
                            up_to(given.num_items()));
        row_lse_kernel<<<lse_grid, 256, 0, stream>>>(given);
        check_launch("saliency: row_lse_kernel");
        given.lse = given.found_lse;
        given.lse_factor = 1.0f;
      }
      const auto key_blocks = static_cast<unsigned>(ceil_div(given.kv_len, tuning::block_rows));
      const dim3 grid(key_blocks, up_to(given.num_items()));
      column_sum_kernel<Metric, Scope, dim><<<grid, tuning::threads, 0, stream>>>(given);
      check_launch("saliency: column_sum_kernel");
    });
  }
  if (!sums_up || Scope::shared_by_heads) {
    const dim3 grid(token_blocks, up_to(given.batch.num_sequences));
    score_kernel<Metric, Scope><<<grid, 256, 0, stream>>>(given);
    check_launch("saliency: score_kernel");
  }
}

template <class Element>
saliency_arguments<Element> plan_saliency(const device_probe_queries<Element>& probes,
                                          tensor_view<const Element> k, float sm_scale,
                                          float* scores, saliency_batch batch) {
  require_between("k.num_tokens", k.num_tokens, int64_t{0}, int64_t{2147483647 - 1024});
  require_between("q.num_tokens", probes.q.num_tokens, int64_t{0}, int64_t{2147483647});
  require_between("k.num_heads", k.num_heads, 1, 65536);
  require_between("batch.num_sequences", batch.num_sequences, 1, 65536);
  require(int64_t{k.num_heads} * batch.num_sequences <= 2147483647,
          "there are too many heads in all sequences");
  check_head_dim(k.head_dim);
  saliency_arguments<Element> given{};
  given.probes = probes;
  given.k = k;
  given.batch = batch;
  given.scale = sm_scale * log2_e;
  given.head_dim = k.head_dim;
  given.group = most(1, probes.q.num_heads / k.num_heads);
  given.group_shift = -1;
  for (int32_t shift = 0; shift < 31; ++shift)
    if (given.group == int32_t{1} << shift) given.group_shift = shift;
  given.num_rows =
      static_cast<int32_t>(least<int64_t>(probes.q.num_tokens * given.group, 2147483647));
  given.kv_len = static_cast<int32_t>(k.num_tokens);
  given.lse_factor = log2_e;
  given.lse = probes.lse;
  given.scores = scores;
  return given;
}

}  // namespace detail

/// @brief Workspace of `saliency` for the same arguments; their pointers do not matter, but whether
/// lse is null does.
template <class Metric, class Scope, class Element>
size_t saliency_workspace_bytes(const device_probe_queries<Element>& probes,
                                tensor_view<const Element> k, saliency_batch batch = {}) {
  auto given = detail::plan_saliency(probes, k, 0.0f, nullptr, batch);
  return detail::carve_saliency<Metric, Scope>(given, nullptr);
}

/// @brief Scores every token of every KV head from the attention that the probe rows give it.
/// @param[in] probes  query rows with their positions among the keys of `k`, ascending and not
/// negative; their lse must be over all keys that the row saw
/// @param[in] k  device memory [num_kv_heads, kv_len, head_dim], half or bfloat16, rows aligned to
/// 16 bytes, as those of probes.q
/// @param[out] scores  device memory [batch.num_sequences, num_kv_heads, kv_len]; under `per_layer`
/// every head gets the sum over the heads
/// @param workspace  saliency_workspace_bytes<Metric, Scope>(probes, k, batch)
/// @throws argument_error  shapes that do not fit, host pointers; nothing was launched
template <class Metric, class Scope, class Element>
void saliency(cuda_backend backend, const device_probe_queries<Element>& probes,
              tensor_view<const Element> k, float sm_scale, float* scores,
              device_workspace workspace, saliency_batch batch = {}) {
  static_assert(std::is_same_v<Element, half> || std::is_same_v<Element, bfloat16>,
                "zipcache: the CUDA backend takes half or bfloat16");
  auto given = detail::plan_saliency(probes, k, sm_scale, scores, batch);
  if (given.kv_len == 0) return;
  detail::check_saliency<Metric>(given);
  detail::check_workspace(workspace, detail::carve_saliency<Metric, Scope>(given, workspace.data));
  detail::check_no_earlier_error();
  detail::launch_saliency<Metric, Scope>(backend.stream, given);
}

}  // namespace zipcache

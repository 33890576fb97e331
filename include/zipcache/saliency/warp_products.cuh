// Products of keys with probe rows by warps: a warp keeps rows of one side in registers, reads the
// other side's through shared memory, which the block fills a chunk ahead, and adds up what it gets
// as it goes. Everywhere from sm_80 on; sm_90a has a faster way (warpgroup_products.cuh).
#pragma once

#include <cstdint>

#include <zipcache/core/numerics.hpp>
#include <zipcache/core/types.hpp>
#include <zipcache/detail/tensor_core.cuh>
#include <zipcache/detail/warp.cuh>
#include <zipcache/saliency/saliency_arguments.cuh>
#include <zipcache/saliency/stationary_rows.cuh>

namespace zipcache::detail {

/// How a block multiplies rows of `HeadDim` channels: rows that stay in registers against chunks of
/// rows that pass through shared memory.
template <int HeadDim>
struct warp_tuning {
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

/// The rows that a warp keeps.
template <class Element, int HeadDim>
using probe_rows = stationary_rows<Element, HeadDim, warp_tuning<HeadDim>::row_tiles>;

/// Products of a warp's rows with eight rows in shared memory: sums[tile] as multiply_add says.
template <class Element, int HeadDim>
__device__ __forceinline__ void multiply(const probe_rows<Element, HeadDim>& rows,
                                         const Element* shared, int32_t lane,
                                         float (&sums)[warp_tuning<HeadDim>::row_tiles][4]) {
  using tuning = warp_tuning<HeadDim>;
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
      multiply_add<Element>(sums[tile], rows.words[tile][step], b[0], b[1]);
    ZIPCACHE_UNROLL
    for (int32_t tile = 0; tile < tuning::row_tiles; ++tile)
      multiply_add<Element>(sums[tile], rows.words[tile][step + 1], b[2], b[3]);
  }
}

/// Rows of a chunk that a thread copies: every `row_step`-th one, from row `first` on.
template <int HeadDim>
struct chunk_copy {
  using tuning = warp_tuning<HeadDim>;
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
  float minus_lse[warp_tuning<HeadDim>::chunk_rows];
  int32_t last_key[warp_tuning<HeadDim>::chunk_rows];
};

/// Adds the probabilities of a chunk's rows to the sums of a warp's keys, lane by lane: sums[tile]
/// are those of keys g and g + 8 of the tile over this lane's columns.
template <bool Masked, class Element, int HeadDim>
__device__ __forceinline__ void add_columns(const probe_rows<Element, HeadDim>& keys,
                                            const Element* shared,
                                            const probe_chunk<HeadDim>& chunk, float scale,
                                            int32_t first_key, int32_t lane,
                                            float (&sums)[warp_tuning<HeadDim>::row_tiles][2]) {
  using tuning = warp_tuning<HeadDim>;
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
  multiply(keys, shared, lane, even);
#pragma unroll 1
  for (int32_t first = 0; first < tuning::chunk_rows - 16; first += 16) {
    multiply(keys, shared + (first + 8) * tuning::row_stride, lane, odd);
    add(first, even);
    multiply(keys, shared + (first + 16) * tuning::row_stride, lane, even);
    add(first + 8, odd);
  }
  constexpr int32_t last = tuning::chunk_rows - 16;
  multiply(keys, shared + (last + 8) * tuning::row_stride, lane, odd);
  add(last, even);
  add(last + 8, odd);
}

/// One KV head's 256 keys (128 beyond 128 channels) a block: grid x = keys, y = KV head of a
/// sequence (striding). A warp has 32 (16) of the keys, against all probe rows that see the block's
/// first key, in chunks; a lane sums of four (two) of them over a quarter of the rows.
template <class Metric, class Scope, int HeadDim, class Element>
__device__ void add_columns_by_warps(const saliency_arguments<Element>& given) {
  using tuning = warp_tuning<HeadDim>;
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
    probe_rows<Element, HeadDim> keys;
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
    ZIPCACHE_UNROLL
    for (int32_t tile = 0; tile < tuning::row_tiles; ++tile) {
      ZIPCACHE_UNROLL
      for (int32_t upper = 0; upper < 2; ++upper) {
        const int32_t key = warp_key + 16 * tile + 8 * upper + lane / 4;
        write_column<Metric, Scope>(given, item, key, lane, sums[tile][upper], [&] {
          return visibility_of(given.positions(item), given.num_probes(), key, given.kv_len);
        });
      }
    }
  }
}

// --- log-sum-exp of the rows
// ----------------------------------------------------------------------
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

/// 256 probe rows (128 beyond 128 channels) of one KV head a block: grid x = rows, y = split of the
/// context, z = KV head of a sequence (striding). A warp has 32 (16) of the rows, against the keys
/// of the split that they see; a lane a row_sum of four (two) of them over a quarter of the keys.
template <int HeadDim, class Element>
__device__ void add_rows_by_warps(const saliency_arguments<Element>& given) {
  using tuning = warp_tuning<HeadDim>;
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
    probe_rows<Element, HeadDim> queries;
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
        multiply(queries, chunk, lane, even);
#pragma unroll 1
        for (int32_t first = 0; first < tuning::chunk_rows; first += 16) {
          multiply(queries, chunk + (first + 8) * tuning::row_stride, lane, odd);
          add(first, even);
          if (first + 16 < tuning::chunk_rows)
            multiply(queries, chunk + (first + 16) * tuning::row_stride, lane, even);
          add(first + 8, odd);
        }
      }
      __syncthreads();
    }

    ZIPCACHE_UNROLL
    for (int32_t tile = 0; tile < tuning::row_tiles; ++tile) {
      ZIPCACHE_UNROLL
      for (int32_t upper = 0; upper < 2; ++upper) {
        const int32_t row = warp_row + 16 * tile + 8 * upper + lane / 4;
        write_row_sum(given, item, split, row, row < given.num_rows, lane, rows[tile][upper]);
      }
    }
  }
}

}  // namespace zipcache::detail

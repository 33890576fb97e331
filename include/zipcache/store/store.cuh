// Storing on the device: keys, values and the salient set of prompts become pages, segment records,
// bitmaps and page table entries of a device_layer. Four launches: class lists and tables, channel
// statistics in chunks of tokens, their end, codes. In: k, v [num_kv_heads, num_tokens, head_dim],
// salient bitmap. Twin: store.hpp.
// @equality same_bytes
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include <zipcache/core/batch.hpp>
#include <zipcache/core/cuda.cuh>
#include <zipcache/core/view.hpp>
#include <zipcache/core/workspace.cuh>
#include <zipcache/detail/warp.cuh>
#include <zipcache/store/device_layer.cuh>
#include <zipcache/store/encode.cuh>
#include <zipcache/store/segment.hpp>

namespace zipcache {
namespace detail {

struct store_tuning {
  static constexpr int32_t prepare_threads = 512;
  static constexpr int32_t statistics_threads = 256;
  static constexpr int32_t finalize_threads = 512;
  static constexpr int32_t encode_threads = 128;
  static constexpr int64_t target_blocks = 1024;  ///< of the statistics launch
};

/// Values that a thread reads at once.
inline constexpr int32_t values_per_load = 8;

template <class Storage>
struct value_vector {
  uint4 words;
  __device__ float operator[](int32_t i) const {
    const uint32_t word = i < 4 ? (i < 2 ? words.x : words.y) : (i < 6 ? words.z : words.w);
    return to_float(Storage{static_cast<uint16_t>(i % 2 == 0 ? word & 0xffffu : word >> 16)});
  }
};

/// Which sides of a prompt have statistics: keys are 0, values 1.
template <class Policies>
struct store_sides {
  using keys = typename Policies::key_quantizer_policy;
  using values = typename Policies::value_quantizer_policy;
  static constexpr bool of_keys = needed_statistics<keys>::any;
  static constexpr bool of_values = needed_statistics<values>::any;
  static constexpr int32_t count = (of_keys ? 1 : 0) + (of_values ? 1 : 0);
  __host__ __device__ static constexpr bool is_key(int32_t side) { return of_keys && side == 0; }
};

/// What all kernels of one call know. A row is one KV head of one sequence.
template <class Policies, class Storage>
struct store_arguments {
  device_layer<Policies, Storage> layer;
  sequence_batch batch;
  tensor_view<const Storage> k;  ///< of the first sequence
  tensor_view<const Storage> v;
  int64_t k_stride;
  int64_t v_stride;
  const uint32_t* salient;  ///< [rows, bitmap_words]
  int64_t bitmap_words;
  int64_t num_tokens;
  int64_t num_salient;
  page_plan plan;
  int64_t tiles_per_page;  ///< at most

  int64_t chunk_tokens;
  int64_t num_chunks;
  int32_t* lists;  ///< [rows, num_tokens]: salient tokens, then regular ones, each ascending
  channel_statistics* partials;  ///< [rows, store_sides::count, num_chunks, head_dim]

  __host__ __device__ int64_t num_rows() const {
    return static_cast<int64_t>(batch.count) * layer.num_kv_heads;
  }
  __device__ int32_t head_of(int64_t row) const {
    return static_cast<int32_t>(row % layer.num_kv_heads);
  }
  __device__ int32_t index_of(int64_t row) const {
    return static_cast<int32_t>(row / layer.num_kv_heads);
  }
  __device__ int32_t sequence_of(int64_t row) const { return batch.first + index_of(row); }
  /// Row of `token` of one side.
  __device__ const Storage* token_row(bool keys, int64_t row, int64_t token) const {
    return keys ? k.row(head_of(row), token) + index_of(row) * k_stride
                : v.row(head_of(row), token) + index_of(row) * v_stride;
  }
  __device__ record_view<Policies, Storage> record(int64_t row) const {
    return {layer.record_of(sequence_of(row), 0, head_of(row)), layer.head_dim};
  }
  /// 32 tokens of one row's bitmap; bits behind the last token are cleared.
  __device__ uint32_t bitmap_word(int64_t row, int64_t word) const {
    const int64_t left = num_tokens - word * 32;
    const uint32_t valid = left >= 32 ? whole_warp : (1u << left) - 1u;
    return salient[row * bitmap_words + word] & valid;
  }
};

// --- class lists, tables, counts
// ------------------------------------------------------------------

/// Writes the tokens of 32 words' bitmap to the class lists; `before` is the number of salient
/// tokens in front of them.
__device__ inline int32_t list_words(int32_t lane, int64_t first_word, uint32_t lane_bits,
                                     int32_t num_words, int32_t before, int64_t num_tokens,
                                     int64_t num_salient, int32_t* list) {
  for (int32_t i = 0; i < num_words; ++i) {
    const uint32_t bits = __shfl_sync(whole_warp, lane_bits, i);
    const int64_t token = (first_word + i) * 32 + lane;
    const int32_t salient_before = before + __popc(bits & ((1u << lane) - 1u));
    const bool is_salient = (bits >> lane & 1u) != 0;
    const int64_t place = is_salient ? salient_before : num_salient + token - salient_before;
    const int64_t end = is_salient ? num_salient : num_tokens;
    if (token < num_tokens && place < end) list[place] = static_cast<int32_t>(token);
    before += __popc(bits);
  }
  return before;
}

/// Salient tokens in words [first, last) of a row, in every lane; copies the words on the way.
template <class Policies, class Storage>
__device__ int32_t count_words(const store_arguments<Policies, Storage>& given, int64_t row,
                               int32_t lane, int64_t first, int64_t last, uint32_t* copy) {
  int32_t count = 0;
  for (int64_t word = first + lane; word < last; word += 32) {
    const uint32_t bits = given.bitmap_word(row, word);
    copy[word] = bits;
    count += __popc(bits);
  }
  return warp_sum(count);
}

/// Fills the token counts of a row's page table and the counts of its sequence.
template <class Policies, class Storage>
__device__ void save_table(const store_arguments<Policies, Storage>& given, int64_t row,
                           int32_t thread, int32_t num_threads) {
  const int32_t sequence = given.sequence_of(row);
  page_entry* table = given.layer.table_of(sequence, given.head_of(row));
  for (int64_t page = thread; page < given.plan.num_pages; page += num_threads) {
    table[page] = given.plan.entry(page, table[page].page, given.num_salient,
                                   given.num_tokens - given.num_salient);
  }
  if (thread == 0 && given.head_of(row) == 0) {
    sequence_counts& counts = given.layer.counts[sequence];
    const int32_t num_pages = static_cast<int32_t>(given.plan.num_pages);
    counts.sealed = counts.sinks + static_cast<int32_t>(given.num_tokens);
    counts.prompt_tokens = static_cast<int32_t>(given.num_tokens);
    counts.prompt_pages = num_pages;
    counts.pages = num_pages;
    counts.segments = given.num_tokens > 0 ? 1 : 0;
  }
}

namespace {

// Grid: one block for each row (KV head of a sequence), striding. Warp: a span of the row's bitmap.
// Lane: a token of the word that its warp is at.
// Memory: one count a warp in shared memory; bitmap read twice, lists written once.
template <class Policies, class Storage>
__global__ void __launch_bounds__(store_tuning::prepare_threads)
    prepare_kernel(store_arguments<Policies, Storage> given) {
  constexpr int32_t num_warps = store_tuning::prepare_threads / 32;
  __shared__ int32_t warp_counts[num_warps];
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  const int32_t warp = thread / 32;
  const int32_t lane = thread % 32;
  const int64_t span = ceil_div<int64_t>(given.bitmap_words, num_warps);
  const int64_t first = least(warp * span, given.bitmap_words);
  const int64_t last = least(first + span, given.bitmap_words);
  for (int64_t row = blockIdx.x; row < given.num_rows(); row += gridDim.x) {
    uint32_t* copy = given.layer.bitmap_of(given.sequence_of(row), given.head_of(row));
    const int32_t own = count_words(given, row, lane, first, last, copy);
    if (lane == 0) warp_counts[warp] = own;
    __syncthreads();
    int32_t before = 0;
    for (int32_t other = 0; other < warp; ++other) before += warp_counts[other];
    for (int64_t word = first; word < last; word += 32) {
      const int32_t num_words = static_cast<int32_t>(least<int64_t>(32, last - word));
      const uint32_t bits = lane < num_words ? given.bitmap_word(row, word + lane) : 0u;
      before = list_words(lane, word, bits, num_words, before, given.num_tokens, given.num_salient,
                          given.lists + row * given.num_tokens);
    }
    save_table(given, row, thread, store_tuning::prepare_threads);
    __syncthreads();
  }
}

}  // namespace

// --- channel statistics
// ---------------------------------------------------------------------------

/// How the threads of a block lie over rows of head_dim values, 16 bytes each.
struct load_grid {
  int32_t columns;  ///< loads in a row
  int32_t rows;     ///< rows at once
  int32_t row;      ///< of this thread; `rows` or more: it has none
  int32_t column;

  __device__ load_grid(int32_t thread, int32_t num_threads, int32_t head_dim)
      : columns(head_dim / values_per_load),
        rows(num_threads / columns),
        row(thread / columns),
        column(thread % columns) {}
};

/// Statistics of this thread's eight channels over the tokens of a chunk that it reads.
template <class Quantizer, class Policies, class Storage>
__device__ void gather_chunk(const store_arguments<Policies, Storage>& given, bool keys,
                             int64_t row, int64_t first, int64_t last, load_grid grid,
                             channel_statistics (&statistics)[values_per_load]) {
  if (grid.row >= grid.rows) return;
#pragma unroll 4
  for (int64_t token = first + grid.row; token < last; token += grid.rows) {
    const Storage* source = given.token_row(keys, row, token) + grid.column * values_per_load;
    const value_vector<Storage> values{*reinterpret_cast<const uint4*>(source)};
    const bool is_salient =
        (given.salient[row * given.bitmap_words + token / 32] >> (token % 32) & 1u) != 0;
    ZIPCACHE_UNROLL
    for (int32_t i = 0; i < values_per_load; ++i)
      add_value<Quantizer>(statistics[i], values[i], is_salient);
  }
}

/// One number of every thread's eight channels, reduced over the block's rows; the result for
/// channel `thread`. shared [rows, head_dim]
template <class Member, class Combine>
__device__ float reduce_rows(float* shared, load_grid grid, int32_t thread, int32_t head_dim,
                             const channel_statistics (&statistics)[values_per_load],
                             const Member& member, const Combine& combine) {
  __syncthreads();
  if (grid.row < grid.rows) {
    ZIPCACHE_UNROLL
    for (int32_t i = 0; i < values_per_load; ++i) {
      shared[grid.row * head_dim + grid.column * values_per_load + i] = member(statistics[i]);
    }
  }
  __syncthreads();
  if (thread >= head_dim) return 0.0f;
  float result = shared[thread];
  for (int32_t row = 1; row < grid.rows; ++row)
    result = combine(result, shared[row * head_dim + thread]);
  return result;
}

template <class Quantizer, class Policies, class Storage>
__device__ void chunk_statistics(const store_arguments<Policies, Storage>& given, int32_t side,
                                 bool keys, int64_t row, float* shared) {
  using needed = needed_statistics<Quantizer>;
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  const int32_t head_dim = given.layer.head_dim;
  const int64_t chunk = blockIdx.x;
  const int64_t first = chunk * given.chunk_tokens;
  const int64_t last = least(first + given.chunk_tokens, given.num_tokens);
  const load_grid grid(thread, store_tuning::statistics_threads, head_dim);
  channel_statistics statistics[values_per_load];
  gather_chunk<Quantizer>(given, keys, row, first, last, grid, statistics);

  const auto lower = [](float a, float b) { return least(a, b); };
  const auto higher = [](float a, float b) { return most(a, b); };
  const auto reduce = [&](const auto& member, const auto& combine) {
    return reduce_rows(shared, grid, thread, head_dim, statistics, member, combine);
  };
  channel_statistics result;
  if constexpr (needed::salient) {
    result.salient.lowest = reduce([](const auto& s) { return s.salient.lowest; }, lower);
    result.salient.highest = reduce([](const auto& s) { return s.salient.highest; }, higher);
  }
  if constexpr (needed::regular) {
    result.regular.lowest = reduce([](const auto& s) { return s.regular.lowest; }, lower);
    result.regular.highest = reduce([](const auto& s) { return s.regular.highest; }, higher);
  }
  if constexpr (needed::largest)
    result.largest = reduce([](const auto& s) { return s.largest; }, higher);
  if (thread < head_dim) {
    const int64_t part = (row * store_sides<Policies>::count + side) * given.num_chunks + chunk;
    given.partials[part * head_dim + thread] = result;
  }
}

namespace {

// Grid: x = chunk of tokens, y = row (striding), z = side that has statistics.
// Warp: 512 neighbouring bytes of rows. Lane: eight channels of every n-th token of the chunk.
// Memory: statistics of eight channels in registers; 8 KiB shared for the reduction over rows.
template <class Policies, class Storage>
__global__ void __launch_bounds__(store_tuning::statistics_threads)
    statistics_kernel(store_arguments<Policies, Storage> given) {
  __shared__ float shared[store_tuning::statistics_threads * values_per_load];
  using sides = store_sides<Policies>;
  const int32_t side = static_cast<int32_t>(blockIdx.z);
  for (int64_t row = blockIdx.y; row < given.num_rows(); row += gridDim.y) {
    if (sides::is_key(side)) {
      if constexpr (sides::of_keys)
        chunk_statistics<typename sides::keys>(given, side, true, row, shared);
    } else {
      if constexpr (sides::of_values)
        chunk_statistics<typename sides::values>(given, side, false, row, shared);
    }
  }
}

// Grid: x = row (striding), y = side that has statistics. Warp: 32 neighbouring channels.
// Lane: one channel of every n-th chunk; the first head_dim threads merge and write the record.
// Memory: one channel_statistics a thread, in shared memory.
template <class Policies, class Storage>
__global__ void __launch_bounds__(store_tuning::finalize_threads)
    finalize_kernel(store_arguments<Policies, Storage> given) {
  __shared__ channel_statistics shared[store_tuning::finalize_threads];
  using sides = store_sides<Policies>;
  const int32_t side = static_cast<int32_t>(blockIdx.y);
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  const int32_t head_dim = given.layer.head_dim;
  const int32_t parts = store_tuning::finalize_threads / head_dim;
  for (int64_t row = blockIdx.x; row < given.num_rows(); row += gridDim.x) {
    const channel_statistics* partials =
        given.partials + (row * sides::count + side) * given.num_chunks * head_dim;
    channel_statistics statistics;
    if (thread / head_dim < parts) {
#pragma unroll 4
      for (int64_t chunk = thread / head_dim; chunk < given.num_chunks; chunk += parts)
        statistics = merge(statistics, partials[chunk * head_dim + thread % head_dim]);
    }
    shared[thread] = statistics;
    __syncthreads();
    if (thread < head_dim) {
      for (int32_t part = 1; part < parts; ++part)
        statistics = merge(statistics, shared[part * head_dim + thread]);
      const record_view<Policies, Storage> record = given.record(row);
      if (sides::is_key(side)) {
        save_channel_parameters<typename sides::keys>(
            statistics, thread, record.template key_pairs<token_class::salient>(),
            record.template key_pairs<token_class::regular>(), record.key_magnitudes());
      } else {
        save_channel_parameters<typename sides::values>(
            statistics, thread, record.template value_pairs<token_class::salient>(),
            record.template value_pairs<token_class::regular>(), record.value_magnitudes());
      }
    }
    __syncthreads();
  }
}

}  // namespace

// --- codes
// ----------------------------------------------------------------------------------------

/// A tile of a row: which tokens, and where its bytes go.
struct tile_place {
  bool is_salient;
  int32_t count;  ///< tokens; 0: there is no such tile
  int64_t first;  ///< of its tokens in the row's list
  int64_t byte_in_page;
};

/// Tile `slot` of page `page`.
template <class Policies, class Storage>
__device__ tile_place place_tile(const store_arguments<Policies, Storage>& given, int64_t page,
                                 int64_t slot) {
  const page_plan& plan = given.plan;
  const int64_t salient_before = plan.salient_before(page);
  const int64_t salient_here = plan.salient_before(page + 1) - salient_before;
  const bool is_salient = slot < salient_here;
  const int64_t other = slot - salient_here;  // among the page's regular tiles
  if (!is_salient && other >= plan.room_beside(salient_here)) return {false, 0, 0, 0};
  const int64_t tile = is_salient ? salient_before + slot : plan.regular_before(page) + other;
  const int64_t class_tokens =
      is_salient ? given.num_salient : given.num_tokens - given.num_salient;
  const int64_t left = class_tokens - tile * tile_tokens;
  return {is_salient, static_cast<int32_t>(most<int64_t>(0, least<int64_t>(left, tile_tokens))),
          (is_salient ? 0 : given.num_salient) + tile * tile_tokens,
          is_salient ? slot * plan.salient_tile_bytes
                     : salient_here * plan.salient_tile_bytes + other * plan.regular_tile_bytes};
}

/// Copies a tile's rows of one side into shared memory.
template <class Policies, class Storage>
__device__ void load_tile_rows(const store_arguments<Policies, Storage>& given, bool keys,
                               int64_t row, const tile_place& place, int32_t thread,
                               Storage* rows) {
  const int32_t columns = given.layer.head_dim / values_per_load;
  const int32_t stride = tile_rows<Storage>::stride_of(given.layer.head_dim);
  const int32_t* list = given.lists + row * given.num_tokens + place.first;
#pragma unroll 4
  for (int32_t i = thread; i < place.count * columns; i += store_tuning::encode_threads) {
    const int32_t column = i % columns * values_per_load;
    // A bitmap with other than num_salient bits leaves holes in the lists; they must not be read
    // as addresses.
    const int64_t token = most<int64_t>(0, least<int64_t>(list[i / columns], given.num_tokens - 1));
    *reinterpret_cast<uint4*>(rows + i / columns * stride + column) =
        *reinterpret_cast<const uint4*>(given.token_row(keys, row, token) + column);
  }
}

/// One side of one tile from rows in shared memory.
template <token_class Class, class Policies, class Storage>
__device__ void encode_staged(const store_arguments<Policies, Storage>& given, bool keys,
                              int64_t row, int32_t count, const Storage* rows, float* scratch,
                              std::byte* bytes) {
  using tile = tile_record<Policies, Class>;
  const int32_t head_dim = given.layer.head_dim;
  const block_team team{static_cast<int32_t>(threadIdx.x), store_tuning::encode_threads};
  const tile_rows<Storage> staged{rows, tile_rows<Storage>::stride_of(head_dim)};
  const record_view<Policies, Storage> record = given.record(row);
  if (keys) {
    encode_tile_side<key_layout, typename tile::key_granularity, tile::key_bits>(
        team, staged, count, head_dim, record.template key_side<Class>(),
        reinterpret_cast<uint32_t*>(bytes),
        reinterpret_cast<affine_params<Storage>*>(bytes + tile::key_pairs_offset(head_dim)),
        scratch);
  } else {
    encode_tile_side<value_layout, typename tile::value_granularity, tile::value_bits>(
        team, staged, count, head_dim, record.template value_side<Class>(),
        reinterpret_cast<uint32_t*>(bytes + tile::value_codes_offset(head_dim)),
        reinterpret_cast<affine_params<Storage>*>(bytes + tile::value_pairs_offset(head_dim)),
        scratch);
  }
}

namespace {

// Grid: x = 2 * (page * tiles_per_page + tile of the page) + side, y = row (striding).
// Warp: rows of its tile into shared memory, then words of the tile. Lane: 16 bytes; four words.
// Memory: 32 padded rows of one side and the scales of their groups in shared memory; every byte
// of k and v is read once, every byte of a tile written once.
template <class Policies, class Storage>
__global__ void __launch_bounds__(store_tuning::encode_threads)
    encode_kernel(store_arguments<Policies, Storage> given) {
  extern __shared__ __align__(16) unsigned char encode_shared[];
  auto* rows = reinterpret_cast<Storage*>(encode_shared);
  auto* scratch =
      reinterpret_cast<float*>(encode_shared + tile_rows<Storage>::bytes(given.layer.head_dim));
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  const bool keys = blockIdx.x % 2 == 0;
  const int64_t page = blockIdx.x / 2 / given.tiles_per_page;
  const tile_place place = place_tile(given, page, blockIdx.x / 2 % given.tiles_per_page);
  if (place.count == 0) return;
  for (int64_t row = blockIdx.y; row < given.num_rows(); row += gridDim.y) {
    load_tile_rows(given, keys, row, place, thread, rows);
    const page_entry entry = given.layer.table_of(given.sequence_of(row), given.head_of(row))[page];
    std::byte* bytes = given.layer.page(entry.page) + place.byte_in_page;
    __syncthreads();
    if (place.is_salient) {
      encode_staged<token_class::salient>(given, keys, row, place.count, rows, scratch, bytes);
    } else {
      encode_staged<token_class::regular>(given, keys, row, place.count, rows, scratch, bytes);
    }
    __syncthreads();
  }
}

}  // namespace

/// Lays out what a call needs; `workspace` null counts only.
template <class Policies, class Storage>
size_t carve_store(store_arguments<Policies, Storage>& given, void* workspace) {
  const int64_t rows = given.num_rows();
  // As many chunks as fill the GPU; the result does not depend on their number.
  const int64_t wanted = ceil_div<int64_t>(given.num_tokens * rows * store_sides<Policies>::count,
                                           store_tuning::target_blocks);
  given.chunk_tokens = most<int64_t>(128, least<int64_t>(1024, round_up<int64_t>(wanted, 32)));
  given.num_chunks = ceil_div(given.num_tokens, given.chunk_tokens);
  workspace_cursor cursor(workspace);
  given.lists = cursor.take<int32_t>(rows * given.num_tokens);
  given.partials = cursor.take<channel_statistics>(rows * store_sides<Policies>::count *
                                                   given.num_chunks * given.layer.head_dim);
  return cursor.taken_bytes();
}

template <class Storage>
void check_rows(const char* name, tensor_view<const Storage> x, int64_t sequence_stride,
                int32_t num_kv_heads, int32_t head_dim) {
  const std::string prefix = name;
  require_equal((prefix + ".num_heads").c_str(), x.num_heads, num_kv_heads);
  require_equal((prefix + ".head_dim").c_str(), x.head_dim, head_dim);
  if (x.num_tokens == 0) return;
  check_device_pointer((prefix + ".data").c_str(), x.data);
  require(reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && x.head_stride % values_per_load == 0 &&
              x.token_stride % values_per_load == 0 && sequence_stride % values_per_load == 0,
          prefix + "'s rows must be aligned to 16 bytes: its data and its strides");
}

template <class Policies, class Storage>
void check_store(const store_arguments<Policies, Storage>& given) {
  const device_layer<Policies, Storage>& layer = given.layer;
  check_granularity<typename Policies::key_quantizer_policy::granularity>(layer.head_dim);
  check_granularity<typename Policies::value_quantizer_policy::granularity>(layer.head_dim);
  require_between("batch.count", given.batch.count, 1, layer.max_sequences);
  require_between("batch.first", given.batch.first, 0, layer.max_sequences - given.batch.count);
  check_rows("k", given.k, given.k_stride, layer.num_kv_heads, layer.head_dim);
  check_rows("v", given.v, given.v_stride, layer.num_kv_heads, layer.head_dim);
  require_between("k.num_tokens", given.k.num_tokens, int64_t{0}, int64_t{2147483647});
  require_equal("v.num_tokens", given.v.num_tokens, given.k.num_tokens);
  require_between("num_salient", given.num_salient, int64_t{0}, given.num_tokens);
  if (given.num_tokens > 0) check_device_pointer("salient", given.salient);
  require(given.bitmap_words <= layer.bitmap_words,
          "the layer's bitmaps have " + std::to_string(layer.bitmap_words) +
              " words a head, but the prompt needs " + std::to_string(given.bitmap_words));
  require(given.plan.num_pages <= layer.max_pages,
          "the layer's page tables have " + std::to_string(layer.max_pages) +
              " pages a head, but the prompt needs " + std::to_string(given.plan.num_pages));
  require(layer.page_bytes % 16 == 0, "page_bytes must be a multiple of 16");
  require(given.plan.num_pages * given.tiles_per_page * 2 <= 2147483647,
          "the prompt has too many tiles");
}

template <class Policies, class Storage>
void launch_store(cudaStream_t stream, const store_arguments<Policies, Storage>& given) {
  using sides = store_sides<Policies>;
  const auto rows = static_cast<unsigned>(least<int64_t>(given.num_rows(), 65535));
  prepare_kernel<<<rows, store_tuning::prepare_threads, 0, stream>>>(given);
  check_launch("store: prepare_kernel");
  if constexpr (sides::count > 0) {
    if (given.num_chunks > 0) {
      const dim3 grid(static_cast<unsigned>(given.num_chunks), rows, sides::count);
      statistics_kernel<<<grid, store_tuning::statistics_threads, 0, stream>>>(given);
      check_launch("store: statistics_kernel");
    }
    finalize_kernel<<<dim3(rows, sides::count), store_tuning::finalize_threads, 0, stream>>>(given);
    check_launch("store: finalize_kernel");
  }
  if (given.plan.num_pages > 0) {
    const int32_t head_dim = given.layer.head_dim;
    const auto tiles = static_cast<unsigned>(given.plan.num_pages * given.tiles_per_page * 2);
    const int32_t shared_bytes =
        tile_rows<Storage>::bytes(head_dim) + 4 * tile_scratch_floats<Policies>(head_dim);
    encode_kernel<<<dim3(tiles, rows), store_tuning::encode_threads,
                    static_cast<size_t>(shared_bytes), stream>>>(given);
    check_launch("store: encode_kernel");
  }
}

template <class Policies, class Storage>
store_arguments<Policies, Storage> plan_store(const device_layer<Policies, Storage>& layer,
                                              sequence_batch batch, int64_t num_tokens,
                                              int64_t num_salient) {
  store_arguments<Policies, Storage> given{};
  given.layer = layer;
  given.batch = batch;
  given.num_tokens = num_tokens;
  given.num_salient = num_salient;
  const segment_shape<Policies> shape{layer.num_kv_heads, layer.head_dim, num_tokens, num_salient};
  given.bitmap_words = shape.bitmap_words();
  given.plan = shape.plan(layer.page_bytes);
  if (given.plan.num_pages > 0) {
    const int64_t fewest = given.plan.salient_tiles / given.plan.num_pages;
    const int64_t largest_room = most<int64_t>(0, given.plan.room_beside(fewest));
    given.tiles_per_page = ceil_div(given.plan.salient_tiles, given.plan.num_pages) +
                           least(largest_room, given.plan.regular_tiles);
  }
  return given;
}

}  // namespace detail

/// @brief Workspace of `store` for `num_sequences` prompts of `num_tokens`.
template <class Policies, class Storage>
size_t store_workspace_bytes(const device_layer<Policies, Storage>& layer, int32_t num_sequences,
                             int64_t num_tokens) {
  detail::store_arguments<Policies, Storage> given{};
  given.layer = layer;
  given.batch.count = num_sequences;
  given.num_tokens = num_tokens;
  return detail::carve_store(given, nullptr);
}

/// @brief Compresses prompts of equal length, one for each sequence of `batch`, each into segment 0
/// of its sequence, whose page numbers are in the layer's table.
/// @param[in] k, v  device memory [num_kv_heads, num_tokens, head_dim] of the first sequence, rows
/// aligned to 16 bytes; the next sequence's are k_stride and v_stride elements further
/// @param[in] salient  device memory [batch.count, num_kv_heads, ceil(num_tokens / 32)]: bit
/// token % 32 of word token / 32 says whether the token is salient; num_salient bits a head
/// @param workspace  store_workspace_bytes(layer, batch.count, num_tokens)
/// Writes pages, the token counts of the table, segment record 0, the bitmaps' first words, and of
/// counts all that the prompt decides (`sealed` is `sinks` plus the prompt's tokens).
/// @throws argument_error  shapes that do not fit, host pointers, a layer with too little room;
/// nothing was launched
/// @equality same_bytes
template <class Policies, class Storage>
void store(cuda_backend backend, const device_layer<Policies, Storage>& layer, sequence_batch batch,
           tensor_view<const Storage> k, tensor_view<const Storage> v, int64_t k_stride,
           int64_t v_stride, const uint32_t* salient, int64_t num_salient,
           device_workspace workspace) {
  detail::require_between("k.num_tokens", k.num_tokens, int64_t{0}, int64_t{2147483647});
  detail::require_between("num_salient", num_salient, int64_t{0}, k.num_tokens);
  detail::check_head_dim(layer.head_dim);
  auto given = detail::plan_store(layer, batch, k.num_tokens, num_salient);
  given.k = k;
  given.v = v;
  given.k_stride = k_stride;
  given.v_stride = v_stride;
  given.salient = salient;
  detail::check_store(given);
  detail::check_workspace(workspace, detail::carve_store(given, workspace.data));
  detail::check_no_earlier_error();
  detail::launch_store(backend.stream, given);
}

/// @brief The same for one sequence.
template <class Policies, class Storage>
void store(cuda_backend backend, const device_layer<Policies, Storage>& layer, int32_t sequence,
           tensor_view<const Storage> k, tensor_view<const Storage> v, const uint32_t* salient,
           int64_t num_salient, device_workspace workspace) {
  store(backend, layer, sequence_batch{sequence, 1}, k, v, 0, 0, salient, num_salient, workspace);
}

}  // namespace zipcache

// Packed codes to floats with AVX2, for every layout and number of bits. Included by attend.hpp.
//
// In every layout of layout.hpp the eight lanes 4 * g + t of one t hold, in the same word and
// field, eight neighbours: tokens g of one octet and channel (keys), or channels g of one octet and
// token (values). So one gather of eight words gives, field by field, eight floats that lie
// together in the block. Where they go is looked up in a plan, made once for a layout and head_dim.
#pragma once

#include <cstdint>
#include <vector>

#include <immintrin.h>

#include <zipcache/core/types.hpp>
#include <zipcache/detail/cpu_features.hpp>
#include <zipcache/store/layout.hpp>

namespace zipcache::detail {

/// For each (word of a lane, t) and field: where in the block its eight values begin; -1 where the
/// field is empty.
template <template <int> class Layout, int Bits>
struct unpack_plan {
  static constexpr int32_t fields = 32 / Bits;
  int32_t head_dim = 0;
  std::vector<int32_t> words;    ///< of lane t: index in the tile
  std::vector<int32_t> targets;  ///< [words, fields]

  void make(int32_t dim, int32_t token_stride, int32_t channel_stride) {
    words.clear();
    targets.clear();
    const int32_t words_per_lane = Layout<Bits>::words_per_lane(dim);
    for (int32_t word = 0; word < words_per_lane; ++word) {
      for (int32_t t = 0; t < 4; ++t) {
        const int32_t index = lane_word_index(t, word, words_per_lane);
        words.push_back(index);
        for (int32_t field = 0; field < fields; ++field) {
          const tile_element e = Layout<Bits>::element(dim, index, field);
          targets.push_back(e.channel < dim ? e.token * token_stride + e.channel * channel_stride
                                            : -1);
        }
      }
    }
    head_dim = dim;
  }
};

/// Eight codes that lie in the low bits as floats. 16-bit codes become their values.
template <int Bits, class Storage>
ZIPCACHE_AVX2 inline __m256 floats_of_codes(__m256i codes) {
  if constexpr (Bits < 16) {
    return _mm256_cvtepi32_ps(codes);
  } else if constexpr (std::is_same_v<Storage, bfloat16>) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(codes, 16));
  } else {
    const __m128i packed =
        _mm_packus_epi32(_mm256_castsi256_si128(codes), _mm256_extracti128_si256(codes, 1));
    return _mm256_cvtph_ps(packed);
  }
}

/// Adds to (or, if `Adds` is false, writes) one plane of codes, each times `Factor`.
template <template <int> class Layout, int Bits, class Storage, bool Adds, int Factor>
ZIPCACHE_AVX2 inline void unpack_plane(const uint32_t* tile, int32_t head_dim, int32_t token_stride,
                                       int32_t channel_stride, float* block) {
  static thread_local unpack_plan<Layout, Bits> plan;
  if (plan.head_dim != head_dim) plan.make(head_dim, token_stride, channel_stride);
  // From lane 4 * g + t to 4 * (g + 1) + t.
  const int32_t stride = lane_word_index(4, 0, Layout<Bits>::words_per_lane(head_dim));
  const __m256i lanes =
      _mm256_mullo_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(stride));
  const __m256i mask = _mm256_set1_epi32((1 << Bits) - 1);
  const int32_t* target = plan.targets.data();
  for (const int32_t first : plan.words) {
    __m256i words = _mm256_i32gather_epi32(reinterpret_cast<const int*>(tile + first), lanes, 4);
    for (int32_t field = 0; field < plan.fields; ++field, ++target) {
      const __m256i codes = _mm256_and_si256(words, mask);
      words = _mm256_srli_epi32(words, Bits);
      if (*target < 0) continue;
      __m256 values = floats_of_codes<Bits, Storage>(codes);
      if constexpr (Adds) {
        values = _mm256_fmadd_ps(values, _mm256_set1_ps(Factor), _mm256_loadu_ps(block + *target));
      }
      _mm256_storeu_ps(block + *target, values);
    }
  }
}

/// load_codes of attend.hpp, but tokens from the tile's count on hold whatever lies there.
template <template <int> class Layout, int Bits, class Storage>
ZIPCACHE_AVX2 inline void unpack_codes(const uint32_t* tile, int32_t head_dim, int32_t token_stride,
                                       int32_t channel_stride, float* block) {
  if constexpr (Bits == 3) {
    unpack_plane<Layout, 2, Storage, false, 1>(tile, head_dim, token_stride, channel_stride, block);
    unpack_plane<Layout, 1, Storage, true, 4>(tile + Layout<2>::words(head_dim), head_dim,
                                              token_stride, channel_stride, block);
  } else {
    unpack_plane<Layout, Bits, Storage, false, 1>(tile, head_dim, token_stride, channel_stride,
                                                  block);
  }
}

template <template <int> class Layout, int Bits, class Storage>
ZIPCACHE_AVX2 void load_codes(avx2_isa, const uint32_t* tile, int32_t head_dim, int32_t count,
                              int32_t token_stride, int32_t channel_stride, float* block) {
  unpack_codes<Layout, Bits, Storage>(tile, head_dim, token_stride, channel_stride, block);
  for (int32_t token = count; token < tile_tokens; ++token) {
    for (int32_t channel = 0; channel < head_dim; ++channel)
      block[token * token_stride + channel * channel_stride] = 0.0f;
  }
}

}  // namespace zipcache::detail

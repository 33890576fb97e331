#include "exact_attention.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <stdexcept>
#include <string>

#include "matrix_product.hpp"
#include "vector_math.hpp"

namespace zipcache_llama {
namespace {

// 64 rows of scores over 4096 tokens are 1 MB, about a core's second-level cache; the triangle
// above the diagonal that is computed in vain is half of 64 columns.
constexpr std::size_t rows_per_block = 64;

void overwrite_from(std::vector<float>& cache, std::size_t from, const float* values,
                    std::size_t count) {
  cache.resize(from);
  cache.insert(cache.end(), values, values + count);
}

}  // namespace

exact_attention::exact_attention(const attention_shape& shape, thread_pool& pool)
    : shape_(shape), pool_(pool), scores_(pool.size()) {
  if (shape.num_layers <= 0 || shape.num_kv_heads <= 0 || shape.head_dim <= 0 ||
      shape.num_qo_heads <= 0 || shape.num_qo_heads % shape.num_kv_heads != 0) {
    throw std::invalid_argument(
        "exact_attention: KV heads have to divide query heads and no size may be zero");
  }
  layers_.resize(static_cast<std::size_t>(shape.num_layers));
}

void exact_attention::attend(int layer, int start, int len, const float* q, const float* k,
                             const float* v, float* out) {
  if (layer < 0 || layer >= shape_.num_layers || len <= 0 || start < 0 || start > length(layer)) {
    throw std::invalid_argument("exact_attention: " + std::to_string(len) + " tokens at position " +
                                std::to_string(start) + " do not continue layer " +
                                std::to_string(layer));
  }
  auto& cache = layers_[static_cast<std::size_t>(layer)];
  const auto rows = static_cast<std::size_t>(len);
  const auto heads = static_cast<std::size_t>(shape_.num_qo_heads);
  const auto kv_size =
      static_cast<std::size_t>(shape_.num_kv_heads) * static_cast<std::size_t>(shape_.head_dim);
  overwrite_from(cache.keys, static_cast<std::size_t>(start) * kv_size, k, rows * kv_size);
  overwrite_from(cache.values, static_cast<std::size_t>(start) * kv_size, v, rows * kv_size);
  lse_.resize(rows * heads);

  const std::size_t blocks = (rows + rows_per_block - 1) / rows_per_block;
  const auto attend_task = [&](std::size_t task, std::size_t worker) {
    // Late rows see the most tokens; the longest tasks come first so that the threads end together.
    const std::size_t first = (blocks - 1 - task / heads) * rows_per_block;
    const query_block block{layer, start, first, std::min(rows_per_block, rows - first),
                            task % heads};
    attend_block(block, q, out, scores_[worker]);
  };
  pool_.run(blocks * heads, attend_task);

  if (observer_) {
    const std::size_t q_size = heads * static_cast<std::size_t>(shape_.head_dim);
    observer_({layer,
               start,
               len,
               {q, rows * q_size},
               cache.keys,
               cache.values,
               lse_,
               {out, rows * q_size}});
  }
}

void exact_attention::attend_block(const query_block& block, const float* q, float* out,
                                   std::vector<float>& scores) {
  const auto heads = static_cast<std::size_t>(shape_.num_qo_heads);
  const auto kv_heads = static_cast<std::size_t>(shape_.num_kv_heads);
  const auto dim = static_cast<std::size_t>(shape_.head_dim);
  const auto& cache = layers_[static_cast<std::size_t>(block.layer)];
  const std::size_t kv_offset = block.head / (heads / kv_heads) * dim;
  const std::size_t kv_stride = kv_heads * dim;
  const std::size_t q_offset = (block.first * heads + block.head) * dim;
  const std::size_t q_stride = heads * dim;
  const std::size_t first_visible =
      static_cast<std::size_t>(block.start) + block.first + 1;  // tokens row 0 sees
  const std::size_t columns = first_visible + block.count - 1;
  const float sm_scale = 1.0F / std::sqrt(static_cast<float>(dim));

  scores.resize(std::max(scores.size(), block.count * columns));
  multiply_transposed(block.count, columns, dim, sm_scale, {q + q_offset, q_stride},
                      {cache.keys.data() + kv_offset, kv_stride}, {scores.data(), columns});

  std::array<float, rows_per_block> inverse_sums;
  for (std::size_t row = 0; row < block.count; ++row) {
    float* p = scores.data() + row * columns;
    const std::size_t visible = first_visible + row;
    const float largest = maximum(p, visible);
    const float sum = exponentiate(p, visible, largest);
    std::fill(p + visible, p + columns, 0.0F);  // the future
    inverse_sums[row] = 1.0F / sum;
    lse_[(block.first + row) * heads + block.head] = largest + std::log(sum);
  }

  multiply(block.count, dim, columns, {scores.data(), columns},
           {cache.values.data() + kv_offset, kv_stride}, {out + q_offset, q_stride});
  // Dividing the head_dim outputs instead of all probabilities.
  for (std::size_t row = 0; row < block.count; ++row) {
    scale(out + q_offset + row * q_stride, inverse_sums[row], dim);
  }
}

int exact_attention::length(int layer) const {
  const auto kv_size =
      static_cast<std::size_t>(shape_.num_kv_heads) * static_cast<std::size_t>(shape_.head_dim);
  return static_cast<int>(layers_[static_cast<std::size_t>(layer)].keys.size() / kv_size);
}

std::span<const float> exact_attention::keys(int layer) const {
  return layers_[static_cast<std::size_t>(layer)].keys;
}

std::span<const float> exact_attention::values(int layer) const {
  return layers_[static_cast<std::size_t>(layer)].values;
}

void exact_attention::reserve(int num_tokens) {
  const auto size = static_cast<std::size_t>(num_tokens) *
                    static_cast<std::size_t>(shape_.num_kv_heads) *
                    static_cast<std::size_t>(shape_.head_dim);
  for (auto& layer : layers_) {
    layer.keys.reserve(size);
    layer.values.reserve(size);
  }
}

void exact_attention::truncate(int length) {
  const auto size = static_cast<std::size_t>(length) *
                    static_cast<std::size_t>(shape_.num_kv_heads) *
                    static_cast<std::size_t>(shape_.head_dim);
  for (auto& layer : layers_) {
    layer.keys.resize(std::min(layer.keys.size(), size));
    layer.values.resize(std::min(layer.values.size(), size));
  }
}

}  // namespace zipcache_llama

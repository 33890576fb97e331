// The only place that calls BLAS.
#pragma once

#include <cstddef>
#include <vector>

#include "thread_pool.hpp"

namespace zipcache_llama {

// Row-major; a weight has one row for each output feature.
struct matrix {
  std::size_t rows = 0;
  std::size_t columns = 0;
  std::vector<float> values;  // [rows, columns]

  const float* data() const { return values.data(); }
  const float* row(std::size_t r) const { return values.data() + r * columns; }
};

// A block inside a larger row-major array: consecutive rows are `stride` elements apart.
struct const_block {
  const float* data;
  std::size_t stride;
};
struct block {
  float* data;
  std::size_t stride;
};

// c [m, n] = alpha · a [m, k] · b [n, k]ᵀ, on the calling thread.
void multiply_transposed(std::size_t m, std::size_t n, std::size_t k, float alpha, const_block a,
                         const_block b, block c);

// c [m, n] = a [m, k] · b [k, n], on the calling thread.
void multiply(std::size_t m, std::size_t n, std::size_t k, const_block a, const_block b, block c);

// y [count, weight.rows] = x [count, weight.columns] · weightᵀ, on the calling thread if `pool` is
// null.
void apply(const matrix& weight, const float* x, std::size_t count, float* y, thread_pool* pool);

}  // namespace zipcache_llama

#include "matrix_product.hpp"

#include <algorithm>
#include <limits>
#include <stdexcept>

#include <cblas.h>

namespace zipcache_llama {
namespace {

blasint blas_size(std::size_t size) {
  if (size > static_cast<std::size_t>(std::numeric_limits<blasint>::max())) {
    throw std::length_error("a matrix is too large for BLAS");
  }
  return static_cast<blasint>(size);
}

// Our own threads split the work, by tokens or by features, so that everything between two products
// is split as well. OpenBLAS's would only compete with them for the cores.
void keep_blas_single_threaded() {
  static const bool done = [] {
    openblas_set_num_threads(1);
    return true;
  }();
  static_cast<void>(done);
}

}  // namespace

void multiply_transposed(std::size_t m, std::size_t n, std::size_t k, float alpha, const_block a,
                         const_block b, block c) {
  keep_blas_single_threaded();
  if (m == 1) {
    cblas_sgemv(CblasRowMajor, CblasNoTrans, blas_size(n), blas_size(k), alpha, b.data,
                blas_size(b.stride), a.data, 1, 0.0F, c.data, 1);
    return;
  }
  cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, blas_size(m), blas_size(n), blas_size(k),
              alpha, a.data, blas_size(a.stride), b.data, blas_size(b.stride), 0.0F, c.data,
              blas_size(c.stride));
}

void multiply(std::size_t m, std::size_t n, std::size_t k, const_block a, const_block b, block c) {
  keep_blas_single_threaded();
  if (m == 1) {
    cblas_sgemv(CblasRowMajor, CblasTrans, blas_size(k), blas_size(n), 1.0F, b.data,
                blas_size(b.stride), a.data, 1, 0.0F, c.data, 1);
    return;
  }
  cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, blas_size(m), blas_size(n), blas_size(k),
              1.0F, a.data, blas_size(a.stride), b.data, blas_size(b.stride), 0.0F, c.data,
              blas_size(c.stride));
}

void apply(const matrix& weight, const float* x, std::size_t count, float* y, thread_pool* pool) {
  const std::size_t pieces = pool == nullptr ? 1 : std::min(pool->size(), weight.rows);
  const auto apply_rows = [&](std::size_t first, std::size_t last) {
    multiply_transposed(count, last - first, weight.columns, 1.0F, {x, weight.columns},
                        {weight.row(first), weight.columns}, {y + first, weight.rows});
  };
  if (pieces == 1) {
    apply_rows(0, weight.rows);
    return;
  }
  pool->run(pieces, [&](std::size_t piece, std::size_t) {
    apply_rows(weight.rows * piece / pieces, weight.rows * (piece + 1) / pieces);
  });
}

}  // namespace zipcache_llama

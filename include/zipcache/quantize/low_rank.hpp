// A low-rank approximation of what a codec leaves over: x = Codec(x) + P Q^T, rank 1 to 16.
// Source: GEAR (2024, arXiv 2403.05527), the residual of one head [tokens, head_dim] by power
// iteration, with a higher rank for the prompt than for the blocks that are streamed after it.
//
// P [tokens, rank] is an orthonormal basis of R Q after three rounds of P <- R Q, Q <- R^T P, so
// that P Q^T is the projection of the residual R on it and never lengthens it. Where the published
// code starts from random numbers, we start from a fixed pseudorandom matrix: the same values give
// the same bytes. P is stored times sqrt(tokens) and Q divided by it, which keeps both within the
// range of the values.
//
// Block: the codec's, then P [num_tokens, rank] and Q^T [rank, head_dim] in 16 bits.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <zipcache/quantize/block_bytes.hpp>
#include <zipcache/quantize/block_codec.hpp>

namespace zipcache {
namespace detail {

/// A row-major matrix of doubles: products of 16-bit values and their sums stay finite.
struct matrix {
  int64_t rows;
  int64_t columns;
  std::vector<double> values = std::vector<double>(static_cast<size_t>(rows * columns), 0.0);

  double& at(int64_t row, int64_t column) {
    return values[static_cast<size_t>(row * columns + column)];
  }
  double at(int64_t row, int64_t column) const {
    return values[static_cast<size_t>(row * columns + column)];
  }
};

/// Numbers in [-1, 1), always the same.
inline matrix fixed_start(int64_t rows, int64_t columns) {
  matrix start{rows, columns};
  for (size_t i = 0; i < start.values.size(); ++i)
    start.values[i] = static_cast<double>(mix64(i) >> 11) * 0x1p-52 - 1.0;
  return start;
}

// These sums decide bytes: fma, so that no compiler rounds them in another way.

/// P <- R Q
inline void multiply(const matrix& r, const matrix& q, matrix& p) {
  p.values.assign(p.values.size(), 0.0);
  for (int64_t row = 0; row < r.rows; ++row) {
    for (int64_t inner = 0; inner < r.columns; ++inner) {
      for (int64_t column = 0; column < q.columns; ++column)
        p.at(row, column) = std::fma(r.at(row, inner), q.at(inner, column), p.at(row, column));
    }
  }
}

/// Q <- R^T P
inline void multiply_transposed(const matrix& r, const matrix& p, matrix& q) {
  q.values.assign(q.values.size(), 0.0);
  for (int64_t row = 0; row < r.rows; ++row) {
    for (int64_t inner = 0; inner < r.columns; ++inner) {
      for (int64_t column = 0; column < p.columns; ++column)
        q.at(inner, column) = std::fma(r.at(row, inner), p.at(row, column), q.at(inner, column));
    }
  }
}

inline double dot_of_columns(const matrix& p, int64_t a, int64_t b) {
  double sum = 0.0;
  for (int64_t row = 0; row < p.rows; ++row) sum = std::fma(p.at(row, a), p.at(row, b), sum);
  return sum;
}

/// Makes the columns orthonormal, by Gram and Schmidt, each column twice against rounding. A column
/// that depends on those before it becomes zero.
inline void orthonormalize(matrix& p) {
  for (int64_t column = 0; column < p.columns; ++column) {
    const double before = std::sqrt(dot_of_columns(p, column, column));
    for (int64_t earlier = 0; earlier < 2 * column; ++earlier) {
      const double dot = dot_of_columns(p, earlier % column, column);
      for (int64_t row = 0; row < p.rows; ++row)
        p.at(row, column) = std::fma(-dot, p.at(row, earlier % column), p.at(row, column));
    }
    const double norm = std::sqrt(dot_of_columns(p, column, column));
    const double factor = norm > 1e-9 * before ? 1.0 / norm : 0.0;
    for (int64_t row = 0; row < p.rows; ++row) p.at(row, column) *= factor;
  }
}

}  // namespace detail

/// `Codec` and the residual that it leaves in `PromptRank` directions for a prompt, `StreamedRank`
/// for a block out of the window. A block has at most as many as it has tokens or channels.
template <class Codec, int PromptRank, int StreamedRank>
struct with_low_rank {
  static_assert(block_codec<Codec>,
                "zipcache: with_low_rank<Codec, ...> needs a block codec like uniform_groups");
  static_assert(PromptRank >= 1 && PromptRank <= 16 && StreamedRank >= 1 && StreamedRank <= 16,
                "zipcache: the rank of a residual is between 1 and 16");
  static constexpr int bits = Codec::bits;
  static constexpr int rounds = 3;

  static block_size size(const block_shape& shape) {
    const block_size inner = Codec::size(shape);
    return {inner.code_bytes,
            inner.parameter_bytes + 2 * rank_of(shape) * (shape.num_tokens + shape.head_dim)};
  }

  template <class Storage>
  static void encode(const float* x, const block_shape& shape, std::byte* out) {
    Codec::template encode<Storage>(x, shape, out);
    std::vector<float> coded(static_cast<size_t>(shape.num_tokens * shape.head_dim));
    Codec::template decode<Storage>(out, shape, 0, shape.num_tokens, coded.data());
    detail::matrix residual{shape.num_tokens, shape.head_dim};
    for (size_t i = 0; i < coded.size(); ++i)
      residual.values[i] = static_cast<double>(finite_or_zero(x[i] - coded[i]));
    save_factors<Storage>(residual, rank_of(shape), out + Codec::size(shape).bytes());
  }

  template <class Storage>
  static void decode(const std::byte* in, const block_shape& shape, int64_t first, int64_t count,
                     float* out) {
    Codec::template decode<Storage>(in, shape, first, count, out);
    const int64_t rank = rank_of(shape);
    const std::byte* p = in + Codec::size(shape).bytes();
    const std::byte* q = p + 2 * rank * shape.num_tokens;
    std::vector<float> direction(static_cast<size_t>(shape.head_dim));
    for (int64_t column = 0; column < rank; ++column) {
      for (int32_t channel = 0; channel < shape.head_dim; ++channel)
        direction[static_cast<size_t>(channel)] =
            to_float(load_number<Storage>(q, column * shape.head_dim + channel));
      for (int64_t token = 0; token < count; ++token) {
        const float weight = to_float(load_number<Storage>(p, (first + token) * rank + column));
        float* row = out + token * shape.head_dim;
        for (int32_t channel = 0; channel < shape.head_dim; ++channel)
          row[channel] += weight * direction[static_cast<size_t>(channel)];
      }
    }
  }

  static std::string name() {
    return Codec::name() + "_rank" + std::to_string(PromptRank) + "_" +
           std::to_string(StreamedRank);
  }

 private:
  static int64_t rank_of(const block_shape& shape) {
    const int64_t wanted = shape.origin == segment_origin::prompt ? PromptRank : StreamedRank;
    return least(wanted, least<int64_t>(shape.num_tokens, shape.head_dim));
  }

  template <class Storage>
  static void save_factors(const detail::matrix& residual, int64_t rank, std::byte* out) {
    detail::matrix p{residual.rows, rank};
    detail::matrix q = detail::fixed_start(residual.columns, rank);
    for (int round = 0; round < rounds; ++round) {
      detail::multiply(residual, q, p);
      detail::orthonormalize(p);
      detail::multiply_transposed(residual, p, q);
    }
    const double root = std::sqrt(static_cast<double>(residual.rows));
    int64_t next = 0;
    const auto save = [&](double x) {
      save_number(out, next++, from_float<Storage>(static_cast<float>(x)));
    };
    for (int64_t row = 0; row < p.rows; ++row)
      for (int64_t column = 0; column < rank; ++column) save(p.at(row, column) * root);
    for (int64_t column = 0; column < rank; ++column)
      for (int64_t row = 0; row < q.rows; ++row) save(q.at(row, column) / root);
  }
};

}  // namespace zipcache

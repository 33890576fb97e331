// The smallest and largest values of every vector kept exactly, beside a codec of the others.
// Source: GEAR (2024, arXiv 2403.05527), sparse part: of every channel over the tokens (keys) or of
// every token over the channels (values) the top and the bottom half of the share; in the codec's
// input the vector's mean is in their place, so that they widen no range.
//
// Every vector has the same number of outliers, the share rounded to the nearest whole number at
// each end, so the size of a block follows from its shape. A vector of the published method spans
// all heads of a layer; ours is of one head, as everything in a segment is.
//
// Block: the codec's, then for every vector its outliers, ascending by index: all values
// [vectors, 2 * per_end] in 16 bits, then all indices in 1, 2 or 4 bytes.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <zipcache/quantize/block_bytes.hpp>
#include <zipcache/quantize/block_codec.hpp>
#include <zipcache/quantize/granularity.hpp>

namespace zipcache {

/// @tparam Axis  `channel`: a vector is one channel over the tokens; `token`: one token over the
/// channels
template <parameter_axis Axis, int PerMille, class Codec>
struct outliers_apart {
  static_assert(block_codec<Codec>,
                "zipcache: outliers_apart<..., Codec> needs a block codec like uniform_groups");
  static_assert(PerMille > 0 && PerMille <= 500,
                "zipcache: a share of outliers is between 1 and 500 per mille");
  static constexpr int bits = Codec::bits;

  static block_size size(const block_shape& shape) {
    const block_size inner = Codec::size(shape);
    const vectors all(shape);
    return {inner.code_bytes + all.number * all.outliers() * (2 + all.index_bytes),
            inner.parameter_bytes};
  }

  template <class Storage>
  static void encode(const float* x, const block_shape& shape, std::byte* out) {
    const vectors all(shape);
    std::vector<float> rest(x, x + shape.num_tokens * shape.head_dim);
    std::byte* values = out + Codec::size(shape).bytes();
    std::byte* indices = values + 2 * all.number * all.outliers();
    for (int64_t vector = 0; vector < all.number; ++vector) {
      const float mean = mean_of(x, all, vector);
      int64_t next = vector * all.outliers();
      for (const int64_t index : find_outliers(x, all, vector)) {
        const int64_t place = all.place(vector, index);
        const float value = finite_or_zero(x[place]);
        save_number(values, next, from_float<Storage>(value));
        all.save_index(indices, next++, index);
        rest[static_cast<size_t>(place)] = mean;
      }
    }
    Codec::template encode<Storage>(rest.data(), shape, out);
  }

  template <class Storage>
  static void decode(const std::byte* in, const block_shape& shape, int64_t first, int64_t count,
                     float* out) {
    Codec::template decode<Storage>(in, shape, first, count, out);
    const vectors all(shape);
    const std::byte* values = in + Codec::size(shape).bytes();
    const std::byte* indices = values + 2 * all.number * all.outliers();
    // Vectors and indices of these tokens: all of both, but for the axis along which tokens lie.
    constexpr bool by_channel = Axis == parameter_axis::channel;
    const int64_t begin = by_channel ? 0 : first;
    const int64_t end = by_channel ? all.number : first + count;
    for (int64_t vector = begin; vector < end; ++vector) {
      const int64_t last = (vector + 1) * all.outliers();
      int64_t entry = vector * all.outliers();
      if (by_channel) entry = all.first_from(indices, entry, last, first);
      for (; entry < last; ++entry) {
        const int64_t index = all.load_index(indices, entry);
        if (by_channel && index >= first + count) break;
        out[all.place(vector, index) - first * shape.head_dim] =
            to_float(load_number<Storage>(values, entry));
      }
    }
  }

  static std::string name() {
    return Codec::name() + "_outliers" + std::to_string(PerMille) +
           (Axis == parameter_axis::channel ? "_by_channel" : "_by_token");
  }

 private:
  /// How a block falls into vectors, and what their outliers take.
  struct vectors {
    int64_t number;
    int64_t length;
    int64_t stride;  ///< between neighbours of a vector
    int64_t step;    ///< between vectors
    int64_t per_end;
    int64_t index_bytes;

    explicit vectors(const block_shape& shape) {
      constexpr bool by_channel = Axis == parameter_axis::channel;
      number = by_channel ? shape.head_dim : shape.num_tokens;
      length = by_channel ? shape.num_tokens : shape.head_dim;
      stride = by_channel ? shape.head_dim : 1;
      step = by_channel ? 1 : shape.head_dim;
      per_end = (length * PerMille + 1000) / 2000;
      index_bytes = length <= 256 ? 1 : (length <= 65536 ? 2 : 4);
    }
    int64_t outliers() const { return 2 * per_end; }
    int64_t place(int64_t vector, int64_t index) const { return vector * step + index * stride; }

    int64_t load_index(const std::byte* indices, int64_t entry) const {
      if (index_bytes == 1) return load_number<uint8_t>(indices, entry);
      if (index_bytes == 2) return load_number<uint16_t>(indices, entry);
      return load_number<uint32_t>(indices, entry);
    }
    void save_index(std::byte* indices, int64_t entry, int64_t index) const {
      if (index_bytes == 1) {
        save_number(indices, entry, static_cast<uint8_t>(index));
      } else if (index_bytes == 2) {
        save_number(indices, entry, static_cast<uint16_t>(index));
      } else {
        save_number(indices, entry, static_cast<uint32_t>(index));
      }
    }
    /// The first entry in [entry, last) whose index is at least `index`.
    int64_t first_from(const std::byte* indices, int64_t entry, int64_t last, int64_t index) const {
      while (entry < last) {
        const int64_t middle = entry + (last - entry) / 2;
        if (load_index(indices, middle) < index) {
          entry = middle + 1;
        } else {
          last = middle;
        }
      }
      return entry;
    }
  };

  static float mean_of(const float* x, const vectors& all, int64_t vector) {
    double sum = 0.0;
    int64_t count = 0;
    for (int64_t index = 0; index < all.length; ++index) {
      const float value = x[all.place(vector, index)];
      if (!is_finite(value)) continue;
      sum += static_cast<double>(value);
      ++count;
    }
    return count > 0 ? static_cast<float>(sum / static_cast<double>(count)) : 0.0f;
  }

  /// Indices of the vector's outliers, ascending. Equal values rank by their index.
  static std::vector<int64_t> find_outliers(const float* x, const vectors& all, int64_t vector) {
    std::vector<int64_t> found;
    if (all.per_end == 0) return found;
    std::vector<std::pair<float, int64_t>> ranked;
    for (int64_t index = 0; index < all.length; ++index)
      ranked.emplace_back(finite_or_zero(x[all.place(vector, index)]), index);
    std::nth_element(ranked.begin(), ranked.begin() + all.per_end - 1, ranked.end());
    std::nth_element(ranked.begin() + all.per_end, ranked.end() - all.per_end, ranked.end());
    for (int64_t i = 0; i < all.per_end; ++i) {
      found.push_back(ranked[static_cast<size_t>(i)].second);
      found.push_back(ranked[ranked.size() - 1 - static_cast<size_t>(i)].second);
    }
    std::sort(found.begin(), found.end());
    return found;
  }
};

}  // namespace zipcache

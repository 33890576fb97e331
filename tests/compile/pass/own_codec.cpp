// A block codec written by a user: values as they are, in 16 bits.
#include <zipcache/zipcache.hpp>

struct sixteen_bits {
  static constexpr int bits = 16;
  static zipcache::block_size size(const zipcache::block_shape& shape) {
    return {2 * shape.num_tokens * shape.head_dim, 0};
  }
  template <class Storage>
  static void encode(const float* x, const zipcache::block_shape& shape, std::byte* out) {
    for (int64_t i = 0; i < shape.num_tokens * shape.head_dim; ++i)
      zipcache::save_number(out, i, zipcache::from_float<Storage>(x[i]));
  }
  template <class Storage>
  static void decode(const std::byte* in, const zipcache::block_shape& shape, int64_t first,
                     int64_t count, float* out) {
    for (int64_t i = 0; i < count * shape.head_dim; ++i)
      out[i] = zipcache::to_float(zipcache::load_number<Storage>(in, first * shape.head_dim + i));
  }
  static std::string name() { return "sixteen_bits"; }
};

using policies = zipcache::presets::paper::with<zipcache::coded_values<sixteen_bits>>;
static_assert(zipcache::block_codec<sixteen_bits>);

template class zipcache::kv_cache<float, policies>;

int main() { return policies::name().empty() ? 1 : 0; }

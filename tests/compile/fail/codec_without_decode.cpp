// expect: zipcache: a block codec needs template <class Storage> static void decode(
#include <zipcache/zipcache.hpp>

struct codec {
  static constexpr int bits = 8;
  static zipcache::block_size size(const zipcache::block_shape& shape) {
    return {shape.num_tokens * shape.head_dim, 0};
  }
  template <class Storage>
  static void encode(const float*, const zipcache::block_shape&, std::byte*) {}
  static std::string name() { return "codec"; }
};

template class zipcache::kv_cache<float,
                                  zipcache::presets::paper::with<zipcache::coded_values<codec>>>;

int main() {}

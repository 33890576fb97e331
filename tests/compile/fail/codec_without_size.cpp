// expect: zipcache: a block codec needs static block_size size(const block_shape&)
#include <zipcache/zipcache.hpp>

struct codec {
  static constexpr int bits = 8;
  template <class Storage>
  static void encode(const float*, const zipcache::block_shape&, std::byte*) {}
  template <class Storage>
  static void decode(const std::byte*, const zipcache::block_shape&, int64_t, int64_t, float*) {}
  static std::string name() { return "codec"; }
};

template class zipcache::kv_cache<float,
                                  zipcache::presets::paper::with<zipcache::coded_keys<codec>>>;

int main() {}

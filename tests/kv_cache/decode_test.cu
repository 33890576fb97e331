// Decoding on CUDA against the CPU under the method's own policies.
#define ZIPCACHE_HEAD_DIMS 64, 128

#include "decode_equality.cuh"

using namespace zipcache_test;
using zipcache::bfloat16;
using f16 = zipcache::half;
using paper = zipcache::presets::paper;

TEST_CASE("kv_cache: prompt and decoding give the CPU's bytes and outputs on CUDA",
          "[kv_cache][cuda]") {
  check_separated<f16, paper>({group_shape(4, 128), 500, 350});
}

TEST_CASE("kv_cache: decoding on CUDA equals the CPU's for any group of query heads",
          "[kv_cache][cuda]") {
  for (const int32_t group : {1, 4, 8})
    check_separated<f16, paper>({group_shape(group, 64), 200, 180});
}

TEST_CASE("kv_cache: decoding on CUDA equals the CPU's in several layers", "[kv_cache][cuda]") {
  zipcache::cache_shape shape = group_shape(2, 64);
  shape.num_layers = 3;
  check_separated<f16, paper>({shape, 100, 200});
}

TEST_CASE("kv_cache: decoding on CUDA equals the CPU's with a window of recent tokens",
          "[kv_cache][cuda]") {
  zipcache::cache_options options;
  options.recent_window = 32;
  for (const int64_t prompt : {10, 500})
    check_separated<f16, paper>({group_shape(4, 64), prompt, 400, options});
}

TEST_CASE("kv_cache: decoding on CUDA equals the CPU's without a prompt", "[kv_cache][cuda]") {
  check_separated<f16, paper>({group_shape(4, 64), 0, 330});
}

TEST_CASE("kv_cache: decoding on CUDA equals the CPU's with small pages and odd intervals",
          "[kv_cache][cuda]") {
  zipcache::cache_options options;
  options.recompress_interval = 45;
  options.page_bytes = 2560;
  check_separated<f16, paper>({group_shape(2, 64), 305, 200, options});
}

TEST_CASE("kv_cache: decoding on CUDA equals the CPU's with intervals beyond shared memory",
          "[kv_cache][cuda]") {
  // 760 x 64 x 2 x 2 bytes and what goes with them are more than the 227 KiB of any GPU.
  zipcache::cache_options options;
  options.recompress_interval = 760;
  options.recent_window = 20;
  check_separated<f16, paper>({group_shape(2, 64), 10, 790, options});
}

TEST_CASE("kv_cache: prompt and decoding in bfloat16 give the CPU's bytes and outputs on CUDA",
          "[kv_cache][cuda]") {
  check_separated<bfloat16, paper>({group_shape(4, 64), 300, 330});
}

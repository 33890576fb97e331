// Decoding on CUDA against the CPU when one policy of the method is another.
#define ZIPCACHE_HEAD_DIMS 64

#include "decode_equality.cuh"

using namespace zipcache_test;
using f16 = zipcache::half;
using paper = zipcache::presets::paper;

TEST_CASE("kv_cache: decoding on CUDA equals the CPU's with scores shared by heads",
          "[kv_cache][cuda]") {
  check_separated<f16, paper::with<zipcache::per_layer>>({group_shape(4, 64), 200, 330});
}

TEST_CASE("kv_cache: decoding on CUDA equals the CPU's with sinks", "[kv_cache][cuda]") {
  using with_sinks = paper::with<zipcache::sink_tokens<4>>;
  check_separated<f16, with_sinks>({group_shape(4, 64), 200, 330});
  // Sinks come from the prompt, from the first interval, from both, or from several intervals.
  zipcache::cache_options options;
  options.recompress_interval = 3;
  for (const int64_t prompt : {0, 1, 3, 4, 5}) {
    check_separated<f16, with_sinks>({group_shape(2, 64), prompt, 170});
    check_separated<f16, with_sinks>({group_shape(2, 64), prompt, 20, options});
  }
  options.recompress_interval = 160;
  options.recent_window = 32;
  check_separated<f16, with_sinks>({group_shape(2, 64), 20, 400, options});
}

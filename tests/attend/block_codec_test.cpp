// Attention where a side is coded in blocks. Bounds: support/attention_check.hpp.
#include <zipcache/attend/attend.hpp>

#include "support/attention_check.hpp"
#include "support/axes.hpp"
#include "support/every_cpu.hpp"

using zipcache_test::check_attention;
using zipcache_test::content;
using zipcache_test::with_every_cpu;
namespace axes = zipcache_test::axes;

TEMPLATE_LIST_TEST_CASE("attend: block codecs equal attention over the dequantized values",
                        "[attend][block_codec]", axes::block_codecs) {
  for (const auto& [num_tokens, num_salient] : zipcache_test::segment_sizes)
    check_attention<TestType>({1, num_tokens, num_salient, 32}, 2);
  with_every_cpu([] {
    check_attention<TestType>({1, 100, 60, 64}, 2);
    check_attention<TestType>({2, 70, 0, 48}, 3, 2);
    check_attention<TestType>({2, 140, 0, 128, content::outlier_channels}, 4);
  });
}

TEMPLATE_LIST_TEST_CASE("attend: block codecs in bfloat16 and in pages that cut blocks",
                        "[attend][block_codec]", axes::block_codecs) {
  check_attention<TestType, zipcache::bfloat16>({1, 100, 40, 64}, 2);
  for (const int64_t tiles_in_page : {1, 2, 7}) {
    zipcache_test::token_shape shape{2, 150, 50, 32};
    shape.tiles_in_page = tiles_in_page;
    check_attention<TestType>(shape, 2);
  }
}

// Everything that a C++20 compiler needs. In data-flow order:
//   quantize  saliency  select  store  attend  stream  ->  kv_cache
#pragma once

#include <zipcache/kv_cache.hpp>
#include <zipcache/policy/presets.hpp>
#include <zipcache/store/paper_ratio.hpp>
#include <zipcache/version.hpp>

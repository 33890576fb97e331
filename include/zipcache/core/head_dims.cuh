// Kernels are compiled for a list of head dimensions: all multiples of 16 up to 256, unless
// ZIPCACHE_HEAD_DIMS names fewer (`#define ZIPCACHE_HEAD_DIMS 64, 128` before the first include
// compiles in a fraction of the time).
#pragma once

#include <cstdint>
#include <string>

#include <zipcache/core/error.hpp>
#include <zipcache/core/shape.hpp>

#ifndef ZIPCACHE_HEAD_DIMS
#define ZIPCACHE_HEAD_DIMS \
  16, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240, 256
#endif

namespace zipcache::detail {

template <int32_t... HeadDims>
struct head_dim_list {
  static_assert(((HeadDims >= 16 && HeadDims <= 256 && HeadDims % 16 == 0) && ...),
                "zipcache: ZIPCACHE_HEAD_DIMS lists multiples of 16 from 16 to 256");

  template <class Visit>
  static bool visit(int32_t head_dim, Visit&& call) {
    return ((head_dim == HeadDims ? (call.template operator()<HeadDims>(), true) : false) || ...);
  }
  static std::string names() {
    std::string list;
    ((list += (list.empty() ? "" : ", ") + std::to_string(HeadDims)), ...);
    return list;
  }
};

using compiled_head_dims = head_dim_list<ZIPCACHE_HEAD_DIMS>;

/// Calls visit.operator()<HeadDim>() for a head_dim that is known at run time.
/// @throws argument_error  a head_dim that is not supported, or not compiled
template <class Visit>
void dispatch_head_dim(int32_t head_dim, Visit&& visit) {
  check_head_dim(head_dim);
  if (!compiled_head_dims::visit(head_dim, visit)) {
    refuse("head_dim", head_dim,
           ("one of those that ZIPCACHE_HEAD_DIMS lists: " + compiled_head_dims::names()).c_str());
  }
}

}  // namespace zipcache::detail

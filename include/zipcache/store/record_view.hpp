// The segment record of one head as the arrays that are in it. Format: tile.hpp.
#pragma once

#include <cstddef>
#include <cstdint>

#include <zipcache/store/encode.hpp>
#include <zipcache/store/segment.hpp>

namespace zipcache::detail {

/// A head's segment record, typed. Pointers are null for parts that the policies do not have.
template <class Policies, class Storage>
struct record_view {
  std::byte* bytes;
  int32_t head_dim;

  template <token_class Class>
  ZIPCACHE_HOST_DEVICE affine_params<Storage>* key_pairs() const {
    return reinterpret_cast<affine_params<Storage>*>(
        bytes + segment_record<Policies>::template key_pairs_offset<Class>(head_dim));
  }
  template <token_class Class>
  ZIPCACHE_HOST_DEVICE affine_params<Storage>* value_pairs() const {
    return reinterpret_cast<affine_params<Storage>*>(
        bytes + segment_record<Policies>::template value_pairs_offset<Class>(head_dim));
  }
  ZIPCACHE_HOST_DEVICE Storage* key_magnitudes() const {
    return reinterpret_cast<Storage*>(bytes +
                                      segment_record<Policies>::key_magnitudes_offset(head_dim));
  }
  ZIPCACHE_HOST_DEVICE Storage* value_magnitudes() const {
    return reinterpret_cast<Storage*>(bytes +
                                      segment_record<Policies>::value_magnitudes_offset(head_dim));
  }

  template <token_class Class>
  ZIPCACHE_HOST_DEVICE side_parameters<Storage> key_side() const {
    return {key_pairs<Class>(), key_magnitudes()};
  }
  template <token_class Class>
  ZIPCACHE_HOST_DEVICE side_parameters<Storage> value_side() const {
    return {value_pairs<Class>(), value_magnitudes()};
  }
};

template <class Policies, class Storage>
record_view<Policies, Storage> view_record(const segment<Policies>& sealed, int32_t head) {
  // The view is shared by writers and readers; readers hold a const segment and only read.
  return {const_cast<std::byte*>(sealed.record(head)), sealed.shape.head_dim};
}

}  // namespace zipcache::detail

// Device memory that a stage works in. The caller owns it, so that nothing allocates while a stage
// runs or a graph is replayed; `<stage>_workspace_bytes` says how much a call needs. Stages that
// run one after the other on a stream may share it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include <zipcache/core/cuda.cuh>
#include <zipcache/core/numerics.hpp>

namespace zipcache {

/// @brief `bytes` of device memory at `data`, which is aligned to 256 bytes as cudaMalloc does.
struct device_workspace {
  void* data = nullptr;
  size_t bytes = 0;
};

namespace detail {

/// Takes arrays from a workspace one behind the other. From null it only counts, so the same code
/// says how large a workspace must be.
class workspace_cursor {
 public:
  explicit workspace_cursor(void* data) : data_(static_cast<std::byte*>(data)) {}

  template <class T>
  T* take(int64_t count) {
    std::byte* const start = data_ == nullptr ? nullptr : data_ + taken_;
    taken_ += round_up<size_t>(static_cast<size_t>(count) * sizeof(T), alignment);
    return reinterpret_cast<T*>(start);
  }
  size_t taken_bytes() const { return taken_; }

  static constexpr size_t alignment = 256;

 private:
  std::byte* data_;
  size_t taken_ = 0;
};

/// @throws argument_error  too small, not aligned, not device memory
inline void check_workspace(const device_workspace& workspace, size_t needed_bytes) {
  if (needed_bytes == 0) return;
  check_device_pointer("workspace.data", workspace.data);
  require(workspace.bytes >= needed_bytes, "workspace.bytes is " + std::to_string(workspace.bytes) +
                                               ", but must be at least " +
                                               std::to_string(needed_bytes));
  require(reinterpret_cast<uintptr_t>(workspace.data) % workspace_cursor::alignment == 0,
          "workspace.data must be aligned to 256 bytes");
}

}  // namespace detail
}  // namespace zipcache

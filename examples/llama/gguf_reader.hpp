// Cursor over the bytes of a GGUF header: reads little-endian scalars and strings and never passes
// the end.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

#include "gguf.hpp"

namespace zipcache_llama {

// Little-endian load from unaligned bytes.
template <class T>
T load_little_endian(const std::byte* from) {
  static_assert(std::is_arithmetic_v<T>, "only numbers have a byte order");
  std::array<std::byte, sizeof(T)> raw;
  for (std::size_t i = 0; i < sizeof(T); ++i) {
    raw[i] = from[std::endian::native == std::endian::little ? i : sizeof(T) - 1 - i];
  }
  return std::bit_cast<T>(raw);
}

class gguf_reader {
 public:
  gguf_reader(std::span<const std::byte> bytes, const std::string& name)
      : bytes_(bytes), name_(name) {}

  std::uint64_t position() const { return position_; }
  std::uint64_t remaining() const { return bytes_.size() - position_; }

  template <class T>
  T scalar(const char* what) {
    return load_little_endian<T>(take(sizeof(T), what).data());
  }

  std::string_view string(const char* what, std::uint64_t max_bytes) {
    const auto length = scalar<std::uint64_t>(what);
    if (length > max_bytes) {
      fail(std::string(what) + " of " + std::to_string(length) +
           " bytes is longer than the limit of " + std::to_string(max_bytes));
    }
    const auto text = take(length, what);
    return {reinterpret_cast<const char*>(text.data()), text.size()};
  }

  std::span<const std::byte> take(std::uint64_t size, const char* what) {
    if (size > remaining()) {
      fail(std::string(what) + " needs " + std::to_string(size) + " bytes, the file has " +
           std::to_string(remaining()) + " left");
    }
    const auto taken =
        bytes_.subspan(static_cast<std::size_t>(position_), static_cast<std::size_t>(size));
    position_ += size;
    return taken;
  }

  // A count is only believed if that many of the smallest possible entries would still fit.
  std::uint64_t count(const char* what, std::uint64_t max_count, std::uint64_t min_entry_bytes) {
    return checked_count(scalar<std::uint64_t>(what), what, max_count, min_entry_bytes);
  }

  std::uint64_t checked_count(std::uint64_t value, const char* what, std::uint64_t max_count,
                              std::uint64_t min_entry_bytes) const {
    if (value > max_count) {
      fail(std::string(what) + " of " + std::to_string(value) + " is above the limit of " +
           std::to_string(max_count));
    }
    if (value > remaining() / min_entry_bytes) {
      fail(std::string(what) + " of " + std::to_string(value) + " cannot fit in the " +
           std::to_string(remaining()) + " bytes left");
    }
    return value;
  }

  [[noreturn]] void fail(const std::string& what) const {
    throw gguf_error(name_ + ": at byte " + std::to_string(position_) + ": " + what);
  }

 private:
  std::span<const std::byte> bytes_;
  const std::string& name_;
  std::uint64_t position_ = 0;  // <= bytes_.size()
};

}  // namespace zipcache_llama

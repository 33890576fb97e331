// Builds GGUF files in memory, right or deliberately wrong.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "half.hpp"
#include "random.hpp"

namespace zipcache_llama_test {

using bytes = std::vector<std::byte>;

template <class T>
void put(bytes& to, T value) {
  const std::size_t at = to.size();
  to.resize(at + sizeof(T));
  std::memcpy(to.data() + at, &value, sizeof(T));
}

inline void put_string(bytes& to, std::string_view text) {
  put<std::uint64_t>(to, text.size());
  for (const char c : text) {
    to.push_back(static_cast<std::byte>(c));
  }
}

class gguf_writer {
 public:
  void unsigned_integer(std::string_view key, std::uint32_t value) {
    entry(key, 4);
    put(metadata_, value);
  }
  void real(std::string_view key, float value) {
    entry(key, 6);
    put(metadata_, value);
  }
  void string(std::string_view key, std::string_view value) {
    entry(key, 8);
    put_string(metadata_, value);
  }
  void strings(std::string_view key, const std::vector<std::string>& values) {
    entry(key, 9);
    put<std::uint32_t>(metadata_, 8);
    put<std::uint64_t>(metadata_, values.size());
    for (const auto& value : values) {
      put_string(metadata_, value);
    }
  }
  void integers(std::string_view key, const std::vector<std::int32_t>& values) {
    entry(key, 9);
    put<std::uint32_t>(metadata_, 5);
    put<std::uint64_t>(metadata_, values.size());
    for (const auto value : values) {
      put(metadata_, value);
    }
  }
  // Any entry, its value spelled by the caller.
  void raw(std::string_view key, std::uint32_t type, const bytes& value) {
    entry(key, type);
    metadata_.insert(metadata_.end(), value.begin(), value.end());
  }

  void tensor(std::string_view name, const std::vector<std::uint64_t>& shape,
              const std::vector<float>& values) {
    bytes data;
    for (const float value : values) {
      put(data, value);
    }
    raw_tensor(name, shape, 0, data_.size(), data);
  }
  // Any table entry; `data` follows the data so far and is padded.
  void raw_tensor(std::string_view name, const std::vector<std::uint64_t>& shape,
                  std::uint32_t type, std::uint64_t offset, const bytes& data) {
    put_string(tensors_, name);
    put<std::uint32_t>(tensors_, static_cast<std::uint32_t>(shape.size()));
    for (const auto extent : shape) {
      put(tensors_, extent);
    }
    put(tensors_, type);
    put(tensors_, offset);
    data_.insert(data_.end(), data.begin(), data.end());
    data_.resize((data_.size() + 31) / 32 * 32);
    ++num_tensors;
  }

  bytes header() const {
    bytes file;
    for (const char c : std::string_view("GGUF")) {
      file.push_back(static_cast<std::byte>(c));
    }
    put(file, version);
    put(file, num_tensors);
    put(file, num_entries);
    file.insert(file.end(), metadata_.begin(), metadata_.end());
    file.insert(file.end(), tensors_.begin(), tensors_.end());
    return file;
  }
  bytes file() const {
    bytes file = header();
    file.resize((file.size() + 31) / 32 * 32);
    file.insert(file.end(), data_.begin(), data_.end());
    return file;
  }
  std::uint64_t data_size() const { return data_.size(); }

  std::uint32_t version = 3;
  std::uint64_t num_tensors = 0;
  std::uint64_t num_entries = 0;

 private:
  void entry(std::string_view key, std::uint32_t type) {
    put_string(metadata_, key);
    put(metadata_, type);
    ++num_entries;
  }

  bytes metadata_;
  bytes tensors_;
  bytes data_;
};

}  // namespace zipcache_llama_test

// Reader of GGUF files, versions 2 and 3 (little-endian): metadata and tensor table.
//
// The file is taken as hostile. It is read once into memory that nobody else can change; every
// count, length and offset is checked against the bytes that are really there before anything is
// allocated for it. What is returned (strings, arrays, tensor bytes) are views into that memory and
// live as long as the gguf_file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_map>
#include <variant>
#include <vector>

#include "tensor_type.hpp"

namespace zipcache_llama {

// The message starts with the name of the file.
class gguf_error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

enum class gguf_type : std::uint32_t {
  uint8 = 0,
  int8 = 1,
  uint16 = 2,
  int16 = 3,
  uint32 = 4,
  int32 = 5,
  float32 = 6,
  boolean = 7,
  string = 8,
  array = 9,
  uint64 = 10,
  int64 = 11,
  float64 = 12,
};

struct gguf_value;

// Elements of a fixed size stay packed in the file's bytes; an element costs no more memory than in
// the file.
struct gguf_array {
  gguf_type element_type = gguf_type::uint8;
  std::uint64_t count = 0;
  std::span<const std::byte> packed;      // numbers and booleans, little-endian
  std::vector<std::string_view> strings;  // element_type == string
  std::vector<gguf_value> arrays;         // element_type == array
};

// Integers are widened to 64 bits and floats to double; `type` keeps what the file said.
struct gguf_value {
  gguf_type type = gguf_type::uint8;
  std::variant<std::uint64_t, std::int64_t, double, bool, std::string_view, gguf_array> content;
};

struct tensor_info {
  std::string name;
  tensor_type type = tensor_type::f32;
  std::vector<std::uint64_t> shape;  // GGUF order: shape[0] is the contiguous dimension
  std::uint64_t num_elements = 0;
  std::span<const std::byte> data;
};

// What a header may ask for at most, however large the file is.
struct gguf_limits {
  std::uint64_t max_file_bytes = std::uint64_t{64} << 30;
  std::uint64_t max_metadata = 65'536;
  std::uint64_t max_tensors = 65'536;
  std::uint64_t max_key_bytes = 65'535;
  std::uint64_t max_tensor_name_bytes = 64;
  std::uint64_t max_array_elements = std::uint64_t{1} << 26;
  int max_array_depth = 4;
};

class gguf_file {
 public:
  // @throws gguf_error
  static gguf_file open(const std::filesystem::path& path, const gguf_limits& limits = {});
  // For bytes that are already in memory (tests); `name` stands in the messages.
  static gguf_file parse(std::span<const std::byte> bytes, std::string name,
                         const gguf_limits& limits = {});

  const std::string& name() const { return name_; }
  std::uint32_t version() const { return version_; }
  std::uint64_t alignment() const { return alignment_; }
  const std::vector<std::pair<std::string, gguf_value>>& metadata() const {
    return metadata_;
  }                                                                     // in file order
  const std::vector<tensor_info>& tensors() const { return tensors_; }  // in file order

  const gguf_value* find(std::string_view key) const;
  const tensor_info* find_tensor(std::string_view name) const;

  // nullopt if the key is absent; gguf_error if it holds another kind of value.
  std::optional<std::uint64_t> unsigned_integer(std::string_view key) const;
  std::optional<double> real(std::string_view key) const;
  std::optional<bool> boolean(std::string_view key) const;
  std::optional<std::string_view> string(std::string_view key) const;
  std::optional<std::span<const std::string_view>> strings(std::string_view key) const;
  std::optional<std::vector<std::int64_t>> integers(std::string_view key) const;

  // gguf_error naming this file.
  [[noreturn]] void fail(const std::string& what) const;

 private:
  gguf_file() = default;
  void read(std::unique_ptr<std::byte[]> bytes, std::size_t size, const gguf_limits& limits);
  void place_tensors(std::span<const std::byte> bytes, std::uint64_t header_end,
                     const std::vector<std::uint64_t>& offsets);
  [[noreturn]] void fail_type(std::string_view key, const char* wanted, gguf_type found) const;

  std::string name_;
  std::uint32_t version_ = 0;
  std::uint64_t alignment_ = 32;
  std::unique_ptr<std::byte[]> bytes_;
  std::vector<std::pair<std::string, gguf_value>> metadata_;
  std::vector<tensor_info> tensors_;
  std::unordered_map<std::string_view, std::size_t> metadata_index_;  // keys are views into bytes_
  std::unordered_map<std::string_view, std::size_t> tensor_index_;
};

}  // namespace zipcache_llama

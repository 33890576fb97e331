#include "gguf.hpp"

#include <algorithm>
#include <cstring>
#include <fstream>
#include <limits>
#include <new>
#include <utility>

#include "gguf_reader.hpp"

namespace zipcache_llama {
namespace {

constexpr std::string_view magic = "GGUF";
constexpr std::uint64_t min_metadata_bytes = 8 + 4 + 1;  // key length, type, smallest value
constexpr std::uint64_t min_tensor_bytes =
    8 + 4 + 8 + 4 + 8;  // name length, rank, one dimension, type, offset
constexpr std::uint32_t max_rank = 4;
constexpr std::uint64_t max_alignment = std::uint64_t{1} << 20;

const char* type_name(gguf_type type) {
  switch (type) {
    case gguf_type::uint8:
      return "uint8";
    case gguf_type::int8:
      return "int8";
    case gguf_type::uint16:
      return "uint16";
    case gguf_type::int16:
      return "int16";
    case gguf_type::uint32:
      return "uint32";
    case gguf_type::int32:
      return "int32";
    case gguf_type::float32:
      return "float32";
    case gguf_type::boolean:
      return "bool";
    case gguf_type::string:
      return "string";
    case gguf_type::array:
      return "array";
    case gguf_type::uint64:
      return "uint64";
    case gguf_type::int64:
      return "int64";
    case gguf_type::float64:
      return "float64";
  }
  return "unknown";
}

gguf_type read_type(gguf_reader& reader) {
  const auto type = reader.scalar<std::uint32_t>("value type");
  if (type > static_cast<std::uint32_t>(gguf_type::float64)) {
    reader.fail("unknown value type " + std::to_string(type));
  }
  return static_cast<gguf_type>(type);
}

// Bytes of one array element in the file; for strings and arrays the least one can take.
std::uint64_t element_bytes(gguf_type type) {
  switch (type) {
    case gguf_type::uint8:
    case gguf_type::int8:
    case gguf_type::boolean:
      return 1;
    case gguf_type::uint16:
    case gguf_type::int16:
      return 2;
    case gguf_type::uint32:
    case gguf_type::int32:
    case gguf_type::float32:
      return 4;
    case gguf_type::uint64:
    case gguf_type::int64:
    case gguf_type::float64:
      return 8;
    case gguf_type::string:
      return 8;
    case gguf_type::array:
      return 4 + 8;
  }
  return 1;
}

bool read_boolean(gguf_reader& reader) {
  const auto value = reader.scalar<std::uint8_t>("boolean");
  if (value > 1) {
    reader.fail("boolean holds " + std::to_string(value));
  }
  return value == 1;
}

gguf_value read_value(gguf_reader& reader, gguf_type type, const gguf_limits& limits, int depth);

gguf_array read_array(gguf_reader& reader, const gguf_limits& limits, int depth) {
  if (depth >= limits.max_array_depth) {
    reader.fail("arrays nested deeper than " + std::to_string(limits.max_array_depth));
  }
  gguf_array array;
  array.element_type = read_type(reader);
  array.count =
      reader.count("array length", limits.max_array_elements, element_bytes(array.element_type));
  if (array.element_type == gguf_type::string) {
    array.strings.reserve(static_cast<std::size_t>(array.count));
    for (std::uint64_t i = 0; i < array.count; ++i) {
      array.strings.push_back(reader.string("string in array", reader.remaining()));
    }
  } else if (array.element_type == gguf_type::array) {
    // No reserve: a nested array takes more memory than its 12 bytes in the file.
    for (std::uint64_t i = 0; i < array.count; ++i) {
      array.arrays.push_back(read_value(reader, gguf_type::array, limits, depth + 1));
    }
  } else {
    array.packed = reader.take(array.count * element_bytes(array.element_type), "array");
  }
  return array;
}

gguf_value read_value(gguf_reader& reader, gguf_type type, const gguf_limits& limits, int depth) {
  gguf_value value;
  value.type = type;
  switch (type) {
    case gguf_type::uint8:
      value.content = std::uint64_t{reader.scalar<std::uint8_t>("uint8")};
      break;
    case gguf_type::uint16:
      value.content = std::uint64_t{reader.scalar<std::uint16_t>("uint16")};
      break;
    case gguf_type::uint32:
      value.content = std::uint64_t{reader.scalar<std::uint32_t>("uint32")};
      break;
    case gguf_type::uint64:
      value.content = reader.scalar<std::uint64_t>("uint64");
      break;
    case gguf_type::int8:
      value.content = std::int64_t{reader.scalar<std::int8_t>("int8")};
      break;
    case gguf_type::int16:
      value.content = std::int64_t{reader.scalar<std::int16_t>("int16")};
      break;
    case gguf_type::int32:
      value.content = std::int64_t{reader.scalar<std::int32_t>("int32")};
      break;
    case gguf_type::int64:
      value.content = reader.scalar<std::int64_t>("int64");
      break;
    case gguf_type::float32:
      value.content = double{reader.scalar<float>("float32")};
      break;
    case gguf_type::float64:
      value.content = reader.scalar<double>("float64");
      break;
    case gguf_type::boolean:
      value.content = read_boolean(reader);
      break;
    case gguf_type::string:
      value.content = reader.string("string", reader.remaining());
      break;
    case gguf_type::array:
      value.content = read_array(reader, limits, depth);
      break;
  }
  return value;
}

// Reads name, shape and type; returns the offset into the data section.
std::uint64_t read_tensor(gguf_reader& reader, const gguf_limits& limits, tensor_info& tensor) {
  tensor.name = reader.string("tensor name", limits.max_tensor_name_bytes);
  const std::string what = "tensor '" + tensor.name + "'";
  const auto rank = reader.scalar<std::uint32_t>("tensor rank");
  if (rank == 0 || rank > max_rank) {
    reader.fail(what + " has " + std::to_string(rank) + " dimensions, expected 1 to 4");
  }
  tensor.num_elements = 1;
  for (std::uint32_t i = 0; i < rank; ++i) {
    const auto extent = reader.scalar<std::uint64_t>("tensor dimension");
    if (extent == 0) {
      reader.fail(what + " has a dimension of 0");
    }
    // Half of the range, so that the sizes derived below cannot wrap either.
    if (extent > (std::numeric_limits<std::uint64_t>::max() >> 8) / tensor.num_elements) {
      reader.fail(what + " has more elements than can be counted");
    }
    tensor.num_elements *= extent;
    tensor.shape.push_back(extent);
  }
  const auto type = reader.scalar<std::uint32_t>("tensor type");
  const auto layout = find_tensor_layout(type);
  if (!layout) {
    reader.fail(what + " has type " + tensor_type_name(type) +
                ", which is not supported (F32, F16, BF16, Q4_0, Q4_1, Q8_0, Q4_K, Q6_K are)");
  }
  tensor.type = static_cast<tensor_type>(type);
  if (tensor.shape[0] % layout->block_elements != 0) {
    reader.fail(what + " has rows of " + std::to_string(tensor.shape[0]) + " elements, " +
                tensor_type_name(tensor.type) + " needs a multiple of " +
                std::to_string(layout->block_elements));
  }
  return reader.scalar<std::uint64_t>("tensor offset");
}

std::uint64_t align_up(std::uint64_t offset, std::uint64_t alignment) {
  return (offset + alignment - 1) / alignment * alignment;
}

}  // namespace

gguf_file gguf_file::open(const std::filesystem::path& path, const gguf_limits& limits) {
  gguf_file file;
  file.name_ = path.string();
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (!std::filesystem::exists(status)) {
    file.fail("no such file");
  }
  if (!std::filesystem::is_regular_file(status)) {
    file.fail("not a regular file");
  }
  const std::uint64_t size = std::filesystem::file_size(path, error);
  if (error) {
    file.fail("cannot tell its size: " + error.message());
  }
  if (size > limits.max_file_bytes) {
    file.fail(std::to_string(size) + " bytes is above the limit of " +
              std::to_string(limits.max_file_bytes));
  }
  std::ifstream stream(path, std::ios::binary);
  if (!stream) {
    file.fail("cannot be opened for reading");
  }
  // The magic is looked at first: a huge file that is something else costs no memory.
  std::string start(magic.size(), '\0');
  stream.read(start.data(), static_cast<std::streamsize>(start.size()));
  if (!stream || start != magic) {
    file.fail("not a GGUF file (it does not start with 'GGUF')");
  }
  std::unique_ptr<std::byte[]> bytes;
  try {
    bytes = std::make_unique_for_overwrite<std::byte[]>(static_cast<std::size_t>(size));
  } catch (const std::bad_alloc&) {
    file.fail("not enough memory for its " + std::to_string(size) + " bytes");
  }
  stream.seekg(0);
  stream.read(reinterpret_cast<char*>(bytes.get()), static_cast<std::streamsize>(size));
  if (!stream || static_cast<std::uint64_t>(stream.gcount()) != size) {
    file.fail("could not be read to its end");
  }
  file.read(std::move(bytes), static_cast<std::size_t>(size), limits);
  return file;
}

gguf_file gguf_file::parse(std::span<const std::byte> bytes, std::string name,
                           const gguf_limits& limits) {
  gguf_file file;
  file.name_ = std::move(name);
  auto copy = std::make_unique_for_overwrite<std::byte[]>(bytes.size());
  std::copy(bytes.begin(), bytes.end(), copy.get());
  file.read(std::move(copy), bytes.size(), limits);
  return file;
}

void gguf_file::read(std::unique_ptr<std::byte[]> bytes, std::size_t size,
                     const gguf_limits& limits) {
  bytes_ = std::move(bytes);
  const std::span<const std::byte> all(bytes_.get(), size);
  gguf_reader reader(all, name_);

  const auto start = reader.take(magic.size(), "magic");
  if (std::memcmp(start.data(), magic.data(), magic.size()) != 0) {
    fail("not a GGUF file (it does not start with 'GGUF')");
  }
  version_ = reader.scalar<std::uint32_t>("version");
  if (version_ != 2 && version_ != 3) {
    const bool swapped = (version_ & 0xFFFFU) == 0 && version_ != 0;
    reader.fail("GGUF version " + std::to_string(version_) + " is not supported (2 and 3 are)" +
                (swapped ? "; the file seems to be big-endian" : ""));
  }
  const auto tensor_count = reader.count("tensor count", limits.max_tensors, min_tensor_bytes);
  const auto metadata_count =
      reader.count("metadata count", limits.max_metadata, min_metadata_bytes);

  metadata_.reserve(static_cast<std::size_t>(metadata_count));
  for (std::uint64_t i = 0; i < metadata_count; ++i) {
    const auto key = reader.string("metadata key", limits.max_key_bytes);
    if (!metadata_index_.emplace(key, metadata_.size()).second) {
      reader.fail("metadata key '" + std::string(key) + "' appears twice");
    }
    const auto type = read_type(reader);
    metadata_.emplace_back(std::string(key), read_value(reader, type, limits, 0));
  }

  if (const auto alignment = unsigned_integer("general.alignment")) {
    alignment_ = *alignment;
    if (alignment_ < 8 || alignment_ > max_alignment || (alignment_ & (alignment_ - 1)) != 0) {
      fail("general.alignment of " + std::to_string(alignment_) +
           " is not a power of two from 8 to " + std::to_string(max_alignment));
    }
  }

  // Checked again: the metadata has used up bytes since the count was read.
  reader.checked_count(tensor_count, "tensor count", limits.max_tensors, min_tensor_bytes);
  tensors_.resize(static_cast<std::size_t>(tensor_count));
  std::vector<std::uint64_t> offsets;
  offsets.reserve(tensors_.size());
  for (auto& tensor : tensors_) {
    offsets.push_back(read_tensor(reader, limits, tensor));
  }
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    if (!tensor_index_.emplace(tensors_[i].name, i).second) {
      fail("tensor '" + tensors_[i].name + "' appears twice");
    }
  }
  place_tensors(all, reader.position(), offsets);
}

// The data section is a gapless sequence of tensors in the order of the table, each padded to the
// alignment. That alone rules out overlaps, holes and bytes that belong to nobody.
void gguf_file::place_tensors(std::span<const std::byte> bytes, std::uint64_t header_end,
                              const std::vector<std::uint64_t>& offsets) {
  const std::uint64_t data_start = align_up(header_end, alignment_);
  std::uint64_t expected = 0;
  std::uint64_t end = header_end;
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    auto& tensor = tensors_[i];
    const std::string what = "tensor '" + tensor.name + "'";
    if (offsets[i] % alignment_ != 0) {
      fail(what + " starts at offset " + std::to_string(offsets[i]) +
           ", not a multiple of the alignment " + std::to_string(alignment_));
    }
    if (offsets[i] != expected) {
      fail(what + " starts at offset " + std::to_string(offsets[i]) + ", expected " +
           std::to_string(expected) + " right after the tensor before it");
    }
    const auto layout = layout_of(tensor.type);
    const std::uint64_t blocks = tensor.num_elements / layout.block_elements;
    const std::uint64_t room = bytes.size() > data_start && expected <= bytes.size() - data_start
                                   ? bytes.size() - data_start - expected
                                   : 0;
    if (blocks > room / layout.block_bytes) {
      fail(what + " needs " + std::to_string(tensor.num_elements) + " " +
           tensor_type_name(tensor.type) + " elements at offset " + std::to_string(offsets[i]) +
           ", beyond the end of the file");
    }
    const std::uint64_t size = blocks * layout.block_bytes;
    tensor.data = bytes.subspan(static_cast<std::size_t>(data_start + expected),
                                static_cast<std::size_t>(size));
    end = data_start + expected + size;
    expected = align_up(expected + size, alignment_);
  }
  if (bytes.size() > align_up(end, alignment_)) {
    fail(std::to_string(bytes.size() - end) + " bytes follow the last tensor");
  }
}

const gguf_value* gguf_file::find(std::string_view key) const {
  const auto found = metadata_index_.find(key);
  return found == metadata_index_.end() ? nullptr : &metadata_[found->second].second;
}

const tensor_info* gguf_file::find_tensor(std::string_view name) const {
  const auto found = tensor_index_.find(name);
  return found == tensor_index_.end() ? nullptr : &tensors_[found->second];
}

std::optional<std::uint64_t> gguf_file::unsigned_integer(std::string_view key) const {
  const auto* value = find(key);
  if (value == nullptr) {
    return std::nullopt;
  }
  if (const auto* number = std::get_if<std::uint64_t>(&value->content)) {
    return *number;
  }
  if (const auto* number = std::get_if<std::int64_t>(&value->content);
      number != nullptr && *number >= 0) {
    return static_cast<std::uint64_t>(*number);
  }
  fail_type(key, "a non-negative integer", value->type);
}

std::optional<double> gguf_file::real(std::string_view key) const {
  const auto* value = find(key);
  if (value == nullptr) {
    return std::nullopt;
  }
  if (const auto* number = std::get_if<double>(&value->content)) {
    return *number;
  }
  fail_type(key, "a floating-point number", value->type);
}

std::optional<bool> gguf_file::boolean(std::string_view key) const {
  const auto* value = find(key);
  if (value == nullptr) {
    return std::nullopt;
  }
  if (const auto* flag = std::get_if<bool>(&value->content)) {
    return *flag;
  }
  fail_type(key, "a boolean", value->type);
}

std::optional<std::string_view> gguf_file::string(std::string_view key) const {
  const auto* value = find(key);
  if (value == nullptr) {
    return std::nullopt;
  }
  if (const auto* text = std::get_if<std::string_view>(&value->content)) {
    return *text;
  }
  fail_type(key, "a string", value->type);
}

std::optional<std::span<const std::string_view>> gguf_file::strings(std::string_view key) const {
  const auto* value = find(key);
  if (value == nullptr) {
    return std::nullopt;
  }
  const auto* array = std::get_if<gguf_array>(&value->content);
  if (array == nullptr) {
    fail_type(key, "an array of strings", value->type);
  }
  if (array->element_type != gguf_type::string) {
    fail_type(key, "an array of strings", array->element_type);
  }
  return std::span<const std::string_view>(array->strings);
}

std::optional<std::vector<std::int64_t>> gguf_file::integers(std::string_view key) const {
  const auto* value = find(key);
  if (value == nullptr) {
    return std::nullopt;
  }
  const auto* array = std::get_if<gguf_array>(&value->content);
  if (array == nullptr) {
    fail_type(key, "an array of integers", value->type);
  }
  const std::size_t stride = static_cast<std::size_t>(element_bytes(array->element_type));
  std::vector<std::int64_t> numbers;
  numbers.reserve(array->packed.size() / stride);
  for (std::size_t at = 0; at < array->packed.size(); at += stride) {
    const std::byte* from = array->packed.data() + at;
    switch (array->element_type) {
      case gguf_type::uint8:
        numbers.push_back(load_little_endian<std::uint8_t>(from));
        break;
      case gguf_type::int8:
        numbers.push_back(load_little_endian<std::int8_t>(from));
        break;
      case gguf_type::uint16:
        numbers.push_back(load_little_endian<std::uint16_t>(from));
        break;
      case gguf_type::int16:
        numbers.push_back(load_little_endian<std::int16_t>(from));
        break;
      case gguf_type::uint32:
        numbers.push_back(load_little_endian<std::uint32_t>(from));
        break;
      case gguf_type::int32:
        numbers.push_back(load_little_endian<std::int32_t>(from));
        break;
      case gguf_type::int64:
        numbers.push_back(load_little_endian<std::int64_t>(from));
        break;
      default:
        fail_type(key, "an array of integers", array->element_type);
    }
  }
  if (numbers.size() != array->count) {
    fail_type(key, "an array of integers", array->element_type);
  }
  return numbers;
}

void gguf_file::fail(const std::string& what) const { throw gguf_error(name_ + ": " + what); }

void gguf_file::fail_type(std::string_view key, const char* wanted, gguf_type found) const {
  fail("metadata '" + std::string(key) + "' must be " + wanted + ", found " + type_name(found));
}

}  // namespace zipcache_llama

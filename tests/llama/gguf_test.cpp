#include "gguf.hpp"

#include <filesystem>
#include <fstream>

#include "model.hpp"
#include "support/catch.hpp"
#include "tiny_model.hpp"
#include "tokenizer.hpp"

using namespace zipcache_llama;
using namespace zipcache_llama_test;

namespace {

// The message, or an empty string if the file was accepted.
std::string refusal(const bytes& file, const gguf_limits& limits = {}) {
  try {
    gguf_file::parse(file, "test.gguf", limits);
  } catch (const gguf_error& error) {
    return error.what();
  }
  return "";
}

bool mentions(const std::string& text, std::string_view part) {
  return text.find(part) != std::string::npos;
}

bytes eight_floats() { return bytes(32); }

gguf_writer two_tensors(std::uint64_t second_offset) {
  gguf_writer file;
  file.raw_tensor("a", {8}, 0, 0, eight_floats());
  file.raw_tensor("b", {8}, 0, second_offset, eight_floats());
  return file;
}

}  // namespace

TEST_CASE("gguf: values and tensors are read back as written", "[llama][gguf]") {
  gguf_writer writer;
  writer.version = GENERATE(2U, 3U);
  writer.unsigned_integer("n", 7);
  writer.real("x", 0.5F);
  writer.string("s", "text");
  writer.strings("list", {"a", "", "ccc"});
  writer.integers("numbers", {-1, 2});
  bytes nested;
  put<std::uint32_t>(nested, 9);
  put<std::uint64_t>(nested, 1);
  put<std::uint32_t>(nested, 7);
  put<std::uint64_t>(nested, 2);
  put<std::uint16_t>(nested, 0x0001);
  writer.raw("nested", 9, nested);
  bytes minus_two;
  put<std::int64_t>(minus_two, -2);
  writer.raw("i64", 11, minus_two);
  writer.tensor("w", {2, 3}, {1, 2, 3, 4, 5, 6});

  const auto file = gguf_file::parse(writer.file(), "test.gguf");
  CHECK(file.version() == writer.version);
  CHECK(file.unsigned_integer("n") == 7U);
  CHECK(file.real("x") == 0.5);
  CHECK(file.string("s") == "text");
  CHECK((*file.strings("list"))[2] == "ccc");
  CHECK(file.integers("numbers") == std::vector<std::int64_t>{-1, 2});
  CHECK(std::get<gguf_array>(file.find("nested")->content).arrays.size() == 1);
  CHECK(std::get<std::int64_t>(file.find("i64")->content) == -2);
  CHECK_FALSE(file.unsigned_integer("absent"));
  CHECK_THROWS_AS(file.unsigned_integer("s"), gguf_error);
  CHECK_THROWS_AS(file.unsigned_integer("i64"), gguf_error);
  CHECK_THROWS_AS(file.integers("list"), gguf_error);
  REQUIRE(file.find_tensor("w") != nullptr);
  CHECK(file.find_tensor("w")->shape == std::vector<std::uint64_t>{2, 3});
  CHECK(file.find_tensor("w")->data.size() == 24);
}

TEST_CASE("gguf: a file cut at any byte is refused", "[llama][gguf]") {
  const auto file = tiny_model({.layers = 1}).file();
  const auto header = tiny_model({.layers = 1}).header().size();
  for (std::size_t size = 0; size < header; ++size) {
    REQUIRE_FALSE(
        refusal(bytes(file.begin(), file.begin() + static_cast<std::ptrdiff_t>(size))).empty());
  }
  for (std::size_t size = header; size < file.size(); size += 997) {
    REQUIRE_FALSE(
        refusal(bytes(file.begin(), file.begin() + static_cast<std::ptrdiff_t>(size))).empty());
  }
  CHECK(refusal(file).empty());
}

TEST_CASE("gguf: bytes after the last tensor are refused", "[llama][gguf]") {
  auto file = two_tensors(32).file();
  CHECK(refusal(file).empty());
  file.push_back(std::byte{0});
  CHECK(mentions(refusal(file), "follow the last tensor"));
}

TEST_CASE("gguf: any flipped bit of the header gives an error or a file, up to the model",
          "[llama][gguf]") {
  const auto writer = tiny_model({.layers = 1, .hidden = 24, .feed_forward = 8});
  auto file = writer.file();
  thread_pool pool(1);
  int loaded = 0;
  for (std::size_t bit = 0; bit < writer.header().size() * 8; ++bit) {
    const auto mask = static_cast<std::byte>(1U << bit % 8);
    file[bit / 8] ^= mask;
    try {
      const auto parsed = gguf_file::parse(file, "test.gguf");
      const tokenizer words(parsed);
      words.decode(words.encode("abab 12<|im_end|>", special_tokens::recognise));
      const model loaded_model(parsed, pool);
      ++loaded;
    } catch (const std::runtime_error& error) {
      if (std::string(error.what()).empty()) {
        FAIL("an error without a message");
      }
    }
    file[bit / 8] ^= mask;
  }
  CHECK(loaded > 0);  // such as another constant or key of no meaning
}

TEST_CASE("gguf: magic and version are checked", "[llama][gguf]") {
  auto file = two_tensors(32).file();
  file[0] = std::byte{'X'};
  CHECK(mentions(refusal(file), "not a GGUF file"));
  gguf_writer writer = two_tensors(32);
  writer.version = 1;
  CHECK(mentions(refusal(writer.file()), "version 1"));
  writer.version = 0x03000000;
  CHECK(mentions(refusal(writer.file()), "big-endian"));
}

TEST_CASE("gguf: a count is not believed before it is allocated", "[llama][gguf]") {
  const std::uint64_t huge =
      GENERATE(std::uint64_t{1} << 16, std::uint64_t{1} << 32, ~std::uint64_t{0});
  auto writer = two_tensors(32);
  writer.num_tensors = huge;
  CHECK(mentions(refusal(writer.file()), "tensor count"));
  writer = two_tensors(32);
  writer.num_entries = huge;
  CHECK(mentions(refusal(writer.file()), "metadata count"));

  for (const std::uint32_t element : {0U, 8U, 9U, 10U}) {
    gguf_writer array;
    bytes value;
    put(value, element);
    put(value, huge);
    array.raw("list", 9, value);
    CHECK(mentions(refusal(array.file()), "array length"));
  }
  gguf_writer text;
  bytes value;
  put(value, huge);
  text.raw("text", 8, value);
  CHECK(mentions(refusal(text.file()), "string"));
}

TEST_CASE("gguf: arrays may not nest without end", "[llama][gguf]") {
  bytes value;
  for (int depth = 0; depth < 1000; ++depth) {
    put<std::uint32_t>(value, 9);
    put<std::uint64_t>(value, 1);
  }
  gguf_writer writer;
  writer.raw("nested", 9, value);
  CHECK(mentions(refusal(writer.file()), "nested"));
}

TEST_CASE("gguf: tensors lie one after the other, inside the file", "[llama][gguf]") {
  CHECK(refusal(two_tensors(32).file()).empty());
  CHECK(mentions(refusal(two_tensors(0).file()),
                 "tensor 'b' starts at offset 0, expected 32"));    // overlap
  CHECK(mentions(refusal(two_tensors(64).file()), "expected 32"));  // hole
  CHECK(mentions(refusal(two_tensors(33).file()), "alignment"));
  CHECK(mentions(refusal(two_tensors(~std::uint64_t{31}).file()), "expected 32"));

  for (const std::uint64_t extent : {std::uint64_t{9}, std::uint64_t{1} << 40}) {
    gguf_writer beyond;
    beyond.raw_tensor("a", {extent}, 0, 0, eight_floats());
    CHECK(mentions(refusal(beyond.file()), "beyond the end"));
  }
}

TEST_CASE("gguf: shapes that wrap, vanish or do not fill blocks are refused", "[llama][gguf]") {
  const auto with_shape = [](const std::vector<std::uint64_t>& shape, std::uint32_t type) {
    gguf_writer writer;
    writer.raw_tensor("w", shape, type, 0, eight_floats());
    return refusal(writer.file());
  };
  const std::uint64_t big = std::uint64_t{1} << 33;
  CHECK(mentions(with_shape({big, big}, 0), "more elements"));
  CHECK(mentions(with_shape({~std::uint64_t{0}}, 0), "more elements"));
  CHECK(mentions(with_shape({8, 0}, 0), "dimension of 0"));
  CHECK(mentions(with_shape({}, 0), "0 dimensions"));
  CHECK(mentions(with_shape({1, 1, 1, 1, 8}, 0), "5 dimensions"));
  CHECK(mentions(with_shape({33}, 2), "multiple of 32"));
  CHECK(mentions(with_shape({32}, 20), "tensor 'w' has type IQ4_NL"));
  CHECK(mentions(with_shape({32}, 4711), "type 4711"));
}

TEST_CASE("gguf: alignment, duplicates, types and booleans are checked", "[llama][gguf]") {
  for (const std::uint32_t alignment : {0U, 1U, 24U, 1U << 21}) {
    gguf_writer writer;
    writer.unsigned_integer("general.alignment", alignment);
    CHECK(mentions(refusal(writer.file()), "general.alignment"));
  }
  gguf_writer keys;
  keys.unsigned_integer("k", 1);
  keys.unsigned_integer("k", 1);
  CHECK(mentions(refusal(keys.file()), "'k' appears twice"));
  gguf_writer names;
  names.raw_tensor("a", {8}, 0, 0, eight_floats());
  names.raw_tensor("a", {8}, 0, 32, eight_floats());
  CHECK(mentions(refusal(names.file()), "'a' appears twice"));
  gguf_writer type;
  type.raw("k", 13, {});
  CHECK(mentions(refusal(type.file()), "unknown value type 13"));
  gguf_writer boolean;
  boolean.raw("k", 7, {std::byte{2}});
  CHECK(mentions(refusal(boolean.file()), "boolean"));
}

TEST_CASE("gguf: a path that is no GGUF file is refused by name", "[llama][gguf]") {
  CHECK_THROWS_AS(gguf_file::open("no/such/file.gguf"), gguf_error);
  CHECK_THROWS_AS(gguf_file::open(std::filesystem::temp_directory_path()), gguf_error);
  const auto path = std::filesystem::temp_directory_path() / "zipcache_llama_gguf_test.gguf";
  const auto file = tiny_model().file();
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(file.data()), static_cast<std::streamsize>(file.size()));
  CHECK(gguf_file::open(path).tensors().size() == 2 + 2 * 9);
  std::filesystem::resize_file(path, 0);
  CHECK_THROWS_AS(gguf_file::open(path), gguf_error);
  std::filesystem::remove(path);
}

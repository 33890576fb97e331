// A whole text file as a string.
#pragma once

#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>

namespace zipcache_llama {

// @throws std::runtime_error naming the file
inline std::string read_text_file(const std::filesystem::path& path) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) {
    throw std::runtime_error(path.string() + ": no such text file");
  }
  std::ifstream stream(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
  if (!stream) {
    throw std::runtime_error(path.string() + ": cannot be read");
  }
  return text;
}

}  // namespace zipcache_llama

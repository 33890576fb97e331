// A file that is opened before the work, so that a path that cannot be written is known in time.
#pragma once

#include <fstream>
#include <stdexcept>
#include <string>

namespace zipcache_llama {

class output_file {
 public:
  // @param path  empty: no file
  // @throws std::runtime_error naming the file, here and later
  explicit output_file(const std::string& path, std::ios::openmode mode = std::ios::trunc)
      : path_(path) {
    if (!path.empty()) {
      stream_.open(path, std::ios::binary | std::ios::out | mode);
      check();
    }
  }
  void write(const std::string& text) {
    stream_ << text << std::flush;
    check();
  }

 private:
  void check() const {
    if (!stream_) {
      throw std::runtime_error(path_ + ": cannot be written");
    }
  }

  std::string path_;
  std::ofstream stream_;
};

}  // namespace zipcache_llama

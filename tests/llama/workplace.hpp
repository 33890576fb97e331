// The program itself, run in a folder of its own.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <system_error>

#include <sys/wait.h>

#include "support/catch.hpp"
#include "text_file.hpp"
#include "tiny_model.hpp"

namespace zipcache_llama_test {

struct run_result {
  int exit_code;
  std::string out;
  std::string err;
};

// A folder with a tiny model and a text, gone at the end.
class workplace {
 public:
  workplace() {
    std::string pattern =
        (std::filesystem::temp_directory_path() / "zipcache_llama_XXXXXX").string();
    REQUIRE(mkdtemp(pattern.data()) != nullptr);
    folder_ = pattern;
    model_ = tiny_model({.hidden = 128, .qo_heads = 4, .kv_heads = 2, .context = 1024}).file();
    write("model.gguf", model_);
    std::string text;
    zipcache_llama::random_stream random(2);
    for (int i = 0; i < 4000; ++i) {
      text += static_cast<char>('a' + random.below(26));
    }
    std::ofstream(path("text.txt")) << text;
    std::ofstream(path("short.txt")) << "too short";
  }
  ~workplace() {
    std::error_code ignored;
    std::filesystem::remove_all(folder_, ignored);
  }
  workplace(const workplace&) = delete;
  workplace& operator=(const workplace&) = delete;

  std::string path(const std::string& name) const { return (folder_ / name).string(); }
  const bytes& model() const { return model_; }
  void write(const std::string& name, const bytes& content) const {
    std::ofstream(path(name), std::ios::binary)
        .write(reinterpret_cast<const char*>(content.data()),
               static_cast<std::streamsize>(content.size()));
  }

  // Runs the program in this folder.
  run_result run(const std::string& arguments) const {
    const std::string command = "cd '" + folder_.string() + "' && '" ZIPCACHE_LLAMA_PROGRAM "' " +
                                arguments + " >out 2>err </dev/null";
    const int status = std::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1,
            zipcache_llama::read_text_file(path("out")),
            zipcache_llama::read_text_file(path("err"))};
  }

 private:
  std::filesystem::path folder_;
  bytes model_;
};

}  // namespace zipcache_llama_test

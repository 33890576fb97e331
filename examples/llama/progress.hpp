// A progress bar on stderr. Nothing is written when stderr is not a terminal, so that logs and
// pipes stay clean.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <string>
#include <utility>

#include <unistd.h>

namespace zipcache_llama {

class progress_bar {
 public:
  // @param total  steps until done; 0 shows only the label
  progress_bar(std::string label, std::size_t total)
      : label_(std::move(label)), total_(total), visible_(isatty(STDERR_FILENO) == 1) {
    draw();
  }
  ~progress_bar() {
    if (visible_) {
      std::fputs("\r\033[K", stderr);  // leaves the line to what comes next
    }
  }
  progress_bar(const progress_bar&) = delete;
  progress_bar& operator=(const progress_bar&) = delete;

  void advance(std::size_t steps = 1) {
    done_ = std::min(done_ + steps, total_);
    draw();
  }

  void set_label(std::string label) {
    label_ = std::move(label);
    shown_percent_ = -1;
    draw();
  }

 private:
  static constexpr std::size_t width = 30;

  void draw() {
    const int percent = total_ == 0 ? 0 : static_cast<int>(done_ * 100 / total_);
    if (!visible_ || percent == shown_percent_) {
      return;
    }
    shown_percent_ = percent;
    const std::size_t filled = static_cast<std::size_t>(percent) * width / 100;
    const std::string bar = std::string(filled, '#') + std::string(width - filled, '.');
    std::fprintf(stderr, "\r\033[K[%s] %3d %%  %s", bar.c_str(), percent, label_.c_str());
    std::fflush(stderr);
  }

  std::string label_;
  std::size_t total_;
  std::size_t done_ = 0;
  bool visible_;
  int shown_percent_ = -1;
};

}  // namespace zipcache_llama

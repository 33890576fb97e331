// A progress bar on stderr, with the time that is left. Nothing is written when stderr is not a
// terminal, so that logs and pipes stay clean.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <string>
#include <utility>

#include <unistd.h>

namespace zipcache_llama {

// "40 s", "12 min", "3 h 5 min"
inline std::string spelled_duration(double seconds) {
  if (seconds < 99.5) {
    return std::to_string(static_cast<long long>(seconds + 0.5)) + " s";
  }
  const auto minutes = static_cast<long long>(seconds / 60 + 0.5);
  return minutes < 100
             ? std::to_string(minutes) + " min"
             : std::to_string(minutes / 60) + " h " + std::to_string(minutes % 60) + " min";
}

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

  bool is_visible() const { return visible_; }

  void advance(std::size_t steps = 1) { advance_to(done_ + steps); }
  void advance_to(std::size_t done) {
    done_ = std::min(done, total_);
    draw();
  }

  void set_label(std::string label) {
    label_ = std::move(label);
    shown_percent_ = -1;
    draw();
  }

  // If the steps to come take as long as those done; negative before the first.
  double seconds_left() const {
    if (done_ == 0) {
      return -1;
    }
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start_;
    return elapsed.count() * static_cast<double>(total_ - done_) / static_cast<double>(done_);
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
    // The first percents say little about the others.
    const std::string left =
        percent >= 2 ? ", " + spelled_duration(seconds_left()) + " left" : std::string();
    std::fprintf(stderr, "\r\033[K[%s] %3d %%%s  %s", bar.c_str(), percent, left.c_str(),
                 label_.c_str());
    std::fflush(stderr);
  }

  std::string label_;
  std::size_t total_;
  std::size_t done_ = 0;
  bool visible_;
  int shown_percent_ = -1;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace zipcache_llama

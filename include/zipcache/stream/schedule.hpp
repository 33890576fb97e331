// Schedules: when tokens leave the 16-bit window and are compressed.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

#include <zipcache/policy/roles.hpp>

namespace zipcache {

/// Numbers of a schedule.
struct schedule_options {
  int64_t recompress_interval = 0;  ///< new tokens that are compressed together
  int64_t recent_window = 0;        ///< newest tokens that always stay in 16 bits

  bool operator==(const schedule_options&) const = default;
};

/// The prefill is compressed at its end, and then every `DefaultInterval` new tokens (ZipCache,
/// algorithm 3).
template <int DefaultInterval>
struct every_interval {
  static_assert(DefaultInterval > 0, "zipcache: an interval has at least one token");
  using role = schedule_role;
  static constexpr int64_t default_interval = DefaultInterval;
  static constexpr int64_t default_recent = 0;

  /// Tokens of a finished prefill that are compressed at once.
  static int64_t sealed_by_prefill(int64_t prompt_len, const schedule_options& options) {
    return std::max<int64_t>(0, prompt_len - options.recent_window);
  }
  static std::string name() { return "every" + std::to_string(DefaultInterval); }
};

/// The newest `DefaultRecent` tokens stay in 16 bits and older ones are compressed in whole blocks
/// of the interval, also at the end of the prefill (KIVI).
template <int DefaultInterval, int DefaultRecent>
struct blocks_behind_window : every_interval<DefaultInterval> {
  static_assert(DefaultRecent >= 0, "zipcache: a window is not negative");
  static constexpr int64_t default_recent = DefaultRecent;
  static int64_t sealed_by_prefill(int64_t prompt_len, const schedule_options& options) {
    return std::max<int64_t>(0, prompt_len - options.recent_window) / options.recompress_interval *
           options.recompress_interval;
  }
  static std::string name() {
    return "blocks" + std::to_string(DefaultInterval) + "_behind" + std::to_string(DefaultRecent);
  }
};

}  // namespace zipcache

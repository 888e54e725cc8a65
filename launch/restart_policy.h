// SPDX-License-Identifier: Apache-2.0
// When a process that ended starts again. Reads no clock.
#pragma once

#include <algorithm>
#include <optional>

#include "base/time.h"

namespace penstock::launch {

class RestartPolicy {
 public:
  struct Options {
    Duration pause_min = std::chrono::milliseconds(200);  // Doubled by each failure in a row.
    Duration pause_max = std::chrono::seconds(10);
    Duration good_life = std::chrono::seconds(30);  // Who lived so long has not failed.
    int failures_max = 8;                           // In a row.
  };
  explicit RestartPolicy(const Options& options) : options_(options) {}

  // It has ended, `lived` after its start: how long to wait, or nothing when it has failed
  // failures_max times in a row.
  std::optional<Duration> OnExit(Duration lived) {
    if (lived >= options_.good_life) failures_ = 0;
    if (++failures_ >= options_.failures_max) return std::nullopt;
    Duration pause = options_.pause_min;
    for (int i = 1; i < failures_ && pause < options_.pause_max; ++i) pause *= 2;
    return std::min(pause, options_.pause_max);
  }
  int failures() const { return failures_; }

 private:
  const Options options_;
  int failures_ = 0;
};

}  // namespace penstock::launch

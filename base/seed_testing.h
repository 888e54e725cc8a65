// SPDX-License-Identifier: Apache-2.0
// For tests that draw from seeds: whatever fails while this lives names the seed, and so does a run
// that hangs, in the test's output, before its time is over.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <mutex>
#include <stop_token>
#include <string>
#include <thread>
#include <utility>

#include "gtest/gtest.h"

namespace penstock {

class RunningSeed {
 public:
  struct Options {
    std::string replay = {};  // How to see it again, where that is not by the seed alone.
    std::chrono::milliseconds patience = std::chrono::seconds(10);
    // Of a run that takes longer; from a thread of its own.
    std::function<void(const std::string& line)> say = [](const std::string& line) {
      std::fprintf(stderr, "%s\n", line.c_str());
    };
  };
  explicit RunningSeed(std::uint64_t seed, const char* file = __builtin_FILE(),
                       int line = __builtin_LINE())
      : RunningSeed(seed, Options(), file, line) {}
  RunningSeed(std::uint64_t seed, Options options, const char* file = __builtin_FILE(),
              int line = __builtin_LINE())
      : options_(std::move(options)),
        text_("seed " + std::to_string(seed) +
              (options_.replay.empty() ? "" : "; to replay it: " + options_.replay)),
        trace_(file, line, text_),
        watch_([this](const std::stop_token& ended) { Watch(ended); }) {}

 private:
  void Watch(const std::stop_token& ended) {
    std::unique_lock lock(mutex_);
    never_.wait_for(lock, ended, options_.patience, [] { return false; });
    if (!ended.stop_requested()) options_.say("still running: " + text_);
  }

  const Options options_;
  const std::string text_;
  const testing::ScopedTrace trace_;
  std::mutex mutex_;
  std::condition_variable_any never_;
  std::jthread watch_;
};

}  // namespace penstock

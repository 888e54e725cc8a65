// SPDX-License-Identifier: Apache-2.0
// What a gateway cancelled of late at the coordinator. A stream that breaks may lose the last that
// was said, and nothing answers a cancel: all of them are said again over the next stream. The
// coordinator passes over those of requests that have ended.
//
// Not thread-safe; `now` is an argument.
#pragma once

#include <cstddef>
#include <deque>
#include <string>
#include <utility>
#include <vector>

#include "base/time.h"

namespace penstock::gateway {

class RecentCancels {
 public:
  struct Options {
    // Longer than a coordinator waits for a gateway that is away: then it has cancelled all itself.
    Duration kept_for = std::chrono::seconds(10);
    std::size_t kept_max = 4096;  // The oldest are dropped.
  };
  RecentCancels() : RecentCancels(Options()) {}
  explicit RecentCancels(const Options& options) : options_(options) {}

  void Add(std::string request_id, MonoTime now) {
    kept_.emplace_back(now, std::move(request_id));
    Forget(now);
  }
  // A new request has this name: it is not to be cancelled.
  void Remove(const std::string& request_id) {
    std::erase_if(kept_, [&](const auto& cancel) { return cancel.second == request_id; });
  }
  // To be said again, oldest first.
  std::vector<std::string> Kept(MonoTime now) {
    Forget(now);
    std::vector<std::string> ids;
    for (const auto& [when, id] : kept_) ids.push_back(id);
    return ids;
  }

 private:
  void Forget(MonoTime now) {
    while (!kept_.empty() &&
           (kept_.size() > options_.kept_max || kept_.front().first + options_.kept_for <= now)) {
      kept_.pop_front();
    }
  }

  const Options options_;
  std::deque<std::pair<MonoTime, std::string>> kept_;
};

}  // namespace penstock::gateway

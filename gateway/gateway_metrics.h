// SPDX-License-Identifier: Apache-2.0
// What a gateway counts of the requests that pass it: as their clients see them.
#pragma once

#include <array>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/event_loop.h"
#include "base/metrics.h"
#include "gateway/events.h"

namespace penstock::gateway {

class GatewayMetrics {
 public:
  // Labels stay few: requests for other models, which are refused, count as of model "".
  explicit GatewayMetrics(const std::vector<std::string>& models);
  ~GatewayMetrics();

  // A sink that counts what passes it on its way to `sink`. `loop` is the gateway's; it and the
  // metrics outlive the sink. Any thread.
  std::shared_ptr<Sink> Watch(std::shared_ptr<Sink> sink, const std::string& model,
                              const Loop& loop, MonoTime arrived);
  void Write(MetricsWriter& writer) const;  // Any thread.

 private:
  class WatchedSink;
  static constexpr std::size_t kCodes = 17;  // OK to UNAUTHENTICATED.
  struct OfModel {
    std::array<Counter, kCodes> ended;  // By status code.
    Counter prompt_tokens, cached_tokens, completion_tokens;
    Counter attempts;
    Counter started, live_ended;  // Their difference is live.
    Histogram ttft{LatencyBounds()}, tpot{TokenBounds()}, itl{TokenBounds()};
    Histogram e2e{LatencyBounds()};
  };
  OfModel& Of(const std::string& model);

  std::map<std::string, std::unique_ptr<OfModel>> models_;  // Never changes.
};

}  // namespace penstock::gateway

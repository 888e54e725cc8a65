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

// What answers should keep to. 0: anything will do.
struct Slo {
  Duration ttft{};  // Arrival to first token.
  Duration tpot{};  // Between the tokens of a choice, on average.
};

class GatewayMetrics {
 public:
  // Labels stay few: requests for other models, which are refused, count as of model "".
  explicit GatewayMetrics(const std::vector<std::string>& models, const Slo& slo = {});
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
    Counter attempts, good;
    Counter started, live_ended;  // Their difference is live.
    Histogram ttft{LatencyBounds()}, tpot{TokenBounds()}, itl{TokenBounds()};
    Histogram e2e{LatencyBounds()};
  };
  OfModel& Of(const std::string& model);

  std::map<std::string, std::unique_ptr<OfModel>> models_;  // Never changes.
  const Slo slo_;
};

}  // namespace penstock::gateway

// SPDX-License-Identifier: Apache-2.0
// What an engine did and holds, and what its worker's attempts hold of it, as metrics.
#pragma once

#include <cstddef>
#include <mutex>

#include "base/metrics.h"
#include "base/time.h"
#include "engine/engine.h"

namespace penstock::engine {

class EngineMetrics {
 public:
  // On the engine's thread: it did something, and where `step` is not null a step, in `step_time`.
  void Update(const Engine& engine, const StepReport* step, Duration step_time);
  void Write(MetricsWriter& writer) const;  // Any thread.

 private:
  Counter steps_, prefill_tokens_, decode_tokens_, preemptions_, changed_;
  Histogram step_seconds_{TokenBounds()};
  mutable std::mutex mutex_;  // Guards all below. Not Abseil's, as EngineThread.
  KvPool::Stats pool_;
  std::int32_t running_ = 0;
  std::int32_t waiting_ = 0;
  std::int32_t reserved_ = 0;
};

// What a worker holds for requests. All of it ends by itself.
struct Ledger {
  std::size_t attempts = 0;    // Live ones.
  std::size_t bytes_held = 0;  // Of the pool, for whomever.
  std::size_t bytes_draining =
      0;               // Of attempts that have ended, until the last read into them has.
  bool owned = false;  // Somebody is known to hold something.
};
void WriteLedger(const Ledger& ledger, MetricsWriter& writer);

}  // namespace penstock::engine

// SPDX-License-Identifier: Apache-2.0
// What an engine's thread measures of itself, for reports that cannot wait for a step to end.
//
// Update on the engine's thread; Read on any.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>

#include "engine/engine.h"
#include "engine/engine_metrics.h"
#include "engine/engine_thread.h"

namespace penstock::engine {

class Meter {
 public:
  struct Reading {
    std::uint32_t sequences = 0;      // Running, waiting or reserved.
    std::size_t bytes_held = 0;       // Of the pool: what cannot be evicted.
    double prefill_tokens_per_s = 0;  // 0: not measured yet.
    double step_seconds = 0;          // Of a step that only decodes; 0: not measured yet.
  };

  void Update(const Engine& engine, const EngineThread::Round& round);
  // A measurement from before the thread began.
  void SetPrefillRate(double tokens_per_s);
  Reading Read() const;
  const EngineMetrics& metrics() const { return metrics_; }  // Any thread.

 private:
  EngineMetrics metrics_;
  mutable std::mutex mutex_;  // Guards reading_. Not Abseil's, as EngineThread.
  Reading reading_;
  std::uint32_t in_steps_ = 0;  // Sequences, as of the last step.
};

// Tokens per second of a prompt of up to 64 tokens on an engine that is not used yet, at best: the
// workers of a host often start at once, and what one of them loses to the others says nothing of
// it. Takes about half a second; leaves nothing in its pool. 0 where it has no room for a prompt.
double MeasurePrefillRate(Engine& engine);

}  // namespace penstock::engine

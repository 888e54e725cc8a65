// SPDX-License-Identifier: Apache-2.0
#include "engine/meter.h"

#include <algorithm>

namespace penstock::engine {
namespace {

constexpr double kNewest = 0.2;        // Its weight in a moving mean.
constexpr std::int32_t kRowsMin = 16;  // Of a step that says something about prompts.
// Of the first measurement.
constexpr std::int32_t kTokensMax = 64;
constexpr int kMeasuresMin = 2;
constexpr Duration kMeasureFor = std::chrono::milliseconds(500);

void Mix(double& mean, double value) { mean = mean == 0 ? value : mean + kNewest * (value - mean); }

}  // namespace

void Meter::Update(const Engine& engine, const EngineThread::Round& round) {
  const std::size_t bytes_held = engine.PoolStats().bytes_held;
  metrics_.Update(engine, round.step, round.step_time);
  const std::lock_guard lock(mutex_);
  if (const StepReport* const step = round.step) {
    in_steps_ = static_cast<std::uint32_t>(step->sequences_running + step->sequences_waiting);
    const double seconds = ToSeconds(round.step_time);
    if (step->prefill_rows == 0 && step->decode_rows > 0) Mix(reading_.step_seconds, seconds);
    if (step->prefill_rows >= kRowsMin && seconds > 0) {
      // The answers beside it have their own time, as far as it is known.
      const double decode = step->decode_rows > 0 ? reading_.step_seconds : 0;
      Mix(reading_.prefill_tokens_per_s,
          step->prefill_rows / std::max(seconds - decode, seconds / 4));
    }
  }
  reading_.sequences = (engine.idle() ? 0 : in_steps_) +
                       static_cast<std::uint32_t>(std::max(0, engine.reservations()));
  reading_.bytes_held = bytes_held;
}

void Meter::SetPrefillRate(double tokens_per_s) {
  const std::lock_guard lock(mutex_);
  reading_.prefill_tokens_per_s = tokens_per_s;
}

Meter::Reading Meter::Read() const {
  const std::lock_guard lock(mutex_);
  return reading_;
}

double MeasurePrefillRate(Engine& engine) {
  const std::int32_t tokens = std::min(kTokensMax, engine.tokens_max() - 1);
  if (tokens < 1) return 0;
  double rate = 0;
  const MonoTime end = SteadyClock().Now() + kMeasureFor;
  // At least twice: the first one touches memory that nobody had before.
  for (int i = 0; i < kMeasuresMin || SteadyClock().Now() < end; ++i) {
    const absl::StatusOr<RequestId> request = engine.SubmitPrefill(
        {.tokens = std::vector<TokenId>(static_cast<std::size_t>(tokens), TokenId{0})});
    if (!request.ok()) return 0;
    const MonoTime begin = SteadyClock().Now();
    while (!engine.idle()) engine.Step();
    rate = std::max(rate, tokens / std::max(1e-9, ToSeconds(SteadyClock().Now() - begin)));
    engine.EndPrefill(*request);
    engine.pool().DropCached();
  }
  return rate;
}

}  // namespace penstock::engine

// SPDX-License-Identifier: Apache-2.0
#include "prefill/prefill_metrics.h"

#include "engine/engine_metrics.h"

namespace penstock::prefill {

void PrefillMetrics::Write(const PrefillState& state, std::size_t bytes_held,
                           MetricsWriter& writer) const {
  constexpr auto kAttempts = "penstock_attempts_total";
  constexpr auto kAttemptsHelp = "Attempts that have ended here, by how";
  const auto attempts = [&](const char* outcome, std::uint64_t n) {
    writer.Counter(kAttempts, kAttemptsHelp, static_cast<double>(n), {{"outcome", outcome}});
  };
  attempts("transfer_failed", failed_);
  attempts("given_up", given_up_);
  writer.Counter("penstock_prompts_computed_total", "Prompts computed and told to the end",
                 static_cast<double>(computed_));
  engine::WriteLedger({.attempts = static_cast<std::size_t>(state.attempts()),
                       .bytes_held = bytes_held,
                       .owned = state.attempts() > 0},
                      writer);
}

}  // namespace penstock::prefill

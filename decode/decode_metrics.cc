// SPDX-License-Identifier: Apache-2.0
#include "decode/decode_metrics.h"

#include <algorithm>

#include "engine/engine_metrics.h"

namespace penstock::decode {

void DecodeMetrics::OnAdopted(const transfer::HandoffReceiver::Outcome& handoff) {
  if (handoff.spans.empty()) {
    ++local_;  // Or all of it was here.
    return;
  }
  ++received_;
  repeated_reads_ += static_cast<std::uint64_t>(handoff.repeated_reads);
  OfKind& kind = kinds_[std::string(transfer::ToString(handoff.kind))];
  kind.bytes += handoff.bytes;
  MonoTime first = MonoTime::max(), last_told = MonoTime::min(), end = MonoTime::min();
  for (const transfer::HandoffReceiver::Span& span : handoff.spans) {
    first = std::min(first, span.told);
    last_told = std::max(last_told, span.told);
    end = std::max(end, span.verified);
  }
  kind.seconds.Observe(ToSeconds(end - first));
  kind.exposed_seconds.Observe(ToSeconds(end - last_told));
}

void DecodeMetrics::OnEnded(DecodeState::End how) {
  ++(how == DecodeState::End::kFinished         ? finished_
     : how == DecodeState::End::kTransferFailed ? failed_
                                                : given_up_);
}

void DecodeMetrics::Write(const DecodeState& state, std::size_t bytes_held,
                          MetricsWriter& writer) const {
  constexpr auto kHandoffs = "penstock_handoffs_total";
  constexpr auto kHandoffsHelp =
      "Prompts handed over: received, found or computed here, or failed in transfer";
  const auto handoffs = [&](const char* outcome, std::uint64_t n) {
    writer.Counter(kHandoffs, kHandoffsHelp, static_cast<double>(n), {{"outcome", outcome}});
  };
  handoffs("received", received_);
  handoffs("local", local_);
  handoffs("failed", failed_);
  constexpr auto kAttempts = "penstock_attempts_total";
  constexpr auto kAttemptsHelp = "Attempts that have ended here, by how";
  const auto attempts = [&](const char* outcome, std::uint64_t n) {
    writer.Counter(kAttempts, kAttemptsHelp, static_cast<double>(n), {{"outcome", outcome}});
  };
  attempts("finished", finished_);
  attempts("transfer_failed", failed_);
  attempts("given_up", given_up_);
  writer.Counter("penstock_transfer_repeated_reads_total",
                 "Reads that were asked for again, their checksum being wrong",
                 static_cast<double>(repeated_reads_));
  constexpr auto kBytes = "penstock_transfer_bytes_total";
  constexpr auto kSeconds = "penstock_transfer_seconds";
  constexpr auto kExposed = "penstock_transfer_exposed_seconds";
  constexpr auto kBytesHelp = "KV received and verified";
  constexpr auto kSecondsHelp = "Of a handoff: first layer told to last verified";
  constexpr auto kExposedHelp =
      "Of a handoff: last layer told to last verified, which no computing hides";
  writer.Declare(MetricKind::kCounter, kBytes, kBytesHelp);
  writer.Declare(MetricKind::kHistogram, kSeconds, kSecondsHelp);
  writer.Declare(MetricKind::kHistogram, kExposed, kExposedHelp);
  for (const auto& [name, kind] : kinds_) {
    const MetricLabels labels = {{"transport", name}};
    writer.Counter(kBytes, kBytesHelp, static_cast<double>(kind.bytes), labels);
    writer.Histogram(kSeconds, kSecondsHelp, kind.seconds, labels);
    writer.Histogram(kExposed, kExposedHelp, kind.exposed_seconds, labels);
  }
  engine::WriteLedger({.attempts = static_cast<std::size_t>(state.attempts()),
                       .bytes_held = bytes_held,
                       .bytes_draining = state.bytes_draining(),
                       .owned = state.attempts() > 0 || state.draining() > 0},
                      writer);
}

}  // namespace penstock::decode

// SPDX-License-Identifier: Apache-2.0
// What a decode worker counts of its handoffs, and what its attempts hold. On the worker's loop.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "base/metrics.h"
#include "decode/decode_state.h"

namespace penstock::decode {

class DecodeMetrics {
 public:
  // As DecodeState::Observer hears them.
  void OnAdopted(const transfer::HandoffReceiver::Outcome& handoff);
  void OnEnded(DecodeState::End how);
  // `bytes_held`: of the engine's pool.
  void Write(const DecodeState& state, std::size_t bytes_held, MetricsWriter& writer) const;

 private:
  struct OfKind {  // Of transports.
    std::uint64_t bytes = 0;
    Histogram seconds{TokenBounds()};
    Histogram exposed_seconds{TokenBounds()};
  };
  std::uint64_t received_ = 0, local_ = 0, failed_ = 0, given_up_ = 0, finished_ = 0;
  std::uint64_t repeated_reads_ = 0;
  std::map<std::string, OfKind> kinds_;
};

}  // namespace penstock::decode

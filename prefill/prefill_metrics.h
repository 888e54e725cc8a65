// SPDX-License-Identifier: Apache-2.0
// What a prefill worker counts of its attempts, and what they hold. On the worker's loop.
#pragma once

#include <cstdint>

#include "base/metrics.h"
#include "prefill/prefill_state.h"

namespace penstock::prefill {

class PrefillMetrics {
 public:
  // As PrefillState::Observer hears them.
  void OnComputed() { ++computed_; }
  void OnEnded(PrefillState::End how) {
    ++(how == PrefillState::End::kTransferFailed ? failed_ : given_up_);
  }
  // `bytes_held`: of the engine's pool.
  void Write(const PrefillState& state, std::size_t bytes_held, MetricsWriter& writer) const;

 private:
  std::uint64_t computed_ = 0, failed_ = 0, given_up_ = 0;
};

}  // namespace penstock::prefill

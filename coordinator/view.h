// SPDX-License-Identifier: Apache-2.0
// What the coordinator shows of itself: to gateways (models) and to operators. Plain values.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "base/time.h"
#include "coordinator/worker.h"

namespace penstock::coordinator {

// What a prefill worker found out about a decode worker.
struct PairReport {
  absl::Status status = absl::UnavailableError("not tried yet");
  std::string transport = {};  // "shm", "tcp", ...
  // Of a message without bytes; of bytes that were verified. 0: not measured.
  Duration round_trip = {};
  double bytes_per_s = 0;
};

struct PairView {
  std::string prefill = {};
  std::string decode = {};
  PairReport report = {};
};

struct ModelView {
  std::string name = {};
  bool ready = false;
  std::uint32_t block_tokens = 0;
  std::int32_t context_tokens = 0;  // The least of its decode workers; 0 without any.
  Identity identity = {};           // Of its workers; empty without any.
  bool operator==(const ModelView&) const = default;
};

struct WorkerView {
  Registration info = {};
  LoadReport load = {};
  const char* state = "";          // "loading", "ready", "away", "draining", "drained".
  std::uint32_t prefills = 0;      // Given and not yet computed.
  std::uint64_t blocks_known = 0;  // That the prefix index lists.
};

struct StoreView {
  Registration info = {};
  LoadReport load = {};
  const char* state = "";           // As of workers.
  std::uint64_t copies_known = 0;   // That the index lists.
  std::uint64_t bytes_planned = 0;  // That live plans are to fetch from it.
};

}  // namespace penstock::coordinator

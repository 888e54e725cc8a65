// SPDX-License-Identifier: Apache-2.0
// Recorded or made-up traffic: when requests arrive, how long they are, and what their prompts
// share.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/time.h"

namespace penstock::sim {

inline constexpr std::uint32_t kTraceBlockTokens = 512;  // As in Mooncake's traces.

struct TraceRequest {
  Duration at{};  // From the begin; ascending.
  std::uint32_t input_tokens = 0;
  std::uint32_t output_tokens = 0;
  // One id for each block of the prompt, the partial last one too; equal ids: equal prompts up to
  // there.
  std::vector<std::uint64_t> blocks = {};
};

// Mooncake's JSONL: one object a line with timestamp (milliseconds), input_length, output_length
// and hash_ids. INVALID_ARGUMENT names line and field; NOT_FOUND: no such file.
absl::StatusOr<std::vector<TraceRequest>> ReadTrace(const std::string& path);

// Traffic in the shape of Mooncake's conversation trace: arrivals at random over an hour, one first
// block that all share, conversations that come back longer. The same arguments, the same trace.
std::vector<TraceRequest> MakeTrace(std::size_t requests, std::uint64_t seed);

}  // namespace penstock::sim

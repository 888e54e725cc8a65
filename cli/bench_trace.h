// SPDX-License-Identifier: Apache-2.0
// Recorded traffic, as published: Mooncake's JSONL and Azure's CSV. Files are hostile: every error
// names the line.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "cli/bench_workload.h"

namespace penstock::cli {

// Tokens that one hash id of Mooncake's traces stands for.
inline constexpr std::int32_t kMooncakeBlockTokens = 512;
inline constexpr std::size_t kTraceBytesMax = std::size_t{1} << 30;
inline constexpr std::size_t kTraceRequestsMax = std::size_t{1} << 22;

// The first `limit` requests (0: all), in order of arrival, the first at 0. Which format it is, the
// text shows:
//   {"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47, ...]}
// has milliseconds and a block of 512 tokens for each hash id, the last one partial: equal ids,
// equal tokens;
//   TIMESTAMP,ContextTokens,GeneratedTokens
//   2023-11-16 18:15:46.6805900,374,44
// says nothing of what prompts share: nothing.
// INVALID_ARGUMENT with `name` and the line.
absl::StatusOr<std::vector<BenchRequest>> ParseTrace(std::string_view name, std::string_view text,
                                                     std::size_t limit);

}  // namespace penstock::cli

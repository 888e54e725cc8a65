// SPDX-License-Identifier: Apache-2.0
// What a benchmark sends: when each request arrives, its prompt, and how many tokens it wants.
// Prompts are made when they are sent, out of pieces with numbers: equal numbers, equal tokens, so
// shared beginnings are a matter of sharing pieces.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "base/key.h"
#include "base/time.h"
#include "cli/bench_lengths.h"

namespace penstock::cli {

struct BenchPiece {
  std::uint64_t content = 0;
  std::int32_t tokens = 0;
};

struct BenchRequest {
  Duration arrival = {};  // After the first; of a closed loop, nothing.
  std::vector<BenchPiece> prompt = {};
  std::int32_t prompt_tokens = 0;  // Of all pieces.
  std::int32_t output_tokens = 1;
};

// Token ids below `vocab`; of the same piece, a longer one begins with a shorter one.
std::vector<TokenId> MakePrompt(const BenchRequest& request, std::int32_t vocab);

struct SyntheticWorkload {
  std::uint64_t seed = 1;
  std::int32_t requests = 100;
  // Arrivals a second, exactly so on average: a Poisson process of which is known when the last one
  // comes. 0: a closed loop.
  double rate = 0;
  LengthDistribution prompt = {};
  LengthDistribution output = {};
  // Each prompt begins with one of `prefixes` shared beginnings of so many tokens, and goes on with
  // what `prompt` says.
  std::int32_t prefix_tokens = 0;
  std::int32_t prefixes = 1;
};
std::vector<BenchRequest> MakeSynthetic(const SyntheticWorkload& workload);

// Cuts what is longer; both at least 1, 0: as long as it is. How many requests were cut.
std::int32_t CutLengths(std::int32_t prompt_max, std::int32_t output_max,
                        std::vector<BenchRequest>& requests);

}  // namespace penstock::cli

// SPDX-License-Identifier: Apache-2.0
// What `penstock replay` prints and writes: hit rates of policies at capacities, against LRU's.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "cli/bench_workload.h"
#include "kvstore/replay.h"
#include "nlohmann/json.hpp"

namespace penstock::cli {

struct ReplayRow {
  std::int64_t capacity_tokens = 0;
  std::string policy;
  kvstore::ReplayResult result;
  double against_lru = 0;  // Ratio of token rates; 0 where LRU had no hit.
};

struct ReplayReport {
  std::string trace;
  std::int32_t block_tokens = 0;
  std::uint64_t blocks = 0;            // Asked for,
  std::uint64_t different_blocks = 0;  // and how many different ones.
  kvstore::ReplayResult infinite;      // Nothing is ever evicted.
  std::vector<ReplayRow> rows;         // By capacity, then in the order of policies.
};

// "1M", "500k", "2G" or "1000000" tokens, at least one block and at most a hundred thousand million.
// INVALID_ARGUMENT naming --capacity and `text`.
absl::StatusOr<std::int64_t> ParseCapacity(std::string_view text);

// INVALID_ARGUMENT for a trace that does not say which blocks prompts share.
absl::StatusOr<std::vector<kvstore::ReplayRequest>> ToReplay(
    std::string_view name, std::span<const BenchRequest> requests);

// Each policy at each capacity, and LRU whether it is asked for or not. Names are those of
// kvstore/eviction.h.
absl::StatusOr<ReplayReport> RunReplay(std::string_view trace,
                                       std::span<const kvstore::ReplayRequest> requests,
                                       std::span<const std::int64_t> capacities,
                                       std::span<const std::string> policies,
                                       std::size_t ghosts_max);

std::string ReplayText(const ReplayReport& report);
nlohmann::ordered_json ReplayJson(const ReplayReport& report);
std::string ReplaySvg(const ReplayReport& report);

}  // namespace penstock::cli

// SPDX-License-Identifier: Apache-2.0
// What a policy would have saved on recorded traffic: one global cache, requests in their order, each
// chain head to tail, answers not cached.
//
// Of a request hits are its longest held prefix, counted before the request changes anything:
// min(blocks held * block_tokens, prompt_tokens). Then each of its blocks in turn is used, or put, whereupon
// the policy evicts what is above capacity; a prompt's partial end counts as a block. Time is the
// trace's.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/time.h"
#include "kvstore/eviction.h"

namespace penstock::kvstore {

struct ReplayRequest {
  Duration arrival = {};  // After the first; never before the one before.
  std::int32_t prompt_tokens = 0;
  std::vector<std::uint64_t> blocks = {};  // Equal ids, equal tokens and equal beginnings.
};

struct ReplayResult {
  std::uint64_t requests = 0;
  std::uint64_t prompt_tokens = 0;
  std::uint64_t hit_tokens = 0;
  std::uint64_t evicted_blocks = 0;
  double request_rates = 0;  // Sum of each request's hit rate.

  double token_rate() const;    // Of all prompt tokens, how many were hits.
  double request_rate() const;  // Mean over requests.
};

// `policy` is new and has capacity_bytes = capacity_blocks: a block is a byte here. 0 blocks: nothing
// is ever evicted.
ReplayResult Replay(std::span<const ReplayRequest> requests, std::int32_t block_tokens,
                    std::uint64_t capacity_blocks, EvictionPolicy& policy);

}  // namespace penstock::kvstore

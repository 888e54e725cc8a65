// SPDX-License-Identifier: Apache-2.0
#include "kvstore/replay.h"

#include <algorithm>
#include <cstring>

namespace penstock::kvstore {
namespace {

// Tables take the first bytes for a hash: they must look like one.
BlockKey KeyOf(std::uint64_t id) {
  BlockKey key;
  const std::uint64_t mixed = (id ^ (id >> 32)) * 0x9e3779b97f4a7c15;
  std::memcpy(key.chain.bytes.data(), &mixed, sizeof(mixed));
  std::memcpy(key.chain.bytes.data() + sizeof(mixed), &id, sizeof(id));
  return key;
}

}  // namespace

double ReplayResult::token_rate() const {
  return prompt_tokens == 0 ? 0
                            : static_cast<double>(hit_tokens) / static_cast<double>(prompt_tokens);
}

double ReplayResult::request_rate() const {
  return requests == 0 ? 0 : request_rates / static_cast<double>(requests);
}

ReplayResult Replay(std::span<const ReplayRequest> requests, std::int32_t block_tokens,
                    std::uint64_t capacity_blocks, EvictionPolicy& policy) {
  ReplayResult result;
  std::vector<BlockKey> chain, victims;
  for (const ReplayRequest& request : requests) {
    const MonoTime now = MonoTime() + request.arrival;
    chain.clear();
    for (const std::uint64_t id : request.blocks) chain.push_back(KeyOf(id));
    std::int64_t held = 0;
    while (held < std::ssize(chain) && policy.Holds(chain[static_cast<std::size_t>(held)])) ++held;
    const std::int64_t hits = std::min<std::int64_t>(held * block_tokens, request.prompt_tokens);
    ++result.requests;
    result.prompt_tokens += static_cast<std::uint64_t>(request.prompt_tokens);
    result.hit_tokens += static_cast<std::uint64_t>(hits);
    result.request_rates += static_cast<double>(hits) / request.prompt_tokens;

    const bool partial = request.prompt_tokens % block_tokens != 0;
    policy.Ask({.chain = chain, .partial_tail = partial}, now);
    EvictionBlock block;
    for (std::size_t i = 0; i < chain.size(); ++i) {
      if (policy.Use(chain[i], now)) continue;
      block.key = chain[i];
      if (i > 0) block.parent = chain[i - 1];
      block.tokens_before =
          static_cast<std::uint32_t>(i) * static_cast<std::uint32_t>(block_tokens);
      block.partial = partial && i + 1 == chain.size();
      policy.Put(block, now);
      if (capacity_blocks == 0 || policy.held_bytes() <= capacity_blocks) continue;
      victims.clear();
      policy.Evict(policy.held_bytes() - capacity_blocks, now, victims);
      result.evicted_blocks += victims.size();
    }
  }
  return result;
}

}  // namespace penstock::kvstore

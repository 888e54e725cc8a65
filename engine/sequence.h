// SPDX-License-Identifier: Apache-2.0
// A request's tokens as they grow: one answer, or the prompt that several answers will share.
#pragma once

#include <compare>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/key.h"
#include "engine/block_table.h"
#include "engine/coming.h"
#include "engine/swap_pool.h"

namespace penstock::engine {

// Who comes first: higher priority, earlier request, lower choice. Unique and fixed for life.
struct Rank {
  std::int32_t priority = 0;
  std::uint64_t request = 0;
  std::int32_t choice = 0;

  bool operator<(const Rank& other) const {
    if (priority != other.priority) return priority > other.priority;
    if (request != other.request) return request < other.request;
    return choice < other.choice;
  }
};

// Made by the engine, scheduled by the scheduler, which must let go of it (Remove) before it goes.
struct Sequence {
  // `own_root`: none is that of no salt.
  Sequence(KvPool& pool, Rank own_rank, std::vector<TokenId> own_tokens,
           const std::optional<Chain>& own_root, std::uint32_t tenant,
           LossClass own_accepts = LossClass::kExact)
      : rank(own_rank),
        tokens(std::move(own_tokens)),
        root(own_root.has_value() ? *own_root
                                  : RootChain({}, static_cast<std::uint32_t>(pool.block_tokens()))),
        block_tokens(pool.block_tokens()),
        accepts(own_accepts),
        blocks(pool, tenant) {}

  // Chains of the first `count` blocks, all of whose tokens are there; each is hashed once.
  std::span<const Chain> Chains(std::int32_t count);
  // Tokens whose KV is not in a block yet. The logits of the last give the next token.
  std::int32_t pending() const { return static_cast<std::int32_t>(tokens.size()) - computed; }

  const Rank rank;
  std::int32_t choice = 0;           // Which answer; while there are several to come, the first.
  std::int32_t answers_to_come = 0;  // That will share its blocks, besides its own.
  std::vector<TokenId> tokens;       // Prompt and answer so far.
  std::int32_t computed = 0;         // Of tokens: their KV is in `blocks` or `saved`.
  const Chain root;
  std::vector<Chain> chains;
  const std::int32_t block_tokens;
  const LossClass accepts;  // Of KV that it may attend to.
  BlockTable blocks;
  std::unique_ptr<SwapPool::Saved> saved;  // While swapped out.

  // kParked: holds its blocks, is not scheduled.
  enum class State : std::uint8_t { kOutside, kWaiting, kRunning, kParked };
  State state = State::kOutside;
  bool prefill_only = false;  // No token is drawn after the last one.
  Coming coming;
  bool started = false;            // Ran before; else still counts as waiting for admission.
  std::int32_t reused_tokens = 0;  // Found in the pool, instead of computing them first.
  std::int32_t preemptions = 0;
  std::int64_t considered_in = 0;  // The scheduler's step that last looked at it.
};

inline std::span<const Chain> Sequence::Chains(std::int32_t count) {
  while (static_cast<std::int32_t>(chains.size()) < count) {
    const std::span<const TokenId> block = std::span<const TokenId>(tokens).subspan(
        chains.size() * static_cast<std::size_t>(block_tokens),
        static_cast<std::size_t>(block_tokens));
    chains.push_back(NextChain(chains.empty() ? root : chains.back(), block));
  }
  return std::span<const Chain>(chains).first(static_cast<std::size_t>(count));
}

}  // namespace penstock::engine

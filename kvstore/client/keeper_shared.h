// SPDX-License-Identifier: Apache-2.0
// What a keeper has in common with its pool's thread and with tasks, which may end after it. A part of
// the keeper.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <optional>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "kvstore/client/keeper.h"

namespace penstock::kvstore {

struct Keeper::Shared {
  // Not Abseil's, into which the thread sanitizer cannot see. Guards all.
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<Slot> free;
  int encoding = 0;  // Tasks that read the pool, or write a slot.
  absl::flat_hash_set<BlockKey> kept;
  std::deque<BlockKey> kept_order;
  CodecScratch demote;  // The pool's thread's.
  std::uint64_t demotions_dropped = 0;
  std::atomic<CodecId> chosen = CodecId::kRaw;  // Not guarded.

  std::optional<Slot> TakeSlot() {
    const std::lock_guard lock(mutex);
    if (free.empty()) return std::nullopt;
    const Slot slot = free.back();
    free.pop_back();
    return slot;
  }
  bool Kept(const BlockKey& key) {
    const std::lock_guard lock(mutex);
    return kept.contains(key);
  }
};

}  // namespace penstock::kvstore

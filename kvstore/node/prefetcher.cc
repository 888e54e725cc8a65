// SPDX-License-Identifier: Apache-2.0
#include "kvstore/node/prefetcher.h"

#include <optional>

namespace penstock::kvstore {

Prefetcher::Prefetcher(Loop& loop, TierSet& tiers, Options options)
    : loop_(loop), tiers_(tiers), options_(options) {}

void Prefetcher::Want(std::span<const BlockKey> keys, MonoTime deadline) {
  for (const BlockKey& key : keys) {
    const std::optional<Tier> where = tiers_.Where(key);
    if (!where.has_value() || *where == Tier::kHost) continue;
    if (queue_.size() >= options_.queue_max) {
      ++stats_.passed_over;
      continue;
    }
    queue_.push_back({key, deadline});
  }
  Pump();
}

void Prefetcher::Pump() {
  while (!queue_.empty() && reading_ < options_.reads_max) {
    const Wanted wanted = queue_.front();
    queue_.pop_front();
    const std::optional<Tier> where = tiers_.Where(wanted.key);
    if (where == Tier::kHost) continue;  // Somebody was sooner.
    if (!where.has_value() || wanted.deadline <= loop_.Now()) {
      ++stats_.passed_over;
      continue;
    }
    ++reading_;
    tiers_.Get(
        wanted.key, wanted.deadline,
        [this, watch = life_.watch()](const absl::StatusOr<TierSet::Got>& got) {
          if (watch.over()) return;
          --reading_;
          ++(got.ok() ? stats_.brought : stats_.passed_over);
          // Not from inside a get of the tiers.
          loop_.Post(life_.Guard([this] { Pump(); }));
        },
        transfer::MoveClass::kPrefetch);
  }
}

}  // namespace penstock::kvstore

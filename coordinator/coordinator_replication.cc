// SPDX-License-Identifier: Apache-2.0
// Store nodes from which too much is fetched: who else is to have it.
#include <algorithm>

#include "coordinator/coordinator_impl.h"

namespace penstock::coordinator {
namespace {

constexpr std::size_t kCopiesMax = 3072;    // Blocks of one action.
constexpr std::uint64_t kRoomOfBytes = 16;  // What comes may take one in so many of host memory.

bool HasHolder(std::span<const StoreIndex::Holder> holders, WorkerId id) {
  return std::ranges::any_of(
      holders, [&](const StoreIndex::Holder& holder) { return WorkerId{holder.node} == id; });
}

std::uint64_t HostBytesOf(const Worker& store) {
  for (const TierLoad& tier : store.load.tiers) {
    if (tier.tier == Tier::kHost) return tier.bytes_max;
  }
  return 0;
}

}  // namespace

void Coordinator::Replicate(const Request& request, const Fetch& fetch, MonoTime now) {
  const Worker& from = members_.at(fetch.store);
  const ReuseSituation situation = {.means = &request.pool->fetch_means};
  const double alone = FetchBytesPerS(situation, options_.policy.reuse,
                                      members_.at(request.prefill), from, fetch.tier, fetch.codec);
  if (!replication_.IsHot(from.fetched.PerS(now), alone)) return;
  const auto chains = std::span(*request.chains).subspan(fetch.first, fetch.end - fetch.first);
  Replication::Range range = replication_.Count(chains, now);
  if (range.empty()) return;
  range.end = std::min(range.end, range.first + kCopiesMax);
  const std::uint64_t bytes = fetch.bytes / chains.size() * (range.end - range.first);
  const StoredGroup& group = request.pool->groups[0];
  const CopyName name =
      NameOf({group.copy_spaces[static_cast<std::size_t>(fetch.loss)], chains[range.first]});
  const WorkerId to = ReplicaNode(request, fetch, name, bytes, now);
  if (to == kNoWorker) return;
  if (!replication_.Ask(chains.subspan(range.first, range.end - range.first), bytes, now)) return;
  range.first += fetch.first;
  range.end += fetch.first;
  stats_.replicated_blocks += AskForCopies(request, fetch, to, range);
}

// Of those that have room and give little: one of the reader's host, else that which gives least.
WorkerId Coordinator::ReplicaNode(const Request& request, const Fetch& fetch, const CopyName& name,
                                  std::uint64_t bytes, MonoTime now) {
  StoreIndex::Found found;
  store_index_.Lookup(std::span(&name, 1), 0, StoreIndex::AtHole::kEnd, found);
  const Replication::Options& options = replication_.options();
  if (found.holders.size() >= options.holders_max) return kNoWorker;
  const double most = options.cold_share * members_.at(fetch.store).fetched.PerS(now);
  const std::uint64_t host = members_.at(request.prefill).host;
  const auto order = [&](const Worker& store) {
    return std::tuple(host == 0 || store.host != host, store.fetched.PerS(now), store.id);
  };
  const Worker* best = nullptr;
  for (const Worker* store : stores_) {
    if (store == nullptr || !store->usable() || store->id == fetch.store) continue;
    if (store->fetched.PerS(now) > most || HostBytesOf(*store) / kRoomOfBytes < bytes) continue;
    if (HasHolder(found.holders, store->id)) continue;
    if (best == nullptr || order(*store) < order(*best)) best = store;
  }
  return best == nullptr ? kNoWorker : best->id;
}

// Of each group those blocks of the range that the one node has and the other has not. How many.
std::size_t Coordinator::AskForCopies(const Request& request, const Fetch& fetch, WorkerId to,
                                      Replication::Range range) {
  const std::span<const Chain> chains(*request.chains);
  std::size_t asked = 0;
  for (const StoredGroup& group : request.pool->groups) {
    const Namespace space = group.copy_spaces[static_cast<std::size_t>(fetch.loss)];
    names_.clear();
    for (std::size_t i = range.first; i < range.end; ++i) {
      names_.push_back(NameOf({space, chains[i]}));
    }
    StoreIndex::Found found;
    store_index_.Lookup(names_, 0, StoreIndex::AtHole::kGoOn, found);
    for (const StoreIndex::Run& run : found.runs) {
      const auto holders = found.of(run);
      if (!HasHolder(holders, fetch.store) || HasHolder(holders, to)) continue;
      const std::size_t first = range.first + run.first;
      const auto blocks = chains.subspan(first, run.end - run.first);
      ReplicateAction action = {.worker = PeerOf(to),
                                .from = PeerOf(fetch.store),
                                .copy_space = space,
                                .chains = {blocks.begin(), blocks.end()},
                                .tenant = request.tenant,
                                .within = replication_.options().within};
      if (first > 0) action.parent = chains[first - 1];
      actions_.emplace_back(std::move(action));
      asked += blocks.size();
    }
  }
  return asked;
}

}  // namespace penstock::coordinator

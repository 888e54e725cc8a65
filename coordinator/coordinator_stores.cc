// SPDX-License-Identifier: Apache-2.0
// Store nodes: what they say, what plans fetch from them, and what is shown of them.
#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/fetch_pace.h"
#include "base/status.h"
#include "coordinator/coordinator_impl.h"

namespace penstock::coordinator {
namespace {

constexpr std::int64_t kItemsMax = 1 << 20;   // Events of one message.
constexpr std::uint64_t kPrefetchMax = 3072;  // Blocks of one action.
constexpr double kRateMin = 1;  // Bytes per second; what is slower was no measurement.

bool IsRate(double bytes_per_s) { return std::isfinite(bytes_per_s) && bytes_per_s >= kRateMin; }

bool IsTier(Tier tier) { return tier >= Tier::kDevice && tier <= Tier::kRemote; }

}  // namespace

absl::Status Coordinator::AddStore(WorkerId id) {
  RETURN_IF_ERROR(store_index_.Add(IndexOf32(id)));
  if (IndexOf(id) >= stores_.size()) stores_.resize(IndexOf(id) + 1);
  stores_[IndexOf(id)] = &members_.at(id);
  return absl::OkStatus();
}

void Coordinator::ReportStore(Worker& store) {
  for (const TierLoad& tier : store.load.tiers) {
    if (!IsTier(tier.tier) || !IsRate(tier.bytes_per_s)) continue;
    store.tier_bytes_per_s[static_cast<std::size_t>(tier.tier)] = tier.bytes_per_s;
  }
  if (store_index_.degraded(IndexOf32(store.id))) {
    actions_.emplace_back(SnapshotAction{PeerOf(store.id)});
  }
}

void Coordinator::AssignStores() {
  for (const auto& [name, pool] : pools_) {
    for (const auto* workers : {&pool->prefills, &pool->decodes}) {
      for (const Worker* worker : *workers) AssignStore(members_.at(worker->id), false);
    }
  }
}

void Coordinator::AssignStore(Worker& worker, bool tell_again) {
  if (worker.info.groups.empty()) return;
  const auto order = [&](const Worker& store) {
    return std::tuple(worker.host == 0 || store.host != worker.host, store.keeps_for, store.id);
  };
  const Worker* best = nullptr;
  for (const Worker* store : stores_) {
    if (store == nullptr || !store->usable()) continue;
    if (best == nullptr || order(*store) < order(*best)) best = store;
  }
  const WorkerId before = worker.keeper;
  if (before != kNoWorker && stores_[IndexOf(before)] != nullptr) {
    const Worker& store = members_.at(before);
    const bool closer = best != nullptr && !std::get<0>(order(*best)) && std::get<0>(order(store));
    if (!store.draining && !store.gone && !closer) best = &store;
  }
  const WorkerId after = best == nullptr ? kNoWorker : best->id;
  if (before != after) {
    if (before != kNoWorker) --members_.at(before).keeps_for;
    if (after != kNoWorker) ++members_.at(after).keeps_for;
    worker.keeper = after;
  }
  if (before == after && (!tell_again || after == kNoWorker)) return;
  actions_.emplace_back(
      StoreAction{PeerOf(worker.id), after == kNoWorker ? Peer() : PeerOf(after)});
}

void Coordinator::RemoveStore(WorkerId id) {
  AssignStores();
  store_index_.Drop(IndexOf32(id));
  stores_[IndexOf(id)] = nullptr;
  sweep_at_ = MonoTime::min();
  for (const auto& [name, pool] : pools_) {
    for (const auto* workers : {&pool->prefills, &pool->decodes}) {
      for (const Worker* worker : *workers) {
        std::erase_if(members_.at(worker->id).fetch_bytes_per_s,
                      [&](const auto& rate) { return rate.first.first == id; });
      }
    }
  }
  // What was to come from it is computed; so is what was to come behind that.
  const std::vector<Serial> mine(worker_requests_[IndexOf(id)].begin(),
                                 worker_requests_[IndexOf(id)].end());
  for (const Serial serial : mine) {
    Request& request = *requests_.at(serial);
    const auto first = std::ranges::find(request.fetches, id, &Fetch::store);
    UnbookFetches(request, static_cast<std::size_t>(first - request.fetches.begin()));
  }
}

absl::Status Coordinator::Copies(const WorkerRef& ref, std::uint64_t first,
                                 std::span<const CopyEvent> events, MonoTime now) {
  ASSIGN_OR_RETURN(const WorkerId id, members_.Resolve(ref));
  RETURN_IF_ERROR(
      CheckRange("copy events", static_cast<std::int64_t>(events.size()), 0, kItemsMax));
  if (members_.at(id).info.role != Role::kStore) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", ref.name, "' is no store node and has no copies"));
  }
  if (first == 0 || first > UINT64_MAX / 2) {
    return absl::InvalidArgumentError(
        absl::StrCat("copy events are numbered from 1 to 2^63, got ", first));
  }
  members_.Renew(id, now);
  if (store_index_.Apply(IndexOf32(id), first, events) == Applied::kGap) {
    actions_.emplace_back(SnapshotAction{PeerOf(id)});
  }
  store_index_.Sweep();
  return absl::OkStatus();
}

void Coordinator::TakeFetchRates(Pool& pool, Worker& worker) {
  for (const FetchRate& rate : worker.load.fetches) {
    const WorkerId id = members_.Find(rate.store);
    if (id == kNoWorker || !IsTier(rate.tier) || !IsRate(rate.bytes_per_s)) continue;
    const Worker& store = members_.at(id);
    if (store.info.role != Role::kStore) continue;
    worker.fetch_bytes_per_s[{id, rate.codec}][static_cast<std::size_t>(rate.tier)] =
        rate.bytes_per_s;
    pool.fetch_means.Take(worker.host != 0 && worker.host == store.host, rate.tier, rate.codec,
                          rate.bytes_per_s);
  }
}

// Who has what of the prompt: its leading blocks, and, where those end before the blocks do that
// some worker has itself, what follows these.
const Reuse* Coordinator::FindReuse(const Pool& pool, const Request& request) {
  if (pool.groups.empty() || store_index_.blocks() == 0) return nullptr;
  const std::span<const Chain> chains(*request.chains);
  const std::uint32_t own_most = usable_.empty() ? 0 : *std::ranges::max_element(usable_);
  const std::size_t classes =
      MostLoss(pool.codecs) != LossClass::kExact ? static_cast<std::size_t>(request.reuse) + 1 : 1;
  found_.resize(classes * pool.groups.size());
  for (std::size_t i = 0; i < found_.size(); ++i) {
    const StoredGroup& group = pool.groups[i % pool.groups.size()];
    names_.clear();
    for (const Chain& chain : chains) {
      names_.push_back(NameOf({group.copy_spaces[i / pool.groups.size()], chain}));
    }
    StoreIndex::Found& found = found_[i];
    found.clear();
    if (group.window_tokens != 0 || classes > 1) {
      store_index_.Lookup(names_, 0, StoreIndex::AtHole::kGoOn, found);
      continue;
    }
    store_index_.Lookup(names_, 0, StoreIndex::AtHole::kEnd, found);
    const std::uint32_t end = found.runs.empty() ? 0 : found.runs.back().end;
    if (end < own_most) store_index_.Lookup(names_, own_most, StoreIndex::AtHole::kEnd, found);
  }
  JoinGroups(pool.groups, found_, pool.codecs, stores_, options_.policy.reuse.segments_max, reuse_);
  return reuse_.segments.empty() ? nullptr : &reuse_;
}

// For a request that waits: what lies on disks or beyond, where nobody has it in memory. Once; nodes
// give way to what is asked for now.
void Coordinator::Prefetch(const Pool& pool, const Request& request, MonoTime now) {
  LookUp(pool, request);
  const Reuse* const reuse = FindReuse(pool, request);
  if (reuse == nullptr) return;
  const std::uint32_t blocks_max = (request.prompt_tokens - 1) / pool.block_tokens;
  const std::uint32_t blocks = std::min(blocks_max, reuse->segments.back().end);
  for (const Reuse::Segment& segment : reuse->segments) {
    const auto nearest = std::ranges::min_element(reuse->of(segment), {}, &Reuse::Choice::tier);
    if (nearest->tier <= Tier::kHost) continue;
    for (const StoredGroup& group : pool.groups) {
      const std::uint64_t position = std::uint64_t{blocks} * pool.block_tokens;
      const std::uint64_t visible = group.window_tokens == 0 || position < group.window_tokens
                                        ? 0
                                        : (position - group.window_tokens + 1) / pool.block_tokens;
      const auto first = std::max<std::uint64_t>(segment.first, visible);
      const auto end = std::min<std::uint64_t>({segment.end, blocks, first + kPrefetchMax});
      if (first >= end) continue;
      const auto chains = std::span(*request.chains).subspan(first, end - first);
      actions_.emplace_back(
          PrefetchAction{.worker = PeerOf(nearest->store),
                         .copy_space = group.copy_spaces[static_cast<std::size_t>(nearest->loss)],
                         .chains = {chains.begin(), chains.end()},
                         .within = std::max(request.state_end - now, Duration())});
      stats_.prefetched_blocks += end - first;
    }
  }
}

void Coordinator::BookFetches(Request& request, const Candidate& candidate, MonoTime now) {
  request.fetches = candidate.fetches;
  for (const Fetch& fetch : request.fetches) {
    Worker& store = members_.at(fetch.store);
    store.fetch_bytes[static_cast<std::size_t>(fetch.tier)] += fetch.bytes;
    store.fetched.Add(fetch.bytes, now);
    stats_.booked_fetch_bytes += fetch.bytes;
    worker_requests_[IndexOf(fetch.store)].insert(request.serial);
    Replicate(request, fetch, now);
  }
}

void Coordinator::UnbookFetches(Request& request, std::size_t from) {
  std::vector<WorkerId> left;
  while (request.fetches.size() > from) {
    const Fetch fetch = request.fetches.back();
    request.fetches.pop_back();
    members_.at(fetch.store).fetch_bytes[static_cast<std::size_t>(fetch.tier)] -= fetch.bytes;
    stats_.booked_fetch_bytes -= fetch.bytes;
    left.push_back(fetch.store);
  }
  for (const WorkerId id : left) {
    const auto of_it = [&](const Fetch& fetch) { return fetch.store == id; };
    if (std::ranges::any_of(request.fetches, of_it)) continue;
    worker_requests_[IndexOf(id)].erase(request.serial);
    CheckDrained(id);
  }
}

std::vector<FetchSource> Coordinator::SourcesOf(const Request& request) const {
  std::vector<FetchSource> sources;
  for (const Fetch& fetch : request.fetches) {
    sources.push_back({.store = PeerOf(fetch.store),
                       .first_block = fetch.first,
                       .end_block = fetch.end,
                       .tier = fetch.tier,
                       .loss = fetch.loss,
                       .compute_within = FromSeconds(fetch.compute_seconds),
                       .fetch_time = FromSeconds(fetch.seconds)});
  }
  return sources;
}

std::vector<FetchSource> Coordinator::DecodeSourcesOf(const Request& request) const {
  std::vector<FetchSource> sources = SourcesOf(request);
  if (request.prefill == request.decode) return sources;
  const ReuseSituation situation = {.means = &request.pool->fetch_means};
  FetchPace pace;
  for (std::size_t i = 0; i < sources.size(); ++i) {
    const Fetch& fetch = request.fetches[i];
    const double rate =
        FetchBytesPerS(situation, options_.policy.reuse, members_.at(request.decode),
                       members_.at(fetch.store), fetch.tier, fetch.codec);
    const double seconds = static_cast<double>(fetch.bytes) / rate;
    sources[i].fetch_time = FromSeconds(seconds);
    pace.fetch += seconds;
    pace.compute += fetch.compute_seconds;
  }
  if (pace.beside()) sources.clear();
  return sources;
}

std::vector<StoreView> Coordinator::Stores() const {
  std::vector<StoreView> views;
  for (const Worker* store : stores_) {
    if (store == nullptr) continue;
    StoreView view = {.info = store->info,
                      .load = store->load,
                      .state = StateOf(*store),
                      .copies_known = store_index_.copies_of(IndexOf32(store->id))};
    for (const std::uint64_t bytes : store->fetch_bytes) view.bytes_planned += bytes;
    views.push_back(std::move(view));
  }
  return views;
}

}  // namespace penstock::coordinator

// SPDX-License-Identifier: Apache-2.0
#include "kvstore/node/store_member.h"

#include <string>
#include <utility>

namespace penstock::kvstore {

StoreMember::StoreMember(StoreNode& node, Options options) : node_(node), every_(options.every) {
  rpc::WorkerRegistration registration = std::move(options.registration);
  registration.role = rpc::WorkerRole::kStore;
  node_.set_on_event([this](const CopyEvent& event) { OnEvent(event); });
  session_ = std::make_unique<rpc::SessionClient>(
      node_.loop(), std::move(options.session), std::move(registration),
      rpc::SessionClient::Events{
          // Of workers alone.
          .on_reserve = [](const rpc::ReserveCommand&) {},
          .on_start = [](const rpc::StartCommand&) {},
          .on_release = [](const Attempt&) {},
          .on_snapshot = [this] { Snapshot(); },
          .on_preflight = [](const rpc::PreflightCommand&) {},
          .on_drained = [this] { Leave(); },
          .on_prefetch =
              [this](const rpc::PrefetchCommand& c) {
                std::vector<BlockKey> keys;
                for (const Chain& chain : c.chains) keys.push_back({c.copy_space, chain});
                node_.prefetcher().Want(keys, node_.loop().Now() + c.within);
              },
          .on_replicate =
              [this](rpc::ReplicateCommand c) {
                node_.replicator().Copy(
                    {.from = {{c.from.name, c.from.transfer_epoch}, c.from.transfer_address},
                     .space = c.copy_space,
                     .chains = std::move(c.chains),
                     .parent = c.parent,
                     .tenant = c.tenant,
                     .deadline = node_.loop().Now() + c.within});
              },
          .load = [this] { return Load(); },
          .on_refused = options.on_end,
          .on_left = [on_end = options.on_end] { on_end(absl::OkStatus()); }});
}

StoreMember::~StoreMember() {
  node_.set_on_event(nullptr);
  node_.loop().CancelTimer(timer_);
}

void StoreMember::OnEvent(const CopyEvent& event) {
  if (events_.empty()) {
    timer_ = node_.loop().At(node_.loop().Now() + every_, [this] { Flush(); });
  }
  events_.push_back(event);
}

void StoreMember::Flush() {
  const std::vector<CopyEvent> events = std::exchange(events_, {});
  if (!events.empty()) session_->SayCopies(events);
}

void StoreMember::Snapshot() {
  // What changed before is in it.
  node_.loop().CancelTimer(timer_);
  events_.clear();
  session_->SayCopies(node_.tiers().Snapshot());
}

rpc::WorkerLoad StoreMember::Load() {
  rpc::WorkerLoad load;
  const auto add = [&](Tier tier, std::uint64_t bytes, std::uint64_t bytes_max,
                       std::uint64_t copies) {
    const TierSet::TierStats& stats = node_.tiers().stats(tier);
    load.tiers.push_back({.tier = tier,
                          .bytes = bytes,
                          .bytes_max = bytes_max,
                          .copies = copies,
                          .hits = stats.hits,
                          .misses = stats.misses,
                          .bytes_per_s = stats.bytes_per_s});
  };
  const HostTier::Stats host = node_.tiers().host().stats();
  add(Tier::kHost, host.bytes, host.bytes_max, host.copies);
  if (DiskTier* const tier = node_.tiers().disk(); tier != nullptr) {
    const DiskTier::Stats disk = tier->stats();
    add(Tier::kDisk, disk.bytes_live, disk.bytes_live_max, disk.blocks);
  }
  if (node_.tiers().remote() != nullptr) add(Tier::kRemote, 0, 0, node_.tiers().remote_known());
  return load;
}

void StoreMember::WriteMetrics(MetricsWriter& writer) const {
  node_.turns().WriteMetrics(writer);
  const Prefetcher::Stats& prefetched = node_.prefetcher().stats();
  writer.Counter("penstock_kvstore_prefetched_copies_total",
                 "Copies brought to memory for requests that waited",
                 static_cast<double>(prefetched.brought));
  writer.Counter("penstock_kvstore_prefetches_passed_over_total",
                 "Copies that were not: too many, too late, or the tier could not",
                 static_cast<double>(prefetched.passed_over));
  const Replicator::Stats& replicated = node_.replicator().stats();
  writer.Counter("penstock_kvstore_replicated_copies_total",
                 "Copies of hot blocks brought from other nodes",
                 static_cast<double>(replicated.copied));
  writer.Counter("penstock_kvstore_replicated_bytes_total", "Of those",
                 static_cast<double>(replicated.bytes));
  writer.Counter("penstock_kvstore_replicas_passed_over_total",
                 "Copies that were not: here already, gone there, or too late",
                 static_cast<double>(replicated.passed_over));
  const HostTier::Stats host = node_.tiers().host().stats();
  const StoreServer::Stats& server = node_.server().stats();
  const auto count = [](std::uint64_t n) { return static_cast<double>(n); };
  std::vector<Tier> tiers = {Tier::kHost};
  if (node_.tiers().disk() != nullptr) tiers.push_back(Tier::kDisk);
  if (node_.tiers().remote() != nullptr) tiers.push_back(Tier::kRemote);
  for (const Tier tier : tiers) {
    const MetricLabels labels = {{"tier", std::string(ToString(tier))}};
    const TierSet::TierStats& stats = node_.tiers().stats(tier);
    const bool in_host = tier == Tier::kHost;
    // How full the server is that the remote tier is in, is its own to say.
    if (tier != Tier::kRemote) {
      const DiskTier::Stats disk = in_host ? DiskTier::Stats() : node_.tiers().disk()->stats();
      writer.Gauge("penstock_kvstore_bytes", "Of room that is taken",
                   count(in_host ? host.bytes : disk.bytes_live), labels);
      writer.Gauge("penstock_kvstore_bytes_max", "All room",
                   count(in_host ? host.bytes_max : disk.bytes_live_max), labels);
      writer.Gauge("penstock_kvstore_copies", "Held", count(in_host ? host.copies : disk.blocks),
                   labels);
    } else {
      writer.Gauge("penstock_kvstore_copies", "Held", count(node_.tiers().remote_known()), labels);
    }
    writer.Counter("penstock_kvstore_hits_total", "Copies asked for and found, by where they lay",
                   count(stats.hits), labels);
    writer.Counter("penstock_kvstore_hit_bytes_total", "Of those", count(stats.bytes_hit), labels);
    writer.Counter("penstock_kvstore_misses_total",
                   "Copies asked for that no tier had, counted at the slowest", count(stats.misses),
                   labels);
    writer.Counter("penstock_kvstore_evicted_total",
                   "Copies let go of, to the tier below or for good", count(stats.evicted), labels);
    writer.Counter("penstock_kvstore_refused_total", "Copies that found no room",
                   count(stats.refused), labels);
    writer.Counter("penstock_kvstore_damaged_total", "Copies found wrong on their way out",
                   count(stats.damaged), labels);
    writer.Counter("penstock_kvstore_late_total", "Reads that ended by their deadline",
                   count(stats.late), labels);
  }
  if (node_.tiers().disk() != nullptr) {
    writer.Histogram("penstock_kvstore_promotion_seconds",
                     "From asked of the disk to host memory, of each copy",
                     node_.tiers().disk_wait());
  }
  if (RemoteTier* const remote = node_.tiers().remote(); remote != nullptr) {
    writer.Histogram("penstock_kvstore_remote_promotion_seconds",
                     "From asked of the remote tier to host memory, of each copy",
                     node_.tiers().remote_wait());
    const RemoteTier::Stats stats = remote->stats();
    writer.Gauge("penstock_kvstore_remote_connected", "1: the server answers",
                 stats.connected ? 1 : 0);
    writer.Gauge("penstock_kvstore_remote_waiting", "Calls of the server that have not ended",
                 count(stats.waiting));
  }
  writer.Counter("penstock_kvstore_puts_total", "Frames taken", static_cast<double>(server.puts));
  writer.Counter("penstock_kvstore_put_bytes_total", "Of those",
                 static_cast<double>(server.bytes_put));
  writer.Counter("penstock_kvstore_puts_refused_total", "Frames offered and not taken",
                 static_cast<double>(server.puts_refused));
  writer.Counter("penstock_kvstore_finds_total", "Chains asked for",
                 static_cast<double>(server.finds));
  writer.Counter("penstock_kvstore_hostile_total",
                 "Offers that were no frames of this cluster, and channels closed for what came",
                 static_cast<double>(server.hostile));
  writer.Gauge("penstock_kvstore_leases", "Promises to readers that have not ended",
               static_cast<double>(host.leases));
  writer.Gauge("penstock_kvstore_peers", "Connected", static_cast<double>(node_.server().peers()));
}

}  // namespace penstock::kvstore

// SPDX-License-Identifier: Apache-2.0
#include "coordinator/coordinator_metrics.h"

#include <array>
#include <map>
#include <string>
#include <utility>

namespace penstock::coordinator {
namespace {

void WriteWorkers(const Coordinator& coordinator, MetricsWriter& writer) {
  std::map<std::pair<std::string, std::string>, double> counts;
  for (const char* const role : {"prefill", "decode", "store"}) counts[{role, "ready"}] = 0;
  for (const WorkerView& worker : coordinator.Workers()) {
    counts[{ToString(worker.info.role), worker.state}] += 1;
  }
  for (const StoreView& store : coordinator.Stores()) counts[{"store", store.state}] += 1;
  for (const auto& [key, count] : counts) {
    writer.Gauge("penstock_coordinator_workers", "Workers and store nodes, by role and state",
                 count, {{"role", key.first}, {"state", key.second}});
  }
  std::size_t good = 0, bad = 0;
  for (const PairView& pair : coordinator.Pairs()) ++(pair.report.status.ok() ? good : bad);
  constexpr auto kPairs = "penstock_coordinator_pairs";
  constexpr auto kPairsHelp = "Pairs of workers, by whether KV was seen to move between them";
  writer.Gauge(kPairs, kPairsHelp, static_cast<double>(good), {{"verified", "yes"}});
  writer.Gauge(kPairs, kPairsHelp, static_cast<double>(bad), {{"verified", "no"}});
  for (const ModelView& model : coordinator.Models()) {
    writer.Gauge("penstock_coordinator_model_ready", "1 where a request could be placed",
                 model.ready ? 1 : 0, {{"model", model.name}});
  }
  writer.Declare(MetricKind::kGauge, "penstock_coordinator_model_ready",
                 "1 where a request could be placed");
}

void WriteStores(const Coordinator::Stats& stats, MetricsWriter& writer) {
  writer.Gauge("penstock_coordinator_store_copies", "Copies of blocks known to be in store nodes",
               static_cast<double>(stats.store_copies));
  writer.Gauge("penstock_coordinator_store_degraded_nodes",
               "Store nodes whose copies are known in part, until their snapshot",
               static_cast<double>(stats.degraded_stores));
  writer.Gauge("penstock_coordinator_store_booked_bytes", "Bytes that live plans are to fetch",
               static_cast<double>(stats.booked_fetch_bytes));
  writer.Counter("penstock_coordinator_store_prefetched_blocks_total",
                 "Blocks that store nodes were told to bring to memory for requests that wait",
                 static_cast<double>(stats.prefetched_blocks));
  writer.Counter(
      "penstock_coordinator_store_replicated_blocks_total",
      "Blocks that store nodes were told to copy from others, of which too much is asked",
      static_cast<double>(stats.replicated_blocks));
  constexpr auto kPlanned = "penstock_coordinator_store_planned_blocks_total";
  constexpr auto kPlannedHelp =
      "Full blocks of planned prompts, by where from: the prefill worker's own pool (device), a "
      "tier of a store node, or computed";
  for (const Tier tier : {Tier::kDevice, Tier::kHost, Tier::kDisk, Tier::kRemote}) {
    writer.Counter(kPlanned, kPlannedHelp,
                   static_cast<double>(stats.planned_blocks[static_cast<std::size_t>(tier)]),
                   {{"source", std::string(ToString(tier))}});
  }
  writer.Counter(kPlanned, kPlannedHelp, static_cast<double>(stats.planned_compute_blocks),
                 {{"source", "compute"}});
}

}  // namespace

void WriteMetrics(const Coordinator& coordinator, std::size_t gateways, MetricsWriter& writer) {
  const Coordinator::Stats stats = coordinator.stats();
  const auto gauge = [&](std::string_view name, std::string_view help, auto value) {
    writer.Gauge(name, help, static_cast<double>(value));
  };
  const auto counter = [&](std::string_view name, std::string_view help, auto value,
                           MetricLabels labels = {}) {
    writer.Counter(name, help, static_cast<double>(value), std::move(labels));
  };
  gauge("penstock_coordinator_requests_live", "Requests that have not ended", stats.requests);
  gauge("penstock_coordinator_queue_requests", "Of those, requests that wait for a plan",
        stats.queued);
  writer.Histogram("penstock_coordinator_queue_wait_seconds", "What each plan had to be waited for",
                   coordinator.queue_wait());
  counter("penstock_coordinator_plans_total", "Decisions for a pair of workers", stats.plans);
  counter("penstock_coordinator_admitted_total", "Requests taken in", stats.admitted);
  counter("penstock_coordinator_refused_total", "Requests refused at once", stats.refused);
  constexpr auto kEnded = "penstock_coordinator_ended_total";
  constexpr auto kEndedHelp = "Requests that have ended, by whether the answer is complete";
  counter(kEnded, kEndedHelp, stats.finished, {{"complete", "yes"}});
  counter(kEnded, kEndedHelp, stats.failed, {{"complete", "no"}});
  counter("penstock_coordinator_stale_total", "Messages of workers about attempts not live",
          stats.stale);
  gauge("penstock_coordinator_booked_prefills", "Prompts given to workers and not yet computed",
        stats.booked_prefills);
  gauge("penstock_coordinator_booked_sequences", "Sequences given to decode workers",
        stats.booked_sequences);
  gauge("penstock_coordinator_booked_blocks", "Blocks of decode workers that are spoken for",
        stats.booked_blocks);
  gauge("penstock_coordinator_booked_bytes", "KV that is to be moved", stats.booked_bytes);
  gauge("penstock_coordinator_index_blocks", "Blocks that the prefix index lists",
        stats.index_blocks);
  gauge("penstock_coordinator_degraded_workers",
        "Workers whose blocks are known in part, until their snapshot", stats.degraded_workers);
  gauge("penstock_coordinator_gateways", "Gateways that attend", gateways);
  WriteWorkers(coordinator, writer);
  WriteStores(stats, writer);
}

void WriteMetrics(const StoreStats& stats, MetricsWriter& writer) {
  writer.Gauge("penstock_coordinator_leader", "1 where this coordinator leads, 0 on a standby",
               stats.leading ? 1 : 0);
  writer.Counter("penstock_coordinator_store_errors_total", "Questions to etcd that failed",
                 static_cast<double>(stats.errors));
  writer.Counter("penstock_coordinator_store_late_total",
                 "Workers that were let in before etcd knew of them",
                 static_cast<double>(stats.late));
}

}  // namespace penstock::coordinator

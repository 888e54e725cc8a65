// SPDX-License-Identifier: Apache-2.0
// The state machine with its streams, for as long as this coordinator leads. A standby has them
// too, with nobody in them: it sends everyone to the leader.
//
// Without a store it leads from its birth, alone. With one it leads once Leadership says so and
// what an earlier leader has kept is read; when it leads no more all streams end, and a new state
// machine waits for its turn.
//
// On the coordinator's loop, all of it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/metrics.h"
#include "coordinator/coordinator_service.h"
#include "coordinator/durable_state.h"
#include "coordinator/leadership.h"
#include "coordinator/sessions_service.h"
#include "rpc/etcd.h"

namespace penstock::coordinator {

class Host final : public Settler {
 public:
  // `etcd`: null without a store. The state machine can be made (ClusterService::Make has tried).
  Host(Loop& loop, const ClusterService::Options& options, std::unique_ptr<rpc::Etcd> etcd);
  ~Host() override;

  // See ClusterService. `on_leading` is called on the loop.
  void Begin(const std::string& name, const std::string& address,
             std::function<void(bool leading)> on_leading);
  void End(std::function<void()> done);

  void Settle() override;
  absl::StatusOr<std::uint64_t> TermFor(std::uint64_t followed) override;

  void Open(std::uint64_t id, const std::shared_ptr<WorkerStream>& stream);
  void Open(std::uint64_t id, const std::shared_ptr<GatewayStream>& stream);
  void OnMessage(std::uint64_t id, const v1::WorkerMessage& message) {
    lead_->workers.OnMessage(id, message);
  }
  void OnMessage(std::uint64_t id, const v1::GatewayMessage& message) {
    lead_->gateways.OnMessage(id, message);
  }
  void OnClosed(std::uint64_t id, const v1::WorkerMessage*) { lead_->workers.OnClosed(id); }
  void OnClosed(std::uint64_t id, const v1::GatewayMessage*) { lead_->gateways.OnClosed(id); }

  // UNAVAILABLE of a standby; names the leader.
  absl::StatusOr<std::string> Explain(const std::string& request) const;
  absl::Status Drain(const std::string& name, Duration move_after);
  void Status(v1::StatusResponse* response) const;
  void Write(MetricsWriter& writer) const;

 private:
  // One leadership, or the wait for one.
  struct Lead {
    Lead(Loop& loop, Host& host, const ClusterService::Options& options,
         std::unique_ptr<DurableState> durable_in);

    const std::unique_ptr<Coordinator> machine;
    const std::unique_ptr<DurableState> durable;  // Null without a store.
    WorkerSessions workers;
    GatewaySessions gateways;
    // Workers that an earlier coordinator knew; shown until then.
    std::vector<Registration> listed = {};
    MonoTime listed_until = {};
  };
  void NewLead();
  void Load(std::int64_t revision);
  void OnLoaded(std::int64_t revision, absl::StatusOr<DurableState::Loaded> loaded);
  void OnLost();
  void ListAway(v1::StatusResponse* response) const;
  absl::Status Standby() const;  // What a standby answers.

  Loop& loop_;
  const ClusterService::Options options_;
  const MonoTime begun_;
  const std::unique_ptr<rpc::Etcd> etcd_;
  bool leading_;
  bool ended_ = false;
  std::uint64_t term_ = 0;
  std::function<void(bool)> on_leading_;
  std::unique_ptr<Lead> lead_;
  std::unique_ptr<Leadership> leadership_;  // Null without a store, and before Begin.
  std::uint64_t errors_before_ = 0;         // Of earlier leads.
  std::uint64_t late_before_ = 0;
  Loop::TimerId timer_{};
  Loop::TimerId load_timer_{};
  MonoTime next_ = MonoTime::max();  // When the timer rings.
};

}  // namespace penstock::coordinator

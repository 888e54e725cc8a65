// SPDX-License-Identifier: Apache-2.0
// A simulated worker's part in the cluster: joins the coordinator, reports, says again what a
// broken stream may have lost. The rules of rpc/session_client.h, which is gRPC's and not run here.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/coordinator.h"
#include "sim/sim_messages.h"
#include "sim/sim_network.h"
#include "sim/sim_process.h"

namespace penstock::sim {

class Session {
 public:
  struct Events {
    std::function<void(const coordinator::ReserveAction&)> on_reserve;
    std::function<void(const coordinator::StartAction&)> on_start;
    std::function<void(const Attempt&)> on_release;
    std::function<void()> on_snapshot;
    std::function<void()> on_drained;
    std::function<SayLoad()> load;
    std::function<void(const coordinator::StoreAction&)> on_store;  // Null: of a store node.
    std::function<void(const coordinator::ReplicateAction&)> on_replicate = nullptr;  // Of one.
  };

  // Everything outlives the session. `first_epoch` of its name is above those of earlier lives.
  Session(Process& process, Network& network, std::mt19937& random,
          coordinator::Registration registration, Events events);
  ~Session();

  void Say(coordinator::WorkerEvent event);
  void SayStored(const std::vector<Chain>& chains);
  void SaySnapshot(const std::vector<Chain>& chains);
  // Of a store node, in place of blocks.
  void SayCopyEvents(std::vector<CopyEvent> events);
  void Leave();

 private:
  void Connect();
  void OnCommand(const WorkerCommand& command);
  void OnJoined(Duration report_every);
  void OnClosed(const absl::Status& status);
  void Report();
  void SayBlockEvents(std::vector<BlockEvent> events);
  void Forget();

  Process& process_;
  Network& network_;
  std::mt19937& random_;
  coordinator::Registration registration_;
  const Events events_;
  std::shared_ptr<JoinStream> stream_;  // Shared with the network. Null while pausing.
  bool joined_ = false;
  Duration pause_;
  Duration report_every_{};
  Loop::TimerId timer_{};
  std::uint64_t next_block_ = 1;  // Or copy.
  std::deque<std::pair<MonoTime, coordinator::WorkerEvent>> kept_;
};

}  // namespace penstock::sim

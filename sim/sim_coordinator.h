// SPDX-License-Identifier: Apache-2.0
// The coordinator's process in the simulator: the real state machine, and around it sessions of
// workers and gateways by the rules of coordinator/*_sessions_service.cc, which are gRPC's.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "coordinator/coordinator.h"
#include "sim/sim_messages.h"
#include "sim/sim_network.h"
#include "sim/sim_process.h"

namespace penstock::sim {

class SimCoordinator {
 public:
  struct Options {
    coordinator::Coordinator::Options machine = {};
    Duration report_every = std::chrono::seconds(1);
    Duration gateway_grace = std::chrono::seconds(2);
  };

  SimCoordinator(VirtualLoop& clock, Network& network, const Options& options);
  ~SimCoordinator();

  Process& process() { return process_; }
  coordinator::Coordinator& machine() { return *machine_; }
  void Drain(const std::string& worker, Duration move_after);

 private:
  struct Worker {
    std::shared_ptr<JoinStream> stream;  // Shared with the network.
    coordinator::WorkerRef ref;          // Its epoch is 0 before it has registered.
    bool left = false;
  };
  struct Attendant {
    std::shared_ptr<AttendStream> stream;  // Shared with the network.
    std::string name;                      // Empty before Hello.
  };
  struct Gateway {
    std::uint64_t stream = 0;         // 0: away.
    std::deque<GatewayEvent> missed;  // While away.
    Loop::TimerId timer{};            // Until it is gone for good.
  };

  void Accept(std::shared_ptr<StreamCore> stream);
  void OnWorker(std::uint64_t id, const WorkerMessage& message);
  absl::Status Handle(std::uint64_t id, Worker& worker, const WorkerMessage& message);
  absl::Status Register(std::uint64_t id, Worker& worker,
                        const coordinator::Registration& registration);
  void OnWorkerClosed(std::uint64_t id);
  void OnGateway(std::uint64_t id, const GatewayMessage& message);
  void Attend(std::uint64_t id, Attendant& attendant, const std::string& name);
  void OnGatewayClosed(std::uint64_t id);
  void Settle();
  template <typename A>
  void Do(const A& action);
  bool SendWorker(const coordinator::WorkerRef& ref, WorkerCommand command);
  void SendGateway(const std::string& name, GatewayEvent event);
  void TellModels();

  Network& network_;
  const Options options_;
  Process process_;
  const std::unique_ptr<coordinator::Coordinator> machine_;
  Loop::TimerId timer_{};
  MonoTime next_ = MonoTime::max();
  std::uint64_t next_stream_ = 1;
  std::map<std::uint64_t, Worker> workers_;
  std::map<std::string, std::uint64_t> by_name_;
  std::map<std::uint64_t, Attendant> attendants_;
  std::map<std::string, Gateway> gateways_;
  std::vector<coordinator::ModelView> models_;
  std::uint64_t models_version_ = 0;
};

}  // namespace penstock::sim

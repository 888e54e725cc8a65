// SPDX-License-Identifier: Apache-2.0
// A gateway's process in the simulator: the real relay of each request (gateway/relay_state.h),
// and under it streams to the coordinator and calls to workers by the rules of
// gateway/coordinator_client.cc and worker_client.cc, which are gRPC's.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "gateway/recent_cancels_state.h"
#include "gateway/relay_state.h"
#include "sim/sim_messages.h"
#include "sim/sim_network.h"
#include "sim/sim_process.h"

namespace penstock::sim {

class SimGateway final : private gateway::Coordinator, private gateway::Workers {
 public:
  SimGateway(VirtualLoop& clock, Network& network, std::mt19937& random, const std::string& name);
  ~SimGateway() override;

  Process& process() { return process_; }
  // `sink` outlives the request. It hears nothing more once the gateway is gone.
  void Submit(gateway::Prepared request, gateway::Sink& sink);
  void Leave(const std::string& id);  // Its client does.
  std::size_t requests() const { return relays_.size(); }
  std::size_t calls() const { return calls_.size(); }

 private:
  struct Calls {
    std::shared_ptr<CallStream> decode;  // Shared with the network; null once over.
    std::shared_ptr<CallStream> prefill;
    Loop::TimerId decode_timer{};
    Loop::TimerId prefill_timer{};
  };

  // Of relays.
  void Route(const gateway::RouteOrder& order) override;
  void Cancel(const std::string& id) override;
  bool attending() const override { return attending_; }
  void Decode(const std::string& endpoint, const gateway::DecodeOrder& order,
              MonoTime deadline) override;
  void Prefill(const std::string& endpoint, const gateway::PrefillOrder& order) override;
  void StopChoice(const std::string& endpoint, const Attempt& attempt,
                  std::int32_t choice) override;
  void Cancel(const Attempt& attempt) override;

  void Connect();
  void OnEvent(const GatewayEvent& event);
  void OnClosed();
  void OnDecodeClosed(const Attempt& attempt, const absl::Status& status);
  void OnPrefillClosed(const Attempt& attempt);
  gateway::RelayState* Find(const std::string& leg);

  Network& network_;
  std::mt19937& random_;
  Process process_;
  std::map<std::string, std::unique_ptr<gateway::RelayState>> relays_;
  std::map<Attempt, Calls> calls_;
  std::shared_ptr<AttendStream> stream_;  // Shared with the network. Null while pausing.
  bool attending_ = false;
  bool served_ = false;  // A decode worker of the model is there.
  Duration pause_;
  gateway::RecentCancels cancels_;
};

}  // namespace penstock::sim

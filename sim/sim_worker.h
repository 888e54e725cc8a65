// SPDX-License-Identifier: Apache-2.0
// Workers' processes in the simulator: the real state machines of prefill and decode workers and
// of handoffs, over simulated engines, memory and links. What joins them to the cluster follows
// prefill/prefill_member.cc and decode/decode_member.cc, and their services, which are gRPC's.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "decode/decode_state.h"
#include "prefill/prefill_state.h"
#include "sim/sim_engines.h"
#include "sim/sim_memory.h"
#include "sim/sim_messages.h"
#include "sim/sim_network.h"
#include "sim/sim_process.h"
#include "sim/sim_session.h"
#include "sim/sim_tokens.h"
#include "transfer/fault_link.h"

namespace penstock::sim {

class SimStore;

// What all workers of a run share; outlives them.
struct World {
  VirtualLoop& clock;
  std::mt19937& random;
  Network& network;
  Oracle& oracle;
  std::vector<std::unique_ptr<transfer::SegmentTable>>& tables;  // Links outlive workers.
  transfer::FaultPlan link_faults = {};
  double refuse = 0;  // Of engines: no room, whatever there is.
  std::uint64_t epochs = 0;
  // Two ends of a link between a prefill worker and this life of a decode worker; the far one is
  // handed over there. Null: nobody of that name and epoch is there.
  std::function<std::unique_ptr<transfer::Link>(transfer::SegmentTable& from, const std::string& to,
                                                std::uint64_t epoch)>
      dial = {};
  // Null: no store node of that name and life is there, or it is stopped.
  std::function<SimStore*(const std::string& name, std::uint64_t epoch)> store = {};
  int fetches = 0;  // That brought blocks.
  transfer::SegmentTable& NewTable() {
    return *tables.emplace_back(std::make_unique<transfer::SegmentTable>());
  }
};

// Gives a worker's memory back with the worker.
class Registered {
 public:
  Registered(transfer::SegmentTable& table, Memory& memory)
      : table_(table), pool_(memory.Describe(table)) {}
  ~Registered() {
    for (const transfer::PoolGroup& group : pool_) table_.Withdraw(group.segment);
  }
  const std::vector<transfer::PoolGroup>& pool() const { return pool_; }

 private:
  transfer::SegmentTable& table_;
  const std::vector<transfer::PoolGroup> pool_;
};

class SimWorker {
 public:
  virtual ~SimWorker() { world_.network.Die(process_); }
  Process& process() { return process_; }
  const std::string& name() const { return process_.name(); }
  // What it still has; empty at rest.
  virtual std::string Held() const = 0;
  // It was drained, and the coordinator was told: it may be ended.
  bool left() const { return left_; }

 protected:
  SimWorker(World& world, const std::string& name);
  coordinator::Registration RegistrationAs(coordinator::Role role) const;
  void Store(const std::vector<Chain>& chains);
  static Namespace SpaceOf(std::int32_t group) {
    return CopySpace(Namespace(), static_cast<std::uint32_t>(group), "exact");
  }
  void OnStore(const coordinator::StoreAction& action) { keeper_ = action.store; }
  // How long it takes to fetch blocks from there, or to see that they do not come.
  void AddFetches(coordinator::LoadReport& load) const;
  Duration Fetch(const std::vector<coordinator::FetchSource>& sources,
                 const std::vector<Chain>& chains);
  std::vector<Chain> Stored() const { return {stored_.begin(), stored_.end()}; }

  World& world_;
  const std::uint64_t epoch_;  // Of this process.
  Process process_;
  transfer::SegmentTable& segments_;
  Memory memory_;
  Registered registered_;
  bool left_ = false;
  std::uint64_t next_call_ = 1;
  coordinator::Peer keeper_;  // Without a name: nobody keeps its blocks.
  std::map<std::pair<std::string, Tier>, double> fetched_;  // Bytes per second.
  std::set<Chain> stored_;  // Told to the coordinator as blocks that are here.
  std::unique_ptr<Session> session_;
};

class SimDecode final : public SimWorker, private decode::DecodeState::Observer {
 public:
  SimDecode(World& world, const std::string& name);
  ~SimDecode() override;

  std::string Held() const override;
  std::uint64_t epoch() const { return epoch_; }
  transfer::SegmentTable& segments() { return segments_; }
  void Accept(std::unique_ptr<transfer::Link> link);

 private:
  void OnReserve(const coordinator::ReserveAction& action);
  void OnStart(const coordinator::StartAction& action);
  void OnRelease(const Attempt& attempt);
  SayLoad Load() const;
  void OnCall(std::uint64_t id, const WorkerCall& call);
  void OnDecode(std::uint64_t id, const gateway::DecodeOrder& order);
  void OnAdopted(const Attempt& attempt,
                 const transfer::HandoffReceiver::Outcome& handoff) override;
  void OnEnded(const Attempt& attempt, decode::DecodeState::End how,
               const absl::Status& why) override;

  FakeDecodeEngine engine_;
  transfer::LinkTurns turns_;
  transfer::HandoffReceiver receiver_;
  decode::DecodeState state_;
  bool releasing_ = false;
  std::map<std::uint64_t, std::shared_ptr<CallStream>> calls_;  // Shared with the network.
};

class SimPrefill final : public SimWorker,
                         private prefill::Channels,
                         private prefill::PrefillState::Observer {
 public:
  SimPrefill(World& world, const std::string& name);
  ~SimPrefill() override;

  std::string Held() const override;

 private:
  void Get(const transfer::Peer& peer, const std::string& address, Done done) override;
  void OnStart(const coordinator::StartAction& action);
  void OnRelease(const Attempt& attempt);
  SayLoad Load() const;
  void OnCall(std::uint64_t id, const WorkerCall& call);
  void OnComputed(const Attempt& attempt) override;
  void OnEnded(const Attempt& attempt, prefill::PrefillState::End how,
               const absl::Status& why) override;

  FakePrefillEngine engine_;
  std::map<std::pair<std::string, std::uint64_t>, transfer::Channel*> channels_;
  transfer::HandoffSender sender_;
  prefill::PrefillState state_;
  bool releasing_ = false;
  std::map<std::uint64_t, std::shared_ptr<CallStream>> calls_;  // Shared with the network.
};

}  // namespace penstock::sim

// SPDX-License-Identifier: Apache-2.0
// The streams of workers and gateways around the state machine: what they say becomes its events,
// what it wants done becomes messages on their streams.
//
// All on the coordinator's loop, but Accept, which is gRPC's: any thread.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/event_loop.h"
#include "coordinator/coordinator.h"
#include "coordinator/durable_state.h"
#include "coordinator/messages_service.h"
#include "penstock/v1/cluster.pb.h"
#include "rpc/server_stream.h"

namespace penstock::coordinator {

using WorkerStream = rpc::ServerStream<v1::WorkerMessage, v1::WorkerCommand>;
using GatewayStream = rpc::ServerStream<v1::GatewayMessage, v1::GatewayEvent>;

class Settler {
 public:
  virtual ~Settler() = default;
  // Whoever has told the state machine something says so: then actions are taken and the timer is
  // set.
  virtual void Settle() = 0;
  // The term of this leadership, for one who has followed `followed`: not less. UNAVAILABLE: a
  // greater one may be another's; INVALID_ARGUMENT: it cannot be one.
  virtual absl::StatusOr<std::uint64_t> TermFor(std::uint64_t followed) = 0;
};

// Says that another coordinator leads, if one is known there, and ends the stream.
template <typename Stream, typename Message>
void SendElsewhere(Stream& stream, Message message, const std::string& leader,
                   const absl::Status& why) {
  message.mutable_elsewhere()->set_leader(leader);
  stream.Send(std::move(message));
  stream.End(why);
}

class WorkerSessions {
 public:
  // `durable` (or null: nothing outlives this process) outlives it.
  WorkerSessions(Loop& loop, Coordinator& machine, Settler& settler, DurableState* durable,
                 Duration report_every, Duration ttl)
      : loop_(loop),
        machine_(machine),
        settler_(settler),
        durable_(durable),
        report_every_(report_every),
        ttl_(ttl) {}

  void Open(std::uint64_t id, std::shared_ptr<WorkerStream> stream);
  void OnMessage(std::uint64_t id, const v1::WorkerMessage& message);
  void OnClosed(std::uint64_t id);
  // `leader`: where another coordinator leads, as far as is known.
  void EndAll(const absl::Status& why, const std::string& leader);
  bool any() const { return !by_name_.empty(); }  // Is a worker joined?

  // Of the state machine. What cannot be asked is answered to it as refused.
  void Do(const ReserveAction& action);
  void Do(const StartAction& action);
  void Do(const ReleaseAction& action);
  void Do(const SnapshotAction& action);
  void Do(const DrainedAction& action);
  void Do(const PreflightAction& action);
  void Do(const StoreAction& action) { Send(action.worker.ref, ToProto(action)); }
  void Do(const PrefetchAction& action) { Send(action.worker.ref, ToProto(action)); }
  void Do(const ReplicateAction& action) { Send(action.worker.ref, ToProto(action)); }
  void Do(const SessionEndedAction& action);

 private:
  struct Session {
    std::shared_ptr<WorkerStream> stream;
    WorkerRef ref;             // Its epoch is 0 before it has joined.
    bool is_store = false;     // A store node's, once it has joined.
    bool registering = false;  // Its registration is not durable yet.
    bool left = false;
  };
  absl::Status Handle(std::uint64_t id, Session& session, const v1::WorkerMessage& message);
  absl::Status Register(std::uint64_t id, Session& session,
                        const v1::WorkerMessage::Register& message);
  void OnDurable(std::uint64_t id, const Registration& registration, std::uint64_t followed);
  void Forget(const WorkerRef& ref);
  absl::Status Admit(std::uint64_t id, Session& session, const Registration& registration,
                     std::uint64_t followed);
  bool Send(const WorkerRef& ref, v1::WorkerCommand command);  // False: it has no stream.
  void Refuse(const WorkerRef& ref, const Attempt& id);

  Loop& loop_;
  Coordinator& machine_;
  Settler& settler_;
  DurableState* const durable_;
  const Duration report_every_;
  const Duration ttl_;
  std::map<std::uint64_t, Session> sessions_;
  std::map<std::string, std::uint64_t> by_name_;  // Registered ones.
};

class GatewaySessions {
 public:
  GatewaySessions(Loop& loop, Coordinator& machine, Settler& settler, Duration grace)
      : loop_(loop), machine_(machine), settler_(settler), grace_(grace) {}
  ~GatewaySessions();

  void Open(std::uint64_t id, std::shared_ptr<GatewayStream> stream);
  void OnMessage(std::uint64_t id, const v1::GatewayMessage& message);
  void OnClosed(std::uint64_t id);
  void EndAll(const absl::Status& why, const std::string& leader);

  // Of the state machine: planned, lost, ended.
  void Do(const auto& action) { Send(action.gateway, ToProto(action)); }
  // To all, when they differ from what was told last.
  void TellModels();

  std::vector<std::string> names() const;  // Of those that attend.

 private:
  struct Gateway {
    std::uint64_t stream = 0;             // 0: away.
    std::deque<v1::GatewayEvent> missed;  // While away.
    Loop::TimerId timer{};                // Until it is gone for good.
  };
  struct Session {
    std::shared_ptr<GatewayStream> stream;
    std::string name;  // Empty before Hello.
  };
  absl::Status Handle(std::uint64_t id, Session& session, const v1::GatewayMessage& message);
  absl::Status Hello(std::uint64_t id, Session& session, const v1::GatewayMessage::Hello& message);
  void Send(const std::string& gateway, v1::GatewayEvent event);
  void Gone(const std::string& gateway);
  v1::GatewayEvent Attending();

  Loop& loop_;
  Coordinator& machine_;
  Settler& settler_;
  const Duration grace_;
  std::vector<ModelView> models_;
  std::uint64_t models_version_ = 0;
  std::map<std::uint64_t, Session> sessions_;
  std::map<std::string, Gateway> gateways_;
};

}  // namespace penstock::coordinator

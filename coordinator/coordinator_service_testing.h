// SPDX-License-Identifier: Apache-2.0
// A coordinator behind a real server, and peers that say just what a test tells them: no client of
// ours would.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "coordinator/coordinator_service.h"
#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"
#include "penstock/v1/cluster.grpc.pb.h"
#include "rpc/channel.h"
#include "rpc/convert.h"
#include "rpc/server.h"

namespace penstock::coordinator {

using std::chrono::milliseconds;
using std::chrono::seconds;

// What a test awaits has come by then, or the test fails.
inline constexpr Duration kPatience = seconds(30);

inline auto Open(v1::Cluster::Stub& stub, grpc::ClientContext* context, const v1::WorkerMessage*) {
  return stub.Join(context);
}
inline auto Open(v1::Cluster::Stub& stub, grpc::ClientContext* context, const v1::GatewayMessage*) {
  return stub.Attend(context);
}

// One stream. Blocks.
template <typename Out, typename In>
class StreamPeer {
 public:
  explicit StreamPeer(const std::shared_ptr<grpc::Channel>& channel)
      : stub_(v1::Cluster::NewStub(channel)) {
    context_.set_deadline(gpr_time_from_nanos(kPatience.count(), GPR_TIMESPAN));
    stream_ = Open(*stub_, &context_, static_cast<const Out*>(nullptr));
  }
  ~StreamPeer() { context_.TryCancel(); }

  // False: the stream has ended.
  bool Say(const Out& message) { return stream_->Write(message); }
  // The next message that `wanted` is true of; those before it are dropped.
  In Await(const std::function<bool(const In&)>& wanted) {
    In message;
    while (stream_->Read(&message)) {
      if (wanted(message)) return message;
    }
    ADD_FAILURE() << "the stream ended: " << End();
    return {};
  }
  // How the stream ends by itself. Once.
  absl::Status End() {
    In message;
    while (stream_->Read(&message)) {
    }
    return rpc::FromGrpc(stream_->Finish());
  }
  // How it ends for one that goes on saying this, and reads nothing before.
  absl::Status EndUnread(const Out& message) {
    while (Say(message)) {
      if (++said_ > kSaidMax) {
        ADD_FAILURE() << "said " << said_ << " messages, and is still heard";
        break;
      }
    }
    return End();
  }
  static constexpr int kSaidMax = 1 << 20;  // Far above what a queue holds.
  void Break() { context_.TryCancel(); }
  void HalfClose() { stream_->WritesDone(); }

 private:
  const std::unique_ptr<v1::Cluster::Stub> stub_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<Out, In>> stream_;
  int said_ = 0;
};

using Command = v1::WorkerCommand;
using Event = v1::GatewayEvent;

// As a worker of its kind would register.
inline v1::WorkerMessage RegisterOf(const std::string& name, std::uint64_t epoch,
                                    const std::string& model = "m",
                                    v1::Role role = v1::ROLE_DECODE) {
  v1::WorkerMessage message;
  v1::WorkerMessage::Register& r = *message.mutable_register_();
  r.set_name(name);
  r.set_session_epoch(epoch);
  r.set_role(role);
  r.set_model(model);
  v1::Identity::Field* const field = r.mutable_identity()->add_fields();
  field->set_name("weights");
  field->set_value("w");
  r.set_block_tokens(16);
  r.set_endpoint(absl::StrCat(name, ".rpc"));
  r.set_transfer_address(absl::StrCat(name, ".transfer"));
  r.set_transfer_epoch(epoch);
  r.set_kv_bytes_per_token(100);
  r.set_blocks_total(1000);
  r.set_sequences_max(8);
  r.set_context_tokens(4096);
  return message;
}

class WorkerPeer : public StreamPeer<v1::WorkerMessage, Command> {
 public:
  using StreamPeer::StreamPeer;
  // Registers, and says that it is ready.
  void Join(const v1::WorkerMessage& registration) {
    Say(registration);
    Await([](const Command& c) { return c.has_joined(); });
    SayLoad({});
  }
  void SayLoad(const std::vector<v1::Attempt>& live) {
    v1::WorkerMessage message;
    message.mutable_load()->set_ready(true);
    for (const v1::Attempt& attempt : live) *message.mutable_load()->add_live() = attempt;
    Say(message);
  }
  void SayOf(const v1::Attempt& attempt, v1::AttemptEvent::Kind kind) {
    v1::WorkerMessage message;
    *message.mutable_attempt()->mutable_attempt() = attempt;
    message.mutable_attempt()->set_kind(kind);
    message.mutable_attempt()->set_grant(1);
    Say(message);
  }
  v1::Attempt AwaitReserve() {
    return Await([](const Command& c) { return c.has_reserve(); }).reserve().attempt();
  }
  v1::Attempt AwaitRelease() {
    return Await([](const Command& c) { return c.has_release(); }).release().attempt();
  }
  void AwaitSnapshot() {
    Await([](const Command& c) { return c.has_snapshot(); });
  }
  // From its order to the running answer; both roles are this worker's.
  v1::Attempt Run() {
    const v1::Attempt attempt = AwaitReserve();
    SayOf(attempt, v1::AttemptEvent::KIND_GRANTED);
    Await([](const Command& c) { return c.has_start(); });
    for (const auto kind : {v1::AttemptEvent::KIND_ACCEPTED, v1::AttemptEvent::KIND_COMPUTED,
                            v1::AttemptEvent::KIND_ADOPTED}) {
      SayOf(attempt, kind);
    }
    return attempt;
  }
};

class GatewayPeer : public StreamPeer<v1::GatewayMessage, Event> {
 public:
  using StreamPeer::StreamPeer;
  void Attend(const std::string& name) {
    v1::GatewayMessage message;
    message.mutable_hello()->set_name(name);
    Say(message);
    Await([](const Event& e) { return e.has_attending(); });
  }
  void AwaitReady(const std::string& model) {
    Await([&](const Event& e) {
      for (const Event::Model& m : e.attending().models()) {
        if (m.name() == model && m.ready()) return true;
      }
      return false;
    });
  }
  static v1::GatewayMessage RouteOf(const std::string& id, const std::string& model = "m") {
    v1::GatewayMessage message;
    message.mutable_route()->set_request_id(id);
    message.mutable_route()->set_model(model);
    message.mutable_route()->set_prompt_tokens(64);
    message.mutable_route()->set_output_tokens_max(16);
    return message;
  }
  // What is said to Route.
  absl::Status Route(const v1::GatewayMessage& route) {
    Say(route);
    const Event event = Await([&](const Event& e) {
      return e.has_routed() && e.routed().request_id() == route.route().request_id();
    });
    return rpc::FromProto(event.routed().error());
  }
  void Cancel(const std::string& id) {
    v1::GatewayMessage message;
    message.mutable_cancel()->set_request_id(id);
    Say(message);
  }
  v1::Attempt AwaitPlanned(const std::string& id) {
    return Await([&](const Event& e) { return e.planned().attempt().request_id() == id; })
        .planned()
        .attempt();
  }
  absl::Status AwaitEnded(const std::string& id) {
    const Event event = Await([&](const Event& e) { return e.ended().request_id() == id; });
    return rpc::FromProto(event.ended().error());
  }
};

// A cluster with a model of its own, "calm", whose worker and gateway behave: whatever the others
// do, requests go through there.
class ClusterServiceTest : public testing::Test {
 protected:
  ClusterServiceTest() {
    // Nobody here reports by the clock.
    options_.coordinator.members.ttl = 2 * kPatience;
    options_.coordinator.reserve_timeout = kPatience;
    options_.coordinator.start_timeout = kPatience;
  }
  // With options_.
  void Start() {
    service_ = *ClusterService::Make(options_);
    server_ = *rpc::Server::Start({.drain_for = milliseconds(100)}, {service_->service()});
    service_->Begin("c", server_->address(), [](bool) {});
    calm_worker_ = Joined(RegisterOf("calm-d", 1, "calm"));
    calm_gateway_ = std::make_unique<GatewayPeer>(Channel());
    calm_gateway_->Attend("calm-g");
    ExpectCalm();
  }
  void TearDown() override {
    if (service_ == nullptr) return;
    if (!HasFailure()) ExpectCalm();
    service_->End();
    server_.reset();
    service_.reset();
  }

  // A connection of its own: what one peer does to it is no other's.
  std::shared_ptr<grpc::Channel> Channel() const {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    return grpc::CreateCustomChannel(server_->address(), grpc::InsecureChannelCredentials(),
                                     arguments);
  }
  // Known to be ready: what a gateway says on its own stream next finds it so.
  std::unique_ptr<WorkerPeer> Joined(const v1::WorkerMessage& registration) const {
    auto worker = std::make_unique<WorkerPeer>(Channel());
    worker->Join(registration);
    while (StateOf(registration.register_().name()) != "ready") {
    }
    return worker;
  }
  std::unique_ptr<GatewayPeer> Attending(const std::string& name) const {
    auto gateway = std::make_unique<GatewayPeer>(Channel());
    gateway->Attend(name);
    return gateway;
  }
  v1::StatusResponse Status() const {
    grpc::ClientContext context;
    v1::StatusResponse response;
    const auto stub = v1::Cluster::NewStub(server_->InProcessChannel());
    const grpc::Status status = stub->Status(&context, {}, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }
  v1::StatusResponse::WorkerStatus StatusOf(const std::string& worker) const {
    const v1::StatusResponse status = Status();
    for (const auto& w : status.workers()) {
      if (w.name() == worker) return w;
    }
    return {};
  }
  // Of a worker or store node; empty where none has that name.
  std::string StateOf(const std::string& name) const {
    const v1::StatusResponse status = Status();
    for (const auto& w : status.workers()) {
      if (w.name() == name) return w.state();
    }
    for (const auto& s : status.stores()) {
      if (s.name() == name) return s.state();
    }
    return "";
  }
  // What a peer said is handled by now: its stream is read in order.
  void Settled(WorkerPeer& worker) const {
    v1::WorkerMessage message;  // Of nothing that is known here, so it is released.
    worker.SayOf(AttemptOf(kGone), v1::AttemptEvent::KIND_ADOPTED);
    worker.Await([](const Command& c) { return c.release().attempt().request_id() == kGone; });
  }
  static v1::Attempt AttemptOf(const std::string& id, std::uint32_t number = 1) {
    v1::Attempt attempt;
    attempt.set_request_id(id);
    attempt.set_number(number);
    return attempt;
  }
  void ExpectCalm() {
    SCOPED_TRACE("the calm model");
    const std::string id = calm_ == 0 ? kGone : absl::StrCat("calm-", calm_);
    ++calm_;
    EXPECT_EQ(calm_gateway_->Route(GatewayPeer::RouteOf(id, "calm")), absl::OkStatus());
    const v1::Attempt attempt = calm_worker_->Run();
    EXPECT_EQ(attempt.request_id(), id);
    calm_worker_->SayOf(attempt, v1::AttemptEvent::KIND_FINISHED);
    EXPECT_EQ(calm_gateway_->AwaitEnded(id), absl::OkStatus());
  }

  static constexpr const char* kGone = "gone";  // A request that has ended.

  ClusterService::Options options_;
  std::unique_ptr<ClusterService> service_;
  std::unique_ptr<rpc::Server> server_;
  std::unique_ptr<WorkerPeer> calm_worker_;
  std::unique_ptr<GatewayPeer> calm_gateway_;
  int calm_ = 0;
};

}  // namespace penstock::coordinator

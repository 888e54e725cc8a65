// SPDX-License-Identifier: Apache-2.0
// What peers may say, and what they hear when they say something else: the number that came and the
// numbers that are good, and nobody else notices.
#include "coordinator/coordinator_service.h"

#include <functional>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "coordinator/coordinator_service_testing.h"
#include "grpcpp/generic/generic_stub.h"
#include "gtest/gtest.h"

namespace penstock::coordinator {
namespace {

using Code = absl::StatusCode;
using WorkerSays = v1::WorkerMessage;
using GatewaySays = v1::GatewayMessage;

void ExpectEnd(const absl::Status& end, Code code, const std::string& part) {
  EXPECT_EQ(end.code(), code) << end;
  EXPECT_TRUE(absl::StrContains(end.message(), part)) << end << "\nlacks: " << part;
}

TEST_F(ClusterServiceTest, TheFirstMessageIsRegisterOrHello) {
  Start();
  const std::vector<std::function<void(WorkerSays&)>> wrong = {
      [](WorkerSays&) {},
      [](WorkerSays& m) { m.mutable_load(); },
      [](WorkerSays& m) { m.mutable_blocks()->set_first(1); },
      [](WorkerSays& m) { m.mutable_attempt(); },
      [](WorkerSays& m) { m.mutable_preflight(); },
      [](WorkerSays& m) { m.mutable_leave(); },
  };
  for (std::size_t i = 0; i < wrong.size(); ++i) {
    SCOPED_TRACE(i);
    WorkerPeer worker(Channel());
    WorkerSays message;
    wrong[i](message);
    worker.Say(message);
    EXPECT_EQ(worker.End(), absl::InvalidArgumentError("the first message must be register"));
  }
  GatewaySays cancel;
  cancel.mutable_cancel()->set_request_id("r");
  for (const GatewaySays& message : {GatewaySays(), GatewayPeer::RouteOf("r"), cancel}) {
    GatewayPeer gateway(Channel());
    gateway.Say(message);
    EXPECT_EQ(gateway.End(), absl::InvalidArgumentError("the first message must be hello"));
  }
}

TEST_F(ClusterServiceTest, RegisterAndHelloComeOnce) {
  Start();
  const auto worker = Joined(RegisterOf("d", 1));
  worker->Say(RegisterOf("another", 2));
  EXPECT_EQ(worker->End(),
            absl::InvalidArgumentError("register must come once, 'd' has registered"));
  const auto gateway = Attending("g");
  GatewaySays hello;
  hello.mutable_hello()->set_name("another");
  gateway->Say(hello);
  EXPECT_EQ(gateway->End(), absl::InvalidArgumentError("hello must come once, 'g' has said it"));
  // The worker's session lives on: it comes back with the same epoch.
  Joined(RegisterOf("d", 1));
}

TEST_F(ClusterServiceTest, RegistrationsOutOfRange) {
  Start();
  using Register = WorkerSays::Register;
  struct Case {
    std::function<void(Register&)> wrong;
    const char* want;
  };
  const std::vector<Case> cases = {
      {[](Register& r) { r.set_name(""); }, "length of register.name must be from 1 to 64, got 0"},
      {[](Register& r) { r.set_name(std::string(65, 'n')); },
       "length of register.name must be from 1 to 64, got 65"},
      {[](Register& r) { r.set_name("a\nb"); }, "register.name must have no control characters"},
      {[](Register& r) { r.set_model(std::string(257, 'm')); },
       "length of register.model must be from 1 to 256, got 257"},
      {[](Register& r) { r.set_endpoint(std::string(1025, 'e')); },
       "length of register.endpoint must be from 1 to 1024, got 1025"},
      {[](Register& r) { r.set_transfer_address(""); },
       "length of register.transfer_address must be from 1 to 4096, got 0"},
      {[](Register& r) { r.set_device(std::string(300, 'd')); },
       "length of register.device must be from 1 to 256, got 300"},
      {[](Register& r) { r.set_role(v1::ROLE_UNSPECIFIED); },
       "register.role must be from 1 to 3, got 0"},
      {[](Register& r) { r.set_role(static_cast<v1::Role>(99)); },
       "register.role must be from 1 to 3, got 99"},
      {[](Register& r) { r.set_session_epoch(0); },
       "worker.epoch must be from 1 to 9223372036854775807, got 0"},
      {[](Register& r) { r.set_block_tokens(65537); },
       "register.block_tokens must be from 1 to 65536, got 65537"},
      {[](Register& r) { r.set_block_tokens(-1); },
       "register.block_tokens must be from 1 to 65536, got -1"},
      {[](Register& r) { r.set_kv_bytes_per_token(0); },
       "worker.kv_bytes_per_token must be from 1 to 1099511627776, got 0"},
      {[](Register& r) { r.set_blocks_total(UINT64_MAX); },
       "worker.blocks_total must be from 1 to 1099511627776, got 9223372036854775807"},
      {[](Register& r) { r.set_sequences_max(0); },
       "worker.sequences_max must be from 1 to 1048576, got 0"},
      {[](Register& r) { r.set_context_tokens(-5); },
       "worker.context_tokens must be from 0 to 1073741824, got -5"},
      {[](Register& r) { r.clear_identity(); },
       "register.identity.fields must be from 1 to 64, got 0"},
      {[](Register& r) {
         for (int i = 0; i < 64; ++i) {
           r.mutable_identity()->add_fields()->set_name(absl::StrCat("f", i));
         }
       },
       "register.identity.fields must be from 1 to 64, got 65"},
      {[](Register& r) {
         r.mutable_identity()->mutable_fields(0)->set_value(std::string(2000, 'v'));
       },
       "worker.identity bytes of a field must be from 0 to 1024, got 2007"},
      {[](Register& r) { r.set_term(UINT64_MAX); },
       "term must be below 2^63, got 18446744073709551615"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.want);
    WorkerSays message = RegisterOf("d", 1);
    c.wrong(*message.mutable_register_());
    WorkerPeer worker(Channel());
    worker.Say(message);
    EXPECT_EQ(worker.End(), absl::InvalidArgumentError(c.want));
  }
  for (const std::string& name : {std::string(), std::string(65, 'g'), std::string("a\tb")}) {
    GatewayPeer gateway(Channel());
    GatewaySays hello;
    hello.mutable_hello()->set_name(name);
    gateway.Say(hello);
    ExpectEnd(gateway.End(), Code::kInvalidArgument, "hello.name");
  }
  EXPECT_EQ(Status().workers_size(), 1);  // The calm one.
  EXPECT_EQ(Status().gateways_size(), 1);
}

TEST_F(ClusterServiceTest, UnlikeTheOthersOfItsModel) {
  Start();
  Joined(RegisterOf("calm-d2", 1, "calm"));
  struct Case {
    std::function<void(WorkerSays::Register&)> unlike;
    const char* want;
  };
  const std::vector<Case> cases = {
      {[](auto& r) { r.mutable_identity()->mutable_fields(0)->set_value("x"); },
       "must agree on weights: 'odd' has 'x', 'calm-d' has 'w'"},
      {[](auto& r) { r.mutable_identity()->add_fields()->set_name("more"); },
       "must agree on fields of identity: 'odd' has 'more', 'calm-d' has '(no more fields)'"},
      {[](auto& r) { r.set_block_tokens(32); },
       "must agree on block_tokens: 'odd' has '32', 'calm-d' has '16'"},
      {[](auto& r) { r.set_kv_bytes_per_token(101); },
       "must agree on kv_bytes_per_token: 'odd' has '101', 'calm-d' has '100'"},
  };
  for (const Case& c : cases) {
    WorkerPeer odd(Channel());
    WorkerSays message = RegisterOf("odd", 1, "calm");
    c.unlike(*message.mutable_register_());
    odd.Say(message);
    ExpectEnd(odd.End(), Code::kFailedPrecondition, c.want);
  }
}

TEST_F(ClusterServiceTest, WorkersOutOfRange) {
  Start();
  struct Case {
    std::function<void(WorkerSays&)> wrong;
    const char* want;
  };
  const auto attempt = [](WorkerSays& m) {
    *m.mutable_attempt()->mutable_attempt() = AttemptOf("r");
    m.mutable_attempt()->set_kind(v1::AttemptEvent::KIND_GRANTED);
    return m.mutable_attempt();
  };
  const auto event = [](WorkerSays& m) {
    m.mutable_blocks()->set_first(1);
    v1::BlockEvent* const e = m.mutable_blocks()->add_events();
    e->set_kind(v1::BlockEvent::KIND_STORED);
    e->set_chain(std::string(16, 'c'));
    return e;
  };
  const std::vector<Case> cases = {
      {[](WorkerSays&) {}, "message is not set, or of a kind that is not known here"},
      {[](WorkerSays& m) {
         for (int i = 0; i < 65537; ++i) *m.mutable_load()->add_live() = AttemptOf("r");
       },
       "load.live must be from 0 to 65536, got 65537"},
      {[](WorkerSays& m) { *m.mutable_load()->add_live() = AttemptOf(std::string(65, 'r')); },
       "length of attempt.request_id must be from 1 to 64, got 65"},
      {[](WorkerSays& m) { *m.mutable_load()->add_live() = AttemptOf("r", 0); },
       "attempt.number must be from 1 to 1048576, got 0"},
      {[&](WorkerSays& m) { attempt(m)->clear_attempt(); },
       "length of attempt.request_id must be from 1 to 64, got 0"},
      {[&](WorkerSays& m) { attempt(m)->mutable_attempt()->set_request_id("a b"); },
       "attempt.request_id must be printable ASCII without spaces"},
      {[&](WorkerSays& m) { attempt(m)->mutable_attempt()->set_number(UINT32_MAX); },
       "attempt.number must be from 1 to 1048576, got 4294967295"},
      {[&](WorkerSays& m) { attempt(m)->clear_kind(); }, "attempt.kind must be from 1 to 7, got 0"},
      {[&](WorkerSays& m) { attempt(m)->set_kind(static_cast<v1::AttemptEvent::Kind>(77)); },
       "attempt.kind must be from 1 to 7, got 77"},
      {[&](WorkerSays& m) { attempt(m)->set_reused_tokens(-1); },
       "attempt.reused_tokens must be from 0 to 1073741824, got -1"},
      {[&](WorkerSays& m) { event(m)->clear_kind(); },
       "blocks.events.kind must be from 1 to 5, got 0"},
      {[&](WorkerSays& m) { event(m)->set_kind(static_cast<v1::BlockEvent::Kind>(-3)); },
       "blocks.events.kind must be from 1 to 5, got -3"},
      {[&](WorkerSays& m) { event(m)->set_chain(std::string(15, 'c')); },
       "length of blocks.events.chain must be from 16 to 16, got 15"},
      {[&](WorkerSays& m) {
         for (int i = 0; i < 65536; ++i) *m.mutable_blocks()->add_events() = *event(m);
       },
       "blocks.events must be from 0 to 65536, got 131072"},
      {[&](WorkerSays& m) {
         event(m);
         m.mutable_blocks()->set_first(0);
       },
       "block events are numbered from 1 to 2^63, got 0"},
      {[&](WorkerSays& m) {
         event(m);
         m.mutable_blocks()->set_first(UINT64_MAX);
       },
       "block events are numbered from 1 to 2^63, got 18446744073709551615"},
      {[](WorkerSays& m) { m.mutable_preflight(); },
       "length of preflight.peer must be from 1 to 64, got 0"},
      {[](WorkerSays& m) {
         m.mutable_preflight()->set_peer("p");
         m.mutable_preflight()->set_transport(std::string(65, 't'));
       },
       "length of preflight.transport must be from 0 to 64, got 65"},
      {[](WorkerSays& m) {
         m.mutable_preflight()->set_peer("p");
         m.mutable_preflight()->mutable_round_trip()->set_seconds(-1);
       },
       "preflight.round_trip.seconds must be from 0 to 86400, got -1"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.want);
    const auto worker = Joined(RegisterOf("d", 1));  // Each time: its session goes on.
    WorkerSays message;
    c.wrong(message);
    worker->Say(message);
    EXPECT_EQ(worker->End(), absl::InvalidArgumentError(c.want));
  }
}

// Numbers that say nothing leave what was known before, and nothing divides by them.
TEST_F(ClusterServiceTest, MeasurementsThatAreNone) {
  Start();
  const auto worker = Joined(RegisterOf("d", 1));
  const auto gateway = Attending("g");
  const double bad[] = {-1, 0, 1e308 * 10, -1e308 * 10, std::numeric_limits<double>::quiet_NaN()};
  for (const double value : bad) {
    WorkerSays message;
    message.mutable_load()->set_ready(true);
    message.mutable_load()->set_prefill_tokens_per_s(value);
    message.mutable_load()->set_link_bytes_per_s(value);
    message.mutable_load()->set_step_seconds(value);
    message.mutable_load()->set_blocks_used(UINT64_MAX);
    worker->Say(message);
  }
  worker->SayLoad({});
  Settled(*worker);
  EXPECT_EQ(gateway->Route(GatewayPeer::RouteOf("r")), absl::OkStatus());
  worker->SayOf(worker->Run(), v1::AttemptEvent::KIND_FINISHED);
  EXPECT_EQ(gateway->AwaitEnded("r"), absl::OkStatus());
}

// A request that cannot be is told so; the gateway's others go on.
TEST_F(ClusterServiceTest, RoutesOutOfRange) {
  Start();
  const auto worker = Joined(RegisterOf("d", 1));
  const auto gateway = Attending("g");
  ASSERT_EQ(gateway->Route(GatewayPeer::RouteOf("good")), absl::OkStatus());
  using Route = GatewaySays::Route;
  struct Case {
    std::function<void(Route&)> wrong;
    const char* want;
    Code code = Code::kInvalidArgument;
  };
  const std::vector<Case> cases = {
      {[](Route& r) { r.set_request_id(""); },
       "length of attempt.request_id must be from 1 to 64, got 0"},
      {[](Route& r) { r.set_request_id(std::string(1 << 20, 'r')); },
       "length of attempt.request_id must be from 1 to 64, got 1048576"},
      {[](Route& r) { r.set_model(""); }, "length of route.model must be from 1 to 256, got 0"},
      {[](Route& r) { r.set_model(std::string(300, '\x7f')); },
       "length of route.model must be from 1 to 256, got 300"},
      // Not cut inside of a character: the answer could not be read.
      {[](Route& r) {
         std::string name;
         for (int i = 0; i < 255; ++i) name += "\xc3\xa9";
         r.set_model(name);
       },
       "length of route.model must be from 1 to 256, got 510"},
      {[](Route& r) { r.set_model("none"); }, "no worker has registered for model 'none'",
       Code::kNotFound},
      {[](Route& r) { r.set_chains(std::string(17, 'c')); },
       "chains must be 16 bytes each, got 17 bytes"},
      {[](Route& r) { r.set_chains(std::string(16 << 20, 'c')); },
       "chains must be from 0 to 4, got 1048576"},
      {[](Route& r) { r.set_prompt_tokens(0); }, "prompt_tokens must be from 1 to 1048576, got 0"},
      {[](Route& r) { r.set_prompt_tokens(UINT32_MAX); },
       "prompt_tokens must be from 1 to 1048576, got 4294967295"},
      {[](Route& r) { r.set_lost_attempt(UINT32_MAX); },
       "lost_attempt must be from 0 to 1048576, got 4294967295"},
      {[](Route& r) { r.mutable_end_within()->set_seconds(86401); },
       "end_within.seconds must be from 0 to 86400, got 86401"},
      {[](Route& r) { r.mutable_first_token_within()->set_nanos(-1); },
       "first_token_within.nanos must be from 0 to 999999999, got -1"},
      {[](Route& r) { r.set_prompt_tokens(1 << 20); },
       "the prompt and its answer need 65537 blocks, the largest worker has 1000"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.want);
    GatewaySays message = GatewayPeer::RouteOf("bad");
    c.wrong(*message.mutable_route());
    EXPECT_EQ(gateway->Route(message), absl::Status(c.code, c.want));
  }
  worker->SayOf(worker->Run(), v1::AttemptEvent::KIND_FINISHED);
  EXPECT_EQ(gateway->AwaitEnded("good"), absl::OkStatus());
  gateway->Say({});
  ExpectEnd(gateway->End(), Code::kInvalidArgument, "message is not set");
}

// Whatever a worker says went wrong, the gateway can read it, and is told what is of use.
TEST_F(ClusterServiceTest, ErrorsThatAreNone) {
  options_.coordinator.attempts_max = 1;
  Start();
  const auto worker = Joined(RegisterOf("d", 1));
  const auto gateway = Attending("g");
  std::string long_text = "x";
  while (long_text.size() < 8 << 20) long_text += "\xe2\x82\xac";
  struct Case {
    int code;
    std::string text;
  };
  int number = 0;
  for (const Case& c : {Case{0, ""}, Case{12345, "odd"}, Case{-1, ""}, Case{8, long_text}}) {
    const std::string id = absl::StrCat("r", number++);
    ASSERT_EQ(gateway->Route(GatewayPeer::RouteOf(id)), absl::OkStatus());
    WorkerSays message;
    *message.mutable_attempt()->mutable_attempt() = worker->AwaitReserve();
    message.mutable_attempt()->set_kind(v1::AttemptEvent::KIND_REFUSED);
    message.mutable_attempt()->mutable_error()->set_code(c.code);
    message.mutable_attempt()->mutable_error()->set_message(c.text);
    worker->Say(message);
    const absl::Status ended = gateway->AwaitEnded(id);
    ExpectEnd(ended, Code::kUnavailable, "1 attempts failed, the last: decode refused");
    EXPECT_LT(ended.message().size(), 2048u);
  }
}

// Bytes that are no message end their own stream.
TEST_F(ClusterServiceTest, BytesThatAreNoMessage) {
  Start();
  const auto worker = Joined(RegisterOf("d", 1));
  for (const char* method : {"/penstock.v1.Cluster/Join", "/penstock.v1.Cluster/Attend"}) {
    grpc::GenericStub stub(Channel());
    grpc::ClientContext context;
    context.set_deadline(gpr_time_from_nanos(kPatience.count(), GPR_TIMESPAN));
    grpc::CompletionQueue queue;
    const auto stream = stub.PrepareCall(&context, method, &queue);
    const auto next = [&queue] {
      void* tag = nullptr;
      bool ok = false;
      EXPECT_TRUE(queue.Next(&tag, &ok));
      return ok;
    };
    stream->StartCall(nullptr);
    ASSERT_TRUE(next());
    const grpc::Slice slice("\xff\xff\xff\xff not a message");
    stream->Write(grpc::ByteBuffer(&slice, 1), nullptr);
    next();
    grpc::Status status;
    stream->Finish(&status, nullptr);
    EXPECT_TRUE(next());  // Ended, by the server.
    EXPECT_NE(status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
    queue.Shutdown();
  }
  Settled(*worker);
}

TEST_F(ClusterServiceTest, AMessageThatIsTooLarge) {
  Start();
  WorkerPeer worker(Channel());
  WorkerSays message = RegisterOf("d", 1);
  message.mutable_register_()->set_device(std::string(65 << 20, 'd'));
  worker.Say(message);
  const absl::Status end = worker.End();
  EXPECT_FALSE(end.ok());
  EXPECT_NE(end.code(), Code::kDeadlineExceeded) << end;
}

}  // namespace
}  // namespace penstock::coordinator

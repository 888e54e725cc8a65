// SPDX-License-Identifier: Apache-2.0
#include "rpc/client_stream.h"

#include <thread>

#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"
#include "penstock/v1/cluster.grpc.pb.h"
#include "rpc/channel.h"
#include "rpc/held_loop_testing.h"
#include "rpc/server.h"

namespace penstock::rpc {
namespace {

using JoinStream = ClientStream<v1::WorkerMessage, v1::WorkerCommand>;

// Ends every stream at once.
class Ending final : public v1::Cluster::CallbackService {
 public:
  grpc::ServerBidiReactor<v1::WorkerMessage, v1::WorkerCommand>* Join(
      grpc::CallbackServerContext*) override {
    class Reactor final : public grpc::ServerBidiReactor<v1::WorkerMessage, v1::WorkerCommand> {
     public:
      Reactor() { Finish(grpc::Status(grpc::StatusCode::ABORTED, "enough")); }
      void OnDone() override { delete this; }
    };
    return new Reactor;
  }
};

// gRPC would join its own thread.
TEST(ClientStreamTest, NoThreadOfGrpcIsTheLastToHoldAStream) {
  Ending service;
  const auto server = Server::Start({}, {&service});
  ASSERT_TRUE(server.ok()) << server.status();
  HeldLoop loop;
  std::thread::id ended_by;
  absl::Status why;
  auto stub = v1::Cluster::NewStub(MakeChannel((*server)->address()));
  // Goes with the stream.
  std::shared_ptr<int> part(new int(0), [&ended_by](const int* value) {
    ended_by = std::this_thread::get_id();
    delete value;
  });
  std::shared_ptr<JoinStream> stream = JoinStream::Make(
      loop, {},
      {.on_message = [](const v1::WorkerCommand&) {},
       .on_closed = [part = std::move(part), &why](const absl::Status& status) { why = status; }},
      [&stub](grpc::ClientContext* context, JoinStream* reactor) {
        stub->async()->Join(context, reactor);
      });
  stream = nullptr;
  stub = nullptr;
  loop.RunOne();
  EXPECT_EQ(why, absl::AbortedError("enough"));
  EXPECT_EQ(ended_by, std::this_thread::get_id());
}

}  // namespace
}  // namespace penstock::rpc

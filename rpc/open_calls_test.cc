// SPDX-License-Identifier: Apache-2.0
#include "rpc/open_calls.h"

#include <future>
#include <thread>

#include "base/epoll_loop.h"
#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"
#include "penstock/v1/worker.grpc.pb.h"
#include "rpc/channel.h"
#include "rpc/held_loop_testing.h"
#include "rpc/reply.h"
#include "rpc/server.h"

namespace penstock::rpc {
namespace {

using namespace std::chrono_literals;

// Answers, refuses, or waits until it is cancelled.
class Named final : public v1::Worker::CallbackService {
 public:
  grpc::ServerUnaryReactor* Describe(grpc::CallbackServerContext* context,
                                     const v1::DescribeRequest*,
                                     v1::DescribeResponse* response) override {
    response->set_name("prefill-0");
    return Reply(context, absl::OkStatus());
  }
  grpc::ServerUnaryReactor* StopChoice(grpc::CallbackServerContext* context,
                                       const v1::StopChoiceRequest*,
                                       v1::StopChoiceResponse*) override {
    return Reply(context, absl::NotFoundError("no such choice"));
  }
  grpc::ServerUnaryReactor* Prefill(grpc::CallbackServerContext*, const v1::PrefillRequest*,
                                    v1::PrefillResponse*) override {
    class Reactor final : public grpc::ServerUnaryReactor {
     public:
      void OnCancel() override { Finish(grpc::Status::CANCELLED); }
      void OnDone() override { delete this; }
    };
    return new Reactor;
  }
};

class OpenCallsTest : public ::testing::Test {
 protected:
  OpenCallsTest()
      : server_(*Server::Start({.drain_for = 100ms}, {&service_})),
        stub_(v1::Worker::NewStub(MakeChannel(server_->address()))) {}

  void Describe(OpenCalls& calls, std::function<void(absl::StatusOr<v1::DescribeResponse>)> done) {
    calls.Start<v1::DescribeResponse>(
        v1::DescribeRequest(), 10s,
        [&](auto... parts) { stub_->async()->Describe(std::move(parts)...); }, std::move(done));
  }
  void Wait(OpenCalls& calls, Duration within,
            std::function<void(absl::StatusOr<v1::PrefillResponse>)> done) {
    calls.Start<v1::PrefillResponse>(
        v1::PrefillRequest(), within,
        [&](auto... parts) { stub_->async()->Prefill(std::move(parts)...); }, std::move(done));
  }

  Named service_;
  std::unique_ptr<Server> server_;
  std::unique_ptr<v1::Worker::Stub> stub_;
};

TEST_F(OpenCallsTest, AnAnswerAndAnErrorComeOnTheLoop) {
  const std::unique_ptr<EpollLoop> loop = *EpollLoop::Make("test");
  std::unique_ptr<OpenCalls> calls;
  std::promise<absl::StatusOr<v1::DescribeResponse>> described;
  std::promise<absl::Status> stopped;
  std::promise<absl::Status> silent;
  loop->Run([&] {
    calls = std::make_unique<OpenCalls>(*loop);
    Describe(*calls, [&](auto response) {
      EXPECT_TRUE(loop->OnLoopThread());
      described.set_value(std::move(response));
    });
    calls->Start<v1::StopChoiceResponse>(
        v1::StopChoiceRequest(), 10s,
        [&](auto... parts) { stub_->async()->StopChoice(std::move(parts)...); },
        [&](const auto& response) { stopped.set_value(response.status()); });
    Wait(*calls, 50ms, [&](const auto& response) { silent.set_value(response.status()); });
    EXPECT_EQ(calls->count(), 3u);
  });
  const absl::StatusOr<v1::DescribeResponse> answer = described.get_future().get();
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(answer->name(), "prefill-0");
  EXPECT_EQ(stopped.get_future().get(), absl::NotFoundError("no such choice"));
  EXPECT_EQ(silent.get_future().get().code(), absl::StatusCode::kDeadlineExceeded);
  loop->Run([&] {
    EXPECT_EQ(calls->count(), 0u);
    calls.reset();
  });
}

TEST_F(OpenCallsTest, TheEndCancelsAndAnswersNothing) {
  const std::unique_ptr<EpollLoop> loop = *EpollLoop::Make("test");
  bool answered = false;
  loop->Run([&] {
    OpenCalls calls(*loop);
    for (int i = 0; i < 3; ++i) Wait(calls, 1h, [&](const auto&) { answered = true; });
  });
  loop->Run([] {});
  EXPECT_FALSE(answered);
}

// gRPC would join its own thread. Its part is played here: it keeps the function it was given.
TEST(OpenCallsAloneTest, NoThreadOfGrpcIsTheLastToHoldACall) {
  HeldLoop loop;
  OpenCalls calls(loop);
  std::thread::id ended_by;
  // The request: goes with the call.
  std::shared_ptr<int> part(new int(0), [&ended_by](const int* value) {
    ended_by = std::this_thread::get_id();
    delete value;
  });
  std::thread grpc;
  absl::StatusOr<int> answer;
  calls.Start<int>(
      std::move(part), 10s,
      [&grpc](grpc::ClientContext*, std::shared_ptr<int>*, int* response,
              std::function<void(grpc::Status)> on_done) {
        *response = 5;
        grpc = std::thread([on_done = std::move(on_done)] { on_done(grpc::Status::OK); });
      },
      [&answer](absl::StatusOr<int> response) { answer = response; });
  loop.RunOne();
  EXPECT_EQ(answer, absl::StatusOr<int>(5));
  EXPECT_EQ(ended_by, std::this_thread::get_id());
  grpc.join();
}

}  // namespace
}  // namespace penstock::rpc

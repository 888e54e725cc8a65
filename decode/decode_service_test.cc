// SPDX-License-Identifier: Apache-2.0
// Readers of a Decode stream that do not read: what waits for them is bounded, then they are cut,
// and what their answer held is free.
#include "decode/decode_service.h"

#include <future>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "decode/engine_adapter.h"
#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"
#include "penstock/v1/worker.grpc.pb.h"
#include "rpc/convert.h"
#include "rpc/server.h"

namespace penstock::decode {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr Duration kPatience = seconds(30);

// Runs what it is given without an end; the test says what it makes.
class FakeEngine final : public DecodeEngine {
 public:
  void Reserve(JobId, std::int32_t, std::vector<Chain>, LossClass, std::uint32_t,
               std::function<void(absl::StatusOr<Room>)>) override {
    ADD_FAILURE() << "prompts are local here";
  }
  void EndReservation(JobId, std::int32_t, const Lineage&) override {}
  void Run(JobId job, std::unique_ptr<Work>, LossClass, const Lineage&) override {
    running.set_value(job);
  }
  void Cancel(JobId) override { cancelled.set_value(); }
  void Import(JobId, std::vector<Chain>, std::vector<kvstore::Fetcher::Source>, LossClass,
              std::uint32_t, std::function<void()>,
              std::function<void(const kvstore::Fetcher::Outcome&)>) override {
    ADD_FAILURE() << "nothing is in a store here";
  }
  void EndImport(JobId) override {}
  void Fetch(JobId, std::vector<transfer::HandoffReceiver::Target::Group>, std::vector<Chain>,
             std::int32_t, std::vector<kvstore::Fetcher::Source>,
             std::function<void(const kvstore::Fetcher::Outcome&)>) override {
    ADD_FAILURE() << "nothing is in a store here";
  }
  void CancelFetch(JobId) override {}
  void CameOnDevice(JobId, std::int32_t, std::int32_t) override {}

  std::promise<JobId> running;
  std::promise<void> cancelled;
};

class DecodeServiceTest : public testing::Test {
 protected:
  void Start(Duration end_within) {
    loop_ = *EpollLoop::Make("decode");
    loop_->Run([&] {
      turns_ = std::make_unique<transfer::LinkTurns>(*loop_, nullptr);
      receiver_ = std::make_unique<transfer::HandoffReceiver>(
          *loop_, *turns_, std::vector<transfer::PoolGroup>(), transfer::HandoffReceiver::Options(),
          nullptr);
      state_ = std::make_unique<DecodeState>(*loop_, engine_, *receiver_, DecodeState::Options());
    });
    DecodeServiceParts parts;
    parts.loop = loop_.get();
    parts.state = state_.get();
    parts.end_within = end_within;
    service_ = MakeDecodeService(parts);
    server_ = *rpc::Server::Start({.drain_for = milliseconds(100)}, {service_.get()});
    stub_ = v1::Worker::NewStub(
        grpc::CreateChannel(server_->address(), grpc::InsecureChannelCredentials()));
    context_.set_deadline(gpr_time_from_nanos(kPatience.count(), GPR_TIMESPAN));
  }
  void TearDown() override {
    server_.reset();
    loop_->Run([&] {
      state_.reset();
      receiver_.reset();
      turns_.reset();
    });
  }

  // A stream whose answer runs. Nothing is read.
  std::unique_ptr<grpc::ClientReader<v1::DecodeResponse>> Decode() {
    const Attempt attempt{"r", 1};
    std::promise<void> reserved;
    loop_->Run([&] {
      DecodeState::Order order;
      order.local = true;
      order.deadline = loop_->Now() + kPatience;
      state_->Reserve(attempt, std::move(order),
                      [&](const absl::StatusOr<DecodeState::Promise>& promise) {
                        EXPECT_TRUE(promise.ok()) << promise.status();
                        reserved.set_value();
                      });
    });
    reserved.get_future().wait();
    v1::DecodeRequest request;
    rpc::ToProto(attempt, request.mutable_attempt());
    auto stream = stub_->Decode(&context_, request);
    job_ = engine_.running.get_future().get();
    return stream;
  }
  // One step of many answers with logprobs: some 10 KiB.
  void Make() {
    EngineTokens tokens;
    for (std::int32_t i = 0; i < 40; ++i) {
      engine::TokenOutput& output = tokens.outputs.emplace_back();
      output.choice = i;
      output.token = engine::SampledToken{.token = 1000 + i, .logprob = -1.0, .top = {}};
      for (std::int32_t top = 0; top < 20; ++top) {
        output.token->top.push_back({.token = top, .logprob = -0.5});
      }
    }
    state_->OnTokens(job_, tokens);
  }
  // How a reader that wakes up now finds its stream.
  absl::Status ReadOn(grpc::ClientReader<v1::DecodeResponse>& stream) {
    v1::DecodeResponse response;
    while (stream.Read(&response)) {
    }
    return rpc::FromGrpc(stream.Finish());
  }
  std::int32_t Attempts() {
    std::int32_t attempts = 0;
    loop_->Run([&] { attempts = state_->attempts(); });
    return attempts;
  }

  FakeEngine engine_;
  std::unique_ptr<EpollLoop> loop_;
  std::unique_ptr<transfer::LinkTurns> turns_;
  std::unique_ptr<transfer::HandoffReceiver> receiver_;
  std::unique_ptr<DecodeState> state_;
  std::unique_ptr<grpc::Service> service_;
  std::unique_ptr<rpc::Server> server_;
  std::unique_ptr<v1::Worker::Stub> stub_;
  grpc::ClientContext context_;
  JobId job_{};
};

TEST_F(DecodeServiceTest, AReaderThatStandsStillIsCutInMidAnswer) {
  Start(kPatience);
  const auto stream = Decode();
  const std::future<void> cancelled = engine_.cancelled.get_future();
  std::size_t steps = 0;
  while (cancelled.wait_for(milliseconds(0)) != std::future_status::ready) {
    // What the connection holds comes on top of the queue: some MiB, of 10 KiB each.
    ASSERT_LT(++steps, 4 * kStreamQueueMax);
    loop_->Run([&] { Make(); });
  }
  EXPECT_GT(steps, kStreamQueueMax);
  EXPECT_EQ(Attempts(), 0);
  EXPECT_EQ(ReadOn(*stream).code(), absl::StatusCode::kCancelled);
}

// Its answer is shorter than the queue.
TEST_F(DecodeServiceTest, AReaderThatStandsStillIsCutAfterTheEnd) {
  Start(milliseconds(1));
  const auto stream = Decode();
  std::promise<void> later;
  loop_->Run([&] {
    for (std::size_t i = 0; i < kStreamQueueMax / 2; ++i) Make();
    state_->OnEnd(job_, absl::OkStatus());
    // After the stream's own timer, which is set before this one rings.
    loop_->Post([&] { loop_->At(loop_->Now() + milliseconds(100), [&] { later.set_value(); }); });
  });
  EXPECT_EQ(Attempts(), 0);
  later.get_future().wait();
  EXPECT_EQ(ReadOn(*stream).code(), absl::StatusCode::kCancelled);
}

TEST_F(DecodeServiceTest, ASlowReaderGetsAll) {
  Start(kPatience);
  const auto stream = Decode();
  loop_->Run([&] {
    for (std::size_t i = 0; i < kStreamQueueMax / 2; ++i) Make();
    state_->OnEnd(job_, absl::OkStatus());
  });
  v1::DecodeResponse response;
  std::size_t steps = 0;
  while (stream->Read(&response)) steps += response.outputs_size() > 0 ? 1 : 0;
  EXPECT_EQ(rpc::FromGrpc(stream->Finish()), absl::OkStatus());
  EXPECT_EQ(steps, kStreamQueueMax / 2);
}

}  // namespace
}  // namespace penstock::decode

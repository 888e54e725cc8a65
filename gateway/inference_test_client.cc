// SPDX-License-Identifier: Apache-2.0
// A gateway with all its gRPC, between a client and fakes of coordinator and worker.
#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "base/status.h"
#include "gateway/coordinator_client.h"
#include "gateway/fake_cluster_service.h"
#include "gateway/gateway_service.h"
#include "gateway/relay_world.h"
#include "gateway/worker_client.h"
#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"
#include "penstock/v1/inference.grpc.pb.h"
#include "rpc/channel.h"
#include "rpc/server.h"

namespace penstock::gateway {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

std::shared_ptr<const ModelFront> TinyModel() {
  static const auto model =
      ModelFront::Open("tiny", std::string(PENSTOCK_SOURCE_DIR) + "/tests/golden/tiny/llama3");
  return *model;
}

class InferenceTest : public testing::Test {
 protected:
  static constexpr std::int32_t kContext = 1 << 18;

  void SetUp() override {
    worker_server_ = *rpc::Server::Start({.drain_for = milliseconds(100)}, {&worker_});
    StartCluster(0);
    gateway_ = *Gateway::Make({TinyModel()}, {.seed = 1});
    service_ = MakeInferenceService(*gateway_);
    server_ = *rpc::Server::Start({.drain_for = milliseconds(100)}, {service_.get()});
    stub_ = v1::Inference::NewStub(server_->InProcessChannel());
  }

  void TearDown() override {
    worker_.Resume();
    server_.reset();
    gateway_.reset();
    if (cluster_ != nullptr) StopCluster();
    worker_server_.reset();
  }

  void StartCluster(int port) {
    cluster_ = std::make_unique<FakeCluster>(worker_server_->address(), kContext);
    cluster_server_ =
        *rpc::Server::Start({.port = port, .drain_for = milliseconds(100)}, {cluster_.get()});
  }
  void StopCluster() {
    cluster_->EndStreams();
    cluster_server_.reset();
    cluster_.reset();
  }

  void Attend() {
    gateway_->Attend({.coordinator =
                          [&](EpollLoop& loop, CoordinatorListener& listener) {
                            return MakeCoordinatorClient(
                                loop, listener,
                                {{.channel = rpc::MakeChannel(cluster_server_->address())}},
                                {.name = "g"});
                          },
                      .workers =
                          [](EpollLoop& loop, WorkersListener& listener) {
                            return MakeWorkerClient(loop, listener, {});
                          }});
    Await(true);
  }
  void Await(bool ready) {
    while (gateway_->Ready() != ready) std::this_thread::yield();
  }

  // A seed whose answer is at least so long.
  static v1::GenerateRequest MakeRequest(int at_least, std::int32_t max_tokens = 300) {
    v1::GenerateRequest request;
    for (const TokenId id : {5, 6, 7, 8}) request.mutable_tokens()->add_ids(id);
    request.mutable_options()->set_max_tokens(max_tokens);
    for (std::uint64_t seed = 1;; ++seed) {
      request.mutable_options()->mutable_sampling()->set_seed(seed);
      if (Want(request).tokens.size() >= static_cast<std::size_t>(at_least)) return request;
    }
  }
  static RecordingSink::Choice Want(const v1::GenerateRequest& request) {
    Prepared prepared;
    prepared.model = TinyModel();
    prepared.prompt.assign(request.tokens().ids().begin(), request.tokens().ids().end());
    prepared.max_tokens = request.options().max_tokens();
    prepared.sampling.seed = request.options().sampling().seed();
    return Alone(prepared, 0);
  }

  struct Got {
    RecordingSink::Choice choice;
    v1::GenerateResponse::Started started;
    v1::GenerateResponse::Usage usage;
    grpc::Status status;
  };
  Got Read(grpc::ClientReader<v1::GenerateResponse>& stream) {
    Got got;
    v1::GenerateResponse response;
    while (stream.Read(&response)) {
      if (response.has_started()) got.started = response.started();
      if (response.has_usage()) got.usage = response.usage();
      if (response.has_finished()) {
        ++got.choice.finished;
        got.choice.reason = response.finished().reason() == v1::FINISH_REASON_STOP
                                ? FinishReason::kStop
                                : FinishReason::kLength;
      }
      got.choice.text += response.delta().text();
      for (const auto& token : response.delta().tokens()) {
        got.choice.tokens.push_back(token.token());
      }
    }
    got.status = stream.Finish();
    return got;
  }
  Got Generate(const v1::GenerateRequest& request) {
    grpc::ClientContext context;
    return Read(*stub_->Generate(&context, request));
  }

  FakeWorker worker_;
  std::unique_ptr<rpc::Server> worker_server_;
  std::unique_ptr<FakeCluster> cluster_;
  std::unique_ptr<rpc::Server> cluster_server_;
  std::unique_ptr<Gateway> gateway_;
  std::unique_ptr<grpc::Service> service_;
  std::unique_ptr<rpc::Server> server_;
  std::unique_ptr<v1::Inference::Stub> stub_;
};

TEST_F(InferenceTest, StreamsAnAnswer) {
  Attend();
  v1::GenerateRequest request = MakeRequest(5);
  request.mutable_options()->set_prompt_ids(true);
  const Got got = Generate(request);
  EXPECT_TRUE(got.status.ok()) << got.status.error_message();
  EXPECT_EQ(got.choice, Want(request));
  EXPECT_EQ(got.started.prompt_ids_size(), 4);
  EXPECT_TRUE(absl::StartsWith(got.started.request_id(), "r-"));
  EXPECT_EQ(got.usage.prompt_tokens(), 4);
  EXPECT_EQ(got.usage.cached_tokens(), 2);
  EXPECT_EQ(got.usage.completion_tokens(), static_cast<int>(got.choice.tokens.size()));
  EXPECT_EQ(got.usage.attempts(), 1U);
}

TEST_F(InferenceTest, ABrokenStreamGoesOn) {
  Attend();
  worker_.BreakAfter(3);
  const v1::GenerateRequest request = MakeRequest(8);
  const Got got = Generate(request);
  EXPECT_TRUE(got.status.ok()) << got.status.error_message();
  EXPECT_EQ(got.choice, Want(request));
  EXPECT_EQ(got.usage.attempts(), 2U);
}

TEST_F(InferenceTest, AClientThatLeavesEndsBothCalls) {
  Attend();
  worker_.PauseAfter(2);
  grpc::ClientContext context;
  const auto stream = stub_->Generate(&context, MakeRequest(8));
  worker_.paused.Await(1);
  worker_.prefills.Await(1);  // Else it may never have left.
  context.TryCancel();
  EXPECT_EQ(Read(*stream).status.error_code(), grpc::StatusCode::CANCELLED);
  worker_.decodes_cancelled.Await(1);
  worker_.prefills_cancelled.Await(1);
  cluster_->cancelled.Await(1);
}

TEST_F(InferenceTest, CancelledByName) {
  Attend();
  worker_.PauseAfter(2);
  v1::GenerateRequest request = MakeRequest(8);
  request.set_request_id("mine");
  grpc::ClientContext context;
  const auto stream = stub_->Generate(&context, request);
  worker_.paused.Await(1);
  EXPECT_EQ(Generate(request).status.error_code(), grpc::StatusCode::ALREADY_EXISTS);
  v1::CancelRequest cancel;
  v1::CancelResponse response;
  for (const bool found : {true, false}) {
    cancel.set_request_id("mine");
    grpc::ClientContext of_cancel;
    EXPECT_TRUE(stub_->Cancel(&of_cancel, cancel, &response).ok());
    EXPECT_EQ(response.found(), found);
  }
  EXPECT_EQ(Read(*stream).status.error_code(), grpc::StatusCode::CANCELLED);
  worker_.decodes_cancelled.Await(1);
}

TEST_F(InferenceTest, TheClientsDeadlineEndsIt) {
  Attend();
  worker_.PauseAfter(2);
  grpc::ClientContext context;
  context.set_deadline(
      gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_millis(300, GPR_TIMESPAN)));
  const auto stream = stub_->Generate(&context, MakeRequest(8));
  EXPECT_EQ(Read(*stream).status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  worker_.decodes_cancelled.Await(1);
}

TEST_F(InferenceTest, ASlowReaderIsCut) {
  Attend();
  worker_.Endless();
  grpc::ClientContext context;
  const auto stream = stub_->Generate(&context, MakeRequest(1, 100000));
  worker_.decodes_cancelled.Await(1);
  const Got got = Read(*stream);
  EXPECT_LE(got.choice.tokens.size(), kStreamMessagesMax);
  EXPECT_TRUE(got.status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED ||
              got.status.error_code() == grpc::StatusCode::CANCELLED)  // It read far too late.
      << got.status.error_code();
}

TEST_F(InferenceTest, RunningStreamsOutliveTheCoordinator) {
  Attend();
  worker_.PauseAfter(2);
  const v1::GenerateRequest request = MakeRequest(8);
  grpc::ClientContext context;
  const auto stream = stub_->Generate(&context, request);
  worker_.paused.Await(1);
  const std::string address = cluster_server_->address();
  StopCluster();
  Await(false);
  EXPECT_EQ(Generate(request).status.error_code(), grpc::StatusCode::UNAVAILABLE);
  worker_.Resume();
  const Got got = Read(*stream);
  EXPECT_TRUE(got.status.ok()) << got.status.error_message();
  EXPECT_EQ(got.choice, Want(request));
  StartCluster(std::stoi(address.substr(address.rfind(':') + 1)));
  Await(true);
  EXPECT_EQ(Generate(request).choice, Want(request));
}

TEST_F(InferenceTest, ErrorsSayWhatAndWhen) {
  EXPECT_EQ(Generate(MakeRequest(1)).status.error_code(), grpc::StatusCode::UNAVAILABLE);
  Attend();
  v1::GenerateRequest request = MakeRequest(1);
  request.set_model("other");
  Got got = Generate(request);
  EXPECT_EQ(got.status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(got.status.error_message(), "no model 'other'; there is: tiny");
  EXPECT_EQ(Generate({}).status.error_message(), "prompt must be text or tokens, got none");
  cluster_->Refuse(absl::ResourceExhaustedError("full"), milliseconds(1500));
  grpc::ClientContext context;
  const auto stream = stub_->Generate(&context, MakeRequest(1));
  EXPECT_EQ(Read(*stream).status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  const auto hint = context.GetServerTrailingMetadata().find(kRetryAfterKey);
  ASSERT_NE(hint, context.GetServerTrailingMetadata().end());
  EXPECT_EQ(std::string(hint->second.data(), hint->second.size()), "1500");
}

TEST_F(InferenceTest, TokenizesAndLists) {
  Attend();
  v1::TokenizeRequest request;
  request.set_text("hello there");
  request.set_pieces(true);
  v1::TokenizeResponse response;
  grpc::ClientContext of_tokenize;
  EXPECT_TRUE(stub_->Tokenize(&of_tokenize, request, &response).ok());
  EXPECT_EQ(response.ids_size(), response.pieces_size());
  EXPECT_EQ((std::vector<TokenId>{response.ids().begin(), response.ids().end()}),
            TinyModel()->tokenizer().Encode("hello there", {.parse_special = false}));
  v1::ListModelsResponse models;
  grpc::ClientContext of_list;
  EXPECT_TRUE(stub_->ListModels(&of_list, {}, &models).ok());
  ASSERT_EQ(models.models_size(), 1);
  EXPECT_EQ(models.models(0).name(), "tiny");
  EXPECT_EQ(models.models(0).context_tokens(), kContext);
  EXPECT_TRUE(models.models(0).ready());
}

}  // namespace
}  // namespace penstock::gateway

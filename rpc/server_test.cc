// SPDX-License-Identifier: Apache-2.0
#include "rpc/server.h"

#include <string>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "base/status.h"
#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"
#include "penstock/v1/worker.grpc.pb.h"

namespace penstock::rpc {
namespace {

class Named final : public v1::Worker::CallbackService {
 public:
  grpc::ServerUnaryReactor* Describe(grpc::CallbackServerContext* context,
                                     const v1::DescribeRequest*,
                                     v1::DescribeResponse* response) override {
    response->set_name("prefill-0");
    grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }
};

TEST(ServerTest, ServesOnAPortOfItsOwn) {
  Named service;
  const auto server = Server::Start({}, {&service});
  ASSERT_TRUE(server.ok()) << server.status();
  EXPECT_TRUE(absl::StartsWith((*server)->address(), "127.0.0.1:"));
  const auto stub = v1::Worker::NewStub(
      grpc::CreateChannel((*server)->address(), grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  v1::DescribeResponse response;
  const grpc::Status status = stub->Describe(&context, {}, &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(response.name(), "prefill-0");
}

TEST(ServerTest, ATakenPortIsAnErrorThatNamesIt) {
  const auto first = Server::Start({}, {});
  ASSERT_TRUE(first.ok()) << first.status();
  int port = 0;
  ASSERT_TRUE(absl::SimpleAtoi((*first)->address().substr(10), &port));
  const absl::Status second = Server::Start({.port = port}, {}).status();
  EXPECT_EQ(second.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(second.message(), absl::StrCat("cannot listen on 127.0.0.1:", port, "; is it taken?"));
}

TEST(ServerTest, APortOutOfRangeIsAnError) {
  EXPECT_EQ(Server::Start({.port = 99999}, {}).status().message(),
            "port must be from 0 to 65535, got 99999");
}

}  // namespace
}  // namespace penstock::rpc

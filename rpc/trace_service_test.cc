// SPDX-License-Identifier: Apache-2.0
#include "rpc/trace_service.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/clock_id.h"
#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"
#include "penstock/v1/trace.grpc.pb.h"
#include "rpc/server.h"

namespace penstock::rpc {
namespace {

class TraceServiceTest : public testing::Test {
 protected:
  void Serve(const SpanRing* ring) {
    service_ = MakeTraceService({.spans = ring, .process = "prefill-0", .role = "prefill"});
    auto server = Server::Start({}, {service_.get()});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    stub_ = v1::Trace::NewStub(server_->InProcessChannel());
  }
  grpc::Status Read(const v1::SpansRequest& request) {
    grpc::ClientContext context;
    const auto reader = stub_->Spans(&context, request);
    spans_.clear();
    for (v1::SpansResponse response; reader->Read(&response);) {
      for (const v1::TraceSpan& span : response.spans()) spans_.push_back(span);
      last_ = response;
    }
    return reader->Finish();
  }

  std::unique_ptr<grpc::Service> service_;
  std::unique_ptr<Server> server_;
  std::unique_ptr<v1::Trace::Stub> stub_;
  std::vector<v1::TraceSpan> spans_;
  v1::SpansResponse last_;
};

TEST_F(TraceServiceTest, TellsItsClockAndName) {
  const SpanRing ring(4);
  Serve(&ring);
  const MonoTime before = SteadyClock().Now();
  grpc::ClientContext context;
  v1::ClockResponse clock;
  ASSERT_TRUE(stub_->Clock(&context, {}, &clock).ok());
  const MonoTime now{Duration(clock.now_ns())};
  EXPECT_GE(now, before);
  EXPECT_LE(now, SteadyClock().Now());
  EXPECT_EQ(clock.clock_id(), MonoClockId());
  EXPECT_EQ(clock.process(), "prefill-0");
  EXPECT_EQ(clock.role(), "prefill");
  EXPECT_GT(clock.pid(), 0u);
}

TEST_F(TraceServiceTest, StreamsEveryField) {
  SpanRing ring(4);
  ring.Record({.name = SpanName::kSend,
               .request_id = "r",
               .attempt = 3,
               .begin = MonoTime(Duration(5)),
               .end = MonoTime(Duration(9)),
               .bytes = 1,
               .tokens = 2,
               .blocks = 4,
               .layer = 0,
               .group = 1,
               .peer = "decode-1",
               .transport = "tcp",
               .text = "t"});
  Serve(&ring);
  ASSERT_TRUE(Read({}).ok());
  ASSERT_EQ(spans_.size(), 1u);
  EXPECT_EQ(spans_[0].ShortDebugString(),
            "name: \"send\" request_id: \"r\" attempt: 3 begin_ns: 5 end_ns: 9 bytes: 1 tokens: 2 "
            "blocks: 4 layer: 0 group: 1 peer: \"decode-1\" transport: \"tcp\" text: \"t\"");
  EXPECT_EQ(last_.next(), 1u);
}

TEST_F(TraceServiceTest, StreamsMoreThanOneMessageHolds) {
  SpanRing ring(700);
  for (std::uint32_t i = 0; i < 1000; ++i) {
    ring.Record({.request_id = i % 7 == 0 ? "seventh" : "other", .tokens = i});
  }
  Serve(&ring);
  ASSERT_TRUE(Read({}).ok());
  ASSERT_EQ(spans_.size(), 700u);
  for (std::uint32_t i = 0; i < 700; ++i) {
    EXPECT_EQ(spans_[i].tokens(), 300 + i);
    EXPECT_EQ(spans_[i].number(), 300 + i);
  }
  EXPECT_EQ(last_.next(), 1000u);
  EXPECT_EQ(last_.forgotten(), 300u);

  v1::SpansRequest request;
  request.set_request_id("seventh");
  ASSERT_TRUE(Read(request).ok());
  EXPECT_EQ(spans_.size(), 100u);
  EXPECT_EQ(last_.next(), 1000u);

  request.set_cursor(990);
  ASSERT_TRUE(Read(request).ok());
  ASSERT_EQ(spans_.size(), 1u);
  EXPECT_EQ(spans_[0].tokens(), 994u);
}

TEST_F(TraceServiceTest, SaysWhenItDoesNotTrace) {
  Serve(nullptr);
  EXPECT_EQ(Read({}).error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  grpc::ClientContext context;
  v1::ClockResponse clock;
  EXPECT_EQ(stub_->Clock(&context, {}, &clock).error_message(),
            "this process does not trace (--no-trace)");
}

TEST_F(TraceServiceTest, RefusesALongRequestId) {
  const SpanRing ring(1);
  Serve(&ring);
  v1::SpansRequest request;
  request.set_request_id(std::string(65, 'r'));
  const grpc::Status status = Read(request);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(status.error_message(), "length of request_id must be from 0 to 64, got 65");
}

}  // namespace
}  // namespace penstock::rpc

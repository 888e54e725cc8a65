// SPDX-License-Identifier: Apache-2.0
// The client of etcd against servers that answer wrongly, late or not at all. That it and a real
// etcd understand each other is tests/etcd_test.py's.
#include "rpc/etcd_client.h"

#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/epoll_loop.h"
#include "etcd/rpc.grpc.pb.h"
#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"
#include "rpc/reply.h"
#include "rpc/server.h"

namespace penstock::rpc {
namespace {

namespace pb = etcdserverpb;
using namespace std::chrono_literals;

// Answers what it was told to; what is null is not answered at all.
class FakeKv final : public pb::KV::CallbackService {
 public:
  std::function<grpc::Status(const pb::TxnRequest&, pb::TxnResponse*)> txn;
  grpc::ServerUnaryReactor* Txn(grpc::CallbackServerContext* context, const pb::TxnRequest* request,
                                pb::TxnResponse* response) override {
    grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
    if (txn != nullptr) {
      reactor->Finish(txn(*request, response));
      return reactor;
    }
    const std::lock_guard lock(mutex_);
    silent_.push_back(reactor);
    if (over_) FinishAll();
    return reactor;
  }
  // gRPC wants an end of each, also of one that comes late.
  void FinishSilent() {
    const std::lock_guard lock(mutex_);
    over_ = true;
    FinishAll();
  }

 private:
  void FinishAll() {
    for (grpc::ServerUnaryReactor* const reactor : std::exchange(silent_, {})) {
      reactor->Finish(grpc::Status::CANCELLED);
    }
  }

  std::mutex mutex_;
  bool over_ = false;
  std::vector<grpc::ServerUnaryReactor*> silent_;
};

class FakeLease final : public pb::Lease::CallbackService {
 public:
  pb::LeaseGrantResponse granted;
  std::int64_t ttl = 5;                              // Of leases kept alive; below -1: no answer.
  grpc::StatusCode end_with = grpc::StatusCode::OK;  // Of the stream, after the first question.

  grpc::ServerUnaryReactor* LeaseGrant(grpc::CallbackServerContext* context,
                                       const pb::LeaseGrantRequest*,
                                       pb::LeaseGrantResponse* response) override {
    *response = granted;
    return Reply(context, absl::OkStatus());
  }
  grpc::ServerUnaryReactor* LeaseRevoke(grpc::CallbackServerContext* context,
                                        const pb::LeaseRevokeRequest*,
                                        pb::LeaseRevokeResponse*) override {
    return Reply(context, absl::NotFoundError("no such lease"));
  }
  grpc::ServerBidiReactor<pb::LeaseKeepAliveRequest, pb::LeaseKeepAliveResponse>* LeaseKeepAlive(
      grpc::CallbackServerContext*) override {
    return new Stream(*this);  // Deletes itself.
  }

 private:
  class Stream final
      : public grpc::ServerBidiReactor<pb::LeaseKeepAliveRequest, pb::LeaseKeepAliveResponse> {
   public:
    explicit Stream(FakeLease& of) : of_(of) { StartRead(&in_); }
    void OnReadDone(bool ok) override {
      if (!ok) return Finish(grpc::Status::OK);
      if (of_.end_with != grpc::StatusCode::OK) return Finish({of_.end_with, "no"});
      if (of_.ttl < -1) return StartRead(&in_);
      out_.set_id(in_.id());
      out_.set_ttl(of_.ttl);
      StartWrite(&out_);
    }
    void OnWriteDone(bool ok) override {
      if (ok) StartRead(&in_);
    }
    void OnDone() override { delete this; }

   private:
    FakeLease& of_;
    pb::LeaseKeepAliveRequest in_;
    pb::LeaseKeepAliveResponse out_;
  };
};

class FakeMember final : public pb::Maintenance::CallbackService {
 public:
  std::uint64_t leader = 1;
  grpc::ServerUnaryReactor* Status(grpc::CallbackServerContext* context, const pb::StatusRequest*,
                                   pb::StatusResponse* response) override {
    response->set_version("3.4.23");
    response->set_leader(leader);
    return Reply(context, absl::OkStatus());
  }
};

class EtcdClientTest : public ::testing::Test {
 protected:
  EtcdClientTest() {
    kv_.txn = [](const pb::TxnRequest& request, pb::TxnResponse* response) {
      response->mutable_header()->set_revision(7);
      response->set_succeeded(true);
      for (int i = 0; i < request.success_size(); ++i) response->add_responses();
      return grpc::Status::OK;
    };
    server_ = *Server::Start({.drain_for = 100ms}, {&kv_, &lease_, &member_});
    loop_ = *EpollLoop::Make("test");
    Connect({server_->address()});
  }
  ~EtcdClientTest() override {
    if (loop_ != nullptr) loop_->Run([this] { client_.reset(); });
    kv_.FinishSilent();
  }
  void Connect(std::vector<std::string> endpoints) {
    loop_->Run([&] {
      client_.reset();
      client_ = std::make_unique<EtcdClient>(
          *loop_, EtcdClient::Options{.endpoints = std::move(endpoints), .call_within = within_});
    });
  }
  // Waits for what a call gives.
  template <typename T, typename Call>
  absl::StatusOr<T> Get(Call call) {
    std::promise<absl::StatusOr<T>> promise;
    loop_->Run([&] {
      call([&promise](absl::StatusOr<T> result) { promise.set_value(std::move(result)); });
    });
    return promise.get_future().get();
  }
  absl::StatusOr<EtcdTxnResult> Txn(EtcdTxn txn) {
    return Get<EtcdTxnResult>([&](auto done) { client_->Txn(std::move(txn), std::move(done)); });
  }
  absl::StatusOr<Duration> KeepAlive(EtcdLease lease) {
    return Get<Duration>([&](auto done) { client_->KeepAlive(lease, std::move(done)); });
  }
  absl::StatusOr<EtcdGranted> Grant(Duration ttl) {
    return Get<EtcdGranted>([&](auto done) { client_->Grant(ttl, std::move(done)); });
  }

  Duration within_ = 10s;
  FakeKv kv_;
  FakeLease lease_;
  FakeMember member_;
  std::unique_ptr<Server> server_;
  std::unique_ptr<EpollLoop> loop_;
  std::unique_ptr<EtcdClient> client_;
};

const EtcdTxn kGetA = {.then = {{.kind = EtcdOp::Kind::kGet, .key = "a"}}};

TEST_F(EtcdClientTest, WhatIsAskedArrives) {
  pb::TxnRequest asked;
  kv_.txn = [&](const pb::TxnRequest& request, pb::TxnResponse* response) {
    asked = request;
    response->mutable_header()->set_revision(9);
    mvccpb::KeyValue* const kv = response->add_responses()->mutable_response_range()->add_kvs();
    kv->set_key("b");
    kv->set_value("v");
    kv->set_create_revision(3);
    kv->set_mod_revision(4);
    kv->set_lease(5);
    return grpc::Status::OK;
  };
  const auto result =
      Txn({.when = {{.key = "a", .created = 2}},
           .then = {{.kind = EtcdOp::Kind::kPut, .key = "a", .value = "x", .lease = 6},
                    {.kind = EtcdOp::Kind::kDelete, .key = "c"}},
           .otherwise = {{.kind = EtcdOp::Kind::kGetPrefix, .key = "b"}}});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_FALSE(result->held);
  EXPECT_EQ(result->revision, 9);
  ASSERT_EQ(result->found.size(), 1u);
  EXPECT_EQ(result->found[0].value, "v");
  EXPECT_EQ(result->found[0].created, 3);
  EXPECT_EQ(result->found[0].modified, 4);
  EXPECT_EQ(result->found[0].lease, 5);
  EXPECT_EQ(asked.compare(0).create_revision(), 2);
  EXPECT_EQ(asked.compare(0).target(), pb::Compare::CREATE);
  EXPECT_EQ(asked.success(0).request_put().lease(), 6);
  EXPECT_EQ(asked.success(1).request_delete_range().key(), "c");
  EXPECT_EQ(asked.failure(0).request_range().key(), "b");
  EXPECT_EQ(asked.failure(0).request_range().range_end(), "c");
}

TEST_F(EtcdClientTest, AnswersThatMakeNoSenseAreErrors) {
  struct Case {
    const char* name;
    std::function<void(pb::TxnResponse*)> answer;
  };
  const auto key = [](pb::TxnResponse* response, const char* name, std::int64_t created) {
    mvccpb::KeyValue* const kv = response->add_responses()->mutable_response_range()->add_kvs();
    kv->set_key(name);
    kv->set_create_revision(created);
  };
  const std::vector<Case> cases = {
      {"revision 0", [](auto* r) { r->mutable_header()->set_revision(0); }},
      {"revision -3", [](auto* r) { r->mutable_header()->set_revision(-3); }},
      {"0 responses to 1 operations", [](auto*) {}},
      {"2 responses to 1 operations", [&](auto* r) { key(r, "a", 1), key(r, "a", 1); }},
      {"a key that was not asked for", [&](auto* r) { key(r, "b", 1); }},
      {"a key that was not asked for", [&](auto* r) { key(r, "a", 0); }},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    kv_.txn = [&](const pb::TxnRequest&, pb::TxnResponse* response) {
      response->mutable_header()->set_revision(7);
      response->set_succeeded(true);
      c.answer(response);
      return grpc::Status::OK;
    };
    const absl::Status status = Txn(kGetA).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
    EXPECT_EQ(status.message(), absl::StrCat("etcd's answer makes no sense: ", c.name));
  }
}

TEST_F(EtcdClientTest, LeasesThatMakeNoSenseAreErrors) {
  EXPECT_EQ(Grant(5s).status().message(), "etcd's answer makes no sense: a lease of nothing");
  lease_.granted.set_id(1);
  lease_.granted.set_ttl(-1);
  EXPECT_EQ(Grant(5s).status().message(), "etcd's answer makes no sense: a lease of nothing");
  lease_.granted.set_ttl(INT64_MAX);
  EXPECT_EQ(Grant(5s).status().code(), absl::StatusCode::kInternal);
  lease_.granted.set_ttl(6);
  ASSERT_TRUE(Grant(5s).ok());
  EXPECT_EQ(Grant(5s)->ttl, Duration(6s));
  lease_.granted.set_error("no room");
  EXPECT_EQ(Grant(5s).status(), absl::UnavailableError("no room"));
  EXPECT_EQ(*KeepAlive(1), Duration(5s));
  lease_.ttl = 0;
  EXPECT_EQ(*KeepAlive(1), Duration());
  lease_.ttl = -1;
  EXPECT_EQ(*KeepAlive(1), Duration());
  lease_.ttl = INT64_MAX;
  EXPECT_EQ(KeepAlive(1).status().code(), absl::StatusCode::kInternal);
  EXPECT_TRUE(Get<bool>([&](auto done) { client_->Revoke(1, [done] { done(true); }); }).ok());
}

TEST_F(EtcdClientTest, WhoIsSilentIsLeft) {
  within_ = 50ms;
  Connect({server_->address()});
  const auto answers = std::exchange(kv_.txn, nullptr);
  EXPECT_EQ(Txn(kGetA).status().code(), absl::StatusCode::kDeadlineExceeded);
  lease_.ttl = -2;
  EXPECT_EQ(KeepAlive(1).status().code(), absl::StatusCode::kDeadlineExceeded);
  within_ = 10s;
  Connect({server_->address()});
  kv_.txn = answers;
  lease_.ttl = 5;
  EXPECT_TRUE(Txn(kGetA).ok());
  EXPECT_EQ(*KeepAlive(1), Duration(5s));
}

TEST_F(EtcdClientTest, AStreamThatEndsAnswersItsQuestionsAndIsOpenedAgain) {
  lease_.end_with = grpc::StatusCode::UNAVAILABLE;
  EXPECT_EQ(KeepAlive(1).status().code(), absl::StatusCode::kUnavailable);
  lease_.end_with = grpc::StatusCode::OK;
  EXPECT_EQ(*KeepAlive(1), Duration(5s));
  EXPECT_EQ(*KeepAlive(2), Duration(5s));
}

TEST_F(EtcdClientTest, TheNextEndpointIsAskedWhenOneFails) {
  Connect({"127.0.0.1:1", server_->address()});
  EXPECT_EQ(Txn(kGetA).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(Txn(kGetA).ok());
  EXPECT_TRUE(KeepAlive(1).ok());
  Connect({"127.0.0.1:1", server_->address()});
  EXPECT_EQ(KeepAlive(1).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(KeepAlive(1).ok());
}

TEST_F(EtcdClientTest, TooManyCallsAreRefused) {
  kv_.txn = nullptr;
  std::promise<absl::Status> promise;
  loop_->Run([&] {
    for (int i = 0; i < 1024; ++i) client_->Txn(kGetA, [](const auto&) {});
    client_->Txn(kGetA, [&](const auto& result) { promise.set_value(result.status()); });
  });
  EXPECT_EQ(promise.get_future().get().code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(EtcdClientTest, ItsEndWaitsForNobody) {
  kv_.txn = nullptr;
  lease_.ttl = -2;
  bool called = false;
  loop_->Run([&] {
    client_->Txn(kGetA, [&](const auto&) { called = true; });
    client_->KeepAlive(1, [&](const auto&) { called = true; });
  });
  loop_->Run([&] { client_.reset(); });
  loop_->Run([] {});
  EXPECT_FALSE(called);
}

TEST_F(EtcdClientTest, AMemberSaysItsVersion) {
  EXPECT_EQ(*EtcdVersion(server_->address(), 10s), "3.4.23");
  member_.leader = 0;
  EXPECT_EQ(EtcdVersion(server_->address(), 10s).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(EtcdVersion("127.0.0.1:1", 10s).status().code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace penstock::rpc

// SPDX-License-Identifier: Apache-2.0
#include "rpc/etcd_client.h"

#include <algorithm>
#include <list>
#include <map>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/status.h"
#include "etcd/rpc.grpc.pb.h"
#include "grpc/support/time.h"
#include "grpcpp/grpcpp.h"
#include "rpc/channel.h"
#include "rpc/client_stream.h"
#include "rpc/convert.h"
#include "rpc/open_calls.h"

namespace penstock::rpc {
namespace {

namespace pb = etcdserverpb;
using KeepStream = ClientStream<pb::LeaseKeepAliveRequest, pb::LeaseKeepAliveResponse>;

constexpr std::int64_t kTtlSecondsMax = 86400;

// The first key after all that begin so.
std::string EndOf(std::string prefix) {
  while (!prefix.empty() && prefix.back() == '\xff') prefix.pop_back();
  CHECK(!prefix.empty());
  ++prefix.back();
  return prefix;
}

void ToProto(const EtcdOp& from, pb::RequestOp* to) {
  switch (from.kind) {
    case EtcdOp::Kind::kGet:
      to->mutable_request_range()->set_key(from.key);
      return;
    case EtcdOp::Kind::kGetPrefix:
      to->mutable_request_range()->set_key(from.key);
      to->mutable_request_range()->set_range_end(EndOf(from.key));
      return;
    case EtcdOp::Kind::kPut:
      to->mutable_request_put()->set_key(from.key);
      to->mutable_request_put()->set_value(from.value);
      to->mutable_request_put()->set_lease(from.lease);
      return;
    case EtcdOp::Kind::kDelete:
      to->mutable_request_delete_range()->set_key(from.key);
      return;
  }
}

pb::TxnRequest ToProto(const EtcdTxn& from) {
  pb::TxnRequest to;
  for (const EtcdTxn::Compare& one : from.when) {
    pb::Compare* const compare = to.add_compare();
    compare->set_result(pb::Compare::EQUAL);
    compare->set_target(pb::Compare::CREATE);
    compare->set_key(one.key);
    compare->set_create_revision(one.created);
  }
  for (const EtcdOp& op : from.then) ToProto(op, to.add_success());
  for (const EtcdOp& op : from.otherwise) ToProto(op, to.add_failure());
  return to;
}

absl::Status Wrong(absl::string_view what) {
  return absl::InternalError(absl::StrCat("etcd's answer makes no sense: ", what));
}

// `asked`: what should have been done.
absl::StatusOr<EtcdTxnResult> FromProto(const std::vector<EtcdOp>& asked,
                                        const pb::TxnResponse& from) {
  EtcdTxnResult to{.held = from.succeeded(), .revision = from.header().revision(), .found = {}};
  if (to.revision <= 0) return Wrong(absl::StrCat("revision ", to.revision));
  if (static_cast<std::size_t>(from.responses_size()) != asked.size()) {
    return Wrong(
        absl::StrCat(from.responses_size(), " responses to ", asked.size(), " operations"));
  }
  for (std::size_t i = 0; i < asked.size(); ++i) {
    const EtcdOp& op = asked[i];
    for (const mvccpb::KeyValue& kv : from.responses(static_cast<int>(i)).response_range().kvs()) {
      const bool fits = op.kind == EtcdOp::Kind::kGet         ? kv.key() == op.key
                        : op.kind == EtcdOp::Kind::kGetPrefix ? absl::StartsWith(kv.key(), op.key)
                                                              : false;
      if (!fits || kv.create_revision() <= 0) return Wrong("a key that was not asked for");
      to.found.push_back({.key = kv.key(),
                          .value = kv.value(),
                          .created = kv.create_revision(),
                          .modified = kv.mod_revision(),
                          .lease = kv.lease()});
    }
  }
  return to;
}

absl::StatusOr<Duration> TtlFrom(std::int64_t seconds) {
  if (seconds > kTtlSecondsMax) return Wrong(absl::StrCat("a lease of ", seconds, " s"));
  return std::chrono::seconds(std::max<std::int64_t>(seconds, 0));
}

}  // namespace

class EtcdClient::Impl {
 public:
  Impl(Loop& loop, Options options) : loop_(loop), options_(std::move(options)) {
    CHECK(!options_.endpoints.empty());
    for (const std::string& endpoint : options_.endpoints) {
      const std::shared_ptr<grpc::Channel> channel = MakeChannel(endpoint);
      endpoints_.push_back({pb::KV::NewStub(channel), pb::Lease::NewStub(channel)});
    }
    *self_ = this;
  }
  ~Impl() {
    *self_ = nullptr;
    loop_.CancelTimer(timer_);
    for (const auto& [number, stream] : streams_) stream->Abandon();
  }

  void Txn(const EtcdTxn& txn, Done<EtcdTxnResult> done) {
    Call<pb::TxnResponse>(
        ToProto(txn), [](Endpoint& to, auto... parts) { to.kv->async()->Txn(std::move(parts)...); },
        [done = std::move(done), then = txn.then,
         otherwise = txn.otherwise](absl::StatusOr<pb::TxnResponse> response) {
          if (!response.ok()) return done(response.status());
          done(FromProto(response->succeeded() ? then : otherwise, *response));
        });
  }

  void Grant(Duration ttl, Done<EtcdGranted> done) {
    pb::LeaseGrantRequest request;
    request.set_ttl(std::chrono::ceil<std::chrono::seconds>(ttl).count());
    Call<pb::LeaseGrantResponse>(
        std::move(request),
        [](Endpoint& to, auto... parts) { to.lease->async()->LeaseGrant(std::move(parts)...); },
        [done = std::move(done)](absl::StatusOr<pb::LeaseGrantResponse> response) {
          if (!response.ok()) return done(response.status());
          if (!response->error().empty()) return done(absl::UnavailableError(response->error()));
          if (response->id() == 0 || response->ttl() <= 0) return done(Wrong("a lease of nothing"));
          absl::StatusOr<Duration> granted = TtlFrom(response->ttl());
          if (!granted.ok()) return done(granted.status());
          done(EtcdGranted{.lease = response->id(), .ttl = *granted});
        });
  }

  void Revoke(EtcdLease lease, std::function<void()> done) {
    pb::LeaseRevokeRequest request;
    request.set_id(lease);
    Call<pb::LeaseRevokeResponse>(
        std::move(request),
        [](Endpoint& to, auto... parts) { to.lease->async()->LeaseRevoke(std::move(parts)...); },
        // One that has ended is not found: as good.
        [done = std::move(done)](const absl::StatusOr<pb::LeaseRevokeResponse>&) {
          if (done != nullptr) done();
        });
  }

  void KeepAlive(EtcdLease lease, Done<Duration> done) {
    if (questions_.size() >= options_.calls_max) return Refuse(std::move(done));
    questions_.push_back({lease, loop_.Now() + options_.call_within, std::move(done)});
    if (stream_ == nullptr) OpenStream();
    pb::LeaseKeepAliveRequest request;
    request.set_id(lease);
    stream_->Send(std::move(request));
    if (questions_.size() == 1) WatchFirst();
  }

 private:
  struct Endpoint {
    std::unique_ptr<pb::KV::Stub> kv;
    std::unique_ptr<pb::Lease::Stub> lease;
  };
  // One lease to keep alive, until it is answered.
  struct Question {
    EtcdLease lease;
    MonoTime until;
    Done<Duration> done;
  };

  template <typename T>
  void Refuse(std::function<void(absl::StatusOr<T>)> done) {
    loop_.Post([self = self_, done = std::move(done), most = options_.calls_max] {
      if (*self == nullptr) return;
      done(absl::ResourceExhaustedError(absl::StrCat(most, " calls of etcd wait for an answer")));
    });
  }

  template <typename Response, typename Request, typename Begin>
  void Call(Request request, const Begin& begin,
            std::function<void(absl::StatusOr<Response>)> done) {
    if (calls_.count() >= options_.calls_max) return Refuse(std::move(done));
    calls_.Start<Response>(
        std::move(request), options_.call_within,
        [&to = endpoints_[at_], &begin](auto... parts) { begin(to, std::move(parts)...); },
        [this, at = at_, done = std::move(done)](absl::StatusOr<Response> response) {
          if (!response.ok()) Failed(at, response.status());
          done(std::move(response));
        });
  }

  // The next one is asked from now on, unless that has begun already.
  void Failed(std::size_t at, const absl::Status& why) {
    if (at != at_ || !(absl::IsUnavailable(why) || absl::IsDeadlineExceeded(why))) return;
    at_ = (at_ + 1) % endpoints_.size();
    CloseStream(absl::UnavailableError("another endpoint of etcd is asked now"));
  }

  void OpenStream() {
    const std::uint64_t number = ++number_;
    stream_ =
        KeepStream::Make(loop_, {},
                         {.on_message =
                              [self = self_, number](const pb::LeaseKeepAliveResponse& response) {
                                if (*self != nullptr) (*self)->OnKept(number, response);
                              },
                          .on_closed =
                              [self = self_, number, at = at_](const absl::Status& status) {
                                if (*self != nullptr) (*self)->OnClosed(number, at, status);
                              }},
                         [this](grpc::ClientContext* context, KeepStream* reactor) {
                           endpoints_[at_].lease->async()->LeaseKeepAlive(context, reactor);
                         });
    streams_.emplace(number, stream_);
  }

  void OnClosed(std::uint64_t number, std::size_t at, const absl::Status& status) {
    const std::shared_ptr<KeepStream> closed = streams_.extract(number).mapped();
    if (closed != stream_) return;
    const absl::Status why =
        status.ok() ? absl::UnavailableError("etcd has closed the stream") : status;
    CloseStream(why);
    Failed(at, why);
  }

  // Answers what it has not.
  void CloseStream(const absl::Status& why) {
    if (stream_ == nullptr) return;
    std::exchange(stream_, nullptr)->Cancel();
    loop_.CancelTimer(timer_);
    loop_.Post([self = self_, why, questions = std::exchange(questions_, {})] {
      for (const Question& question : questions) {
        if (*self != nullptr) question.done(why);
      }
    });
  }

  void OnKept(std::uint64_t number, const pb::LeaseKeepAliveResponse& response) {
    if (stream_ == nullptr || number != number_) return;  // Of one that was left.
    const auto at = std::ranges::find(questions_, response.id(), &Question::lease);
    if (at == questions_.end()) return;
    const Question question = std::move(*at);
    questions_.erase(at);
    WatchFirst();
    question.done(TtlFrom(response.ttl()));
  }

  void WatchFirst() {
    loop_.CancelTimer(timer_);
    if (questions_.empty()) return;
    timer_ = loop_.At(questions_.front().until, [this] {
      const absl::Status why = absl::DeadlineExceededError("etcd keeps no lease alive in time");
      const std::size_t at = at_;
      CloseStream(why);
      Failed(at, why);
    });
  }

  Loop& loop_;
  const Options options_;
  std::vector<Endpoint> endpoints_;
  std::size_t at_ = 0;                                             // The one that is asked.
  const std::shared_ptr<Impl*> self_ = std::make_shared<Impl*>();  // Null once destroyed.
  std::shared_ptr<KeepStream> stream_;  // Null: none is needed, or the last one has failed.
  std::uint64_t number_ = 0;            // Of the last one.
  std::map<std::uint64_t, std::shared_ptr<KeepStream>> streams_;  // Until gRPC is done with them.
  std::list<Question> questions_;  // In the order in which they were asked.
  Loop::TimerId timer_{};          // Until the first one's end.
  OpenCalls calls_{loop_};         // Ends first.
};

EtcdClient::EtcdClient(Loop& loop, Options options)
    : impl_(std::make_unique<Impl>(loop, std::move(options))) {}
EtcdClient::~EtcdClient() = default;

void EtcdClient::Txn(EtcdTxn txn, Done<EtcdTxnResult> done) { impl_->Txn(txn, std::move(done)); }
void EtcdClient::Grant(Duration ttl, Done<EtcdGranted> done) { impl_->Grant(ttl, std::move(done)); }
void EtcdClient::KeepAlive(EtcdLease lease, Done<Duration> done) {
  impl_->KeepAlive(lease, std::move(done));
}
void EtcdClient::Revoke(EtcdLease lease, std::function<void()> done) {
  impl_->Revoke(lease, std::move(done));
}

absl::StatusOr<std::string> EtcdVersion(const std::string& endpoint, Duration within) {
  const std::unique_ptr<pb::Maintenance::Stub> stub =
      pb::Maintenance::NewStub(MakeChannel(endpoint));
  grpc::ClientContext context;
  context.set_deadline(gpr_time_from_nanos(within.count(), GPR_TIMESPAN));
  pb::StatusResponse response;
  RETURN_IF_ERROR(FromGrpc(stub->Status(&context, {}, &response)));
  if (response.leader() == 0) {
    return absl::FailedPreconditionError("this member of etcd has no leader");
  }
  return response.version();
}

}  // namespace penstock::rpc

// SPDX-License-Identifier: Apache-2.0
#include "gateway/worker_client.h"

#include <algorithm>
#include <map>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "base/status.h"
#include "grpc/support/time.h"
#include "grpcpp/grpcpp.h"
#include "penstock/v1/worker.grpc.pb.h"
#include "rpc/channel.h"
#include "rpc/convert.h"
#include "rpc/sampling.h"

namespace penstock::gateway {
namespace {

constexpr Duration kStopTimeout = std::chrono::seconds(5);

void SetDeadline(Duration within, grpc::ClientContext* context) {
  context->set_deadline(
      gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                   gpr_time_from_nanos(std::max(within, Duration(1)).count(), GPR_TIMESPAN)));
}

v1::DecodeRequest ToProto(const DecodeOrder& order) {
  v1::DecodeRequest request;
  rpc::ToProto(order.attempt, request.mutable_attempt());
  request.mutable_prompt()->Add(order.prompt.begin(), order.prompt.end());
  request.set_emitted_tokens(order.emitted_tokens);
  rpc::SamplingToProto(order.sampling, request.mutable_sampling());
  request.mutable_sampling()->set_seed(order.sampling.seed.value_or(0));
  request.set_n(order.n);
  request.set_choice(order.first_choice);
  request.set_max_tokens(order.max_tokens);
  request.mutable_stop_tokens()->Add(order.stop_tokens.begin(), order.stop_tokens.end());
  request.set_ignore_eos(order.ignore_eos);
  request.set_priority(order.priority);
  request.set_root(rpc::ChainsToProto({&order.root, 1}));
  request.set_tenant(order.tenant);
  return request;
}

Output::Finish FromProto(v1::FinishReason reason) {
  switch (reason) {
    case v1::FINISH_REASON_STOP:
      return Output::Finish::kStop;
    case v1::FINISH_REASON_LENGTH:
      return Output::Finish::kLength;
    case v1::FINISH_REASON_CANCELLED:
      return Output::Finish::kCancelled;
    case v1::FINISH_REASON_ERROR:
      return Output::Finish::kError;
    default:
      return Output::Finish::kGoesOn;
  }
}

Handoff FromProto(const v1::HandoffStats& message) {
  const auto duration = [](const google::protobuf::Duration& field) {
    return rpc::FromProto("duration", field).value_or(Duration());  // For people alone.
  };
  return {.peer = message.peer(),
          .transport = message.transport(),
          .bytes = message.bytes(),
          .repeated_reads = message.repeated_reads(),
          .first_told_to_verified = duration(message.first_told_to_verified()),
          .last_told_to_verified = duration(message.last_told_to_verified())};
}

DecodeStep FromProto(const v1::DecodeResponse& message) {
  DecodeStep step;
  for (const v1::DecodeResponse::Output& from : message.outputs()) {
    Output& output = step.outputs.emplace_back();
    output.choice = from.choice();
    output.finish = FromProto(from.finish());
    if (!from.has_token()) continue;
    output.token = SampledToken{.token = from.token().token()};
    if (from.token().has_logprob()) output.token->logprob = from.token().logprob();
    for (const v1::TokenLogprob& top : from.token().top()) {
      output.token->top.push_back({.token = top.token(), .logprob = top.logprob(), .piece = {}});
    }
  }
  step.sampled_unix_ns = message.sampled_unix_ns();
  step.reused_tokens = message.done().reused_tokens();
  if (message.done().has_handoff() && message.done().handoff().bytes() > 0) {
    step.handoff = FromProto(message.done().handoff());
  }
  return step;
}

class WorkerClient final : public Workers {
 public:
  WorkerClient(EpollLoop& loop, WorkersListener& listener, const WorkerClientOptions& options)
      : loop_(loop), options_(options), listener_(&listener) {}

  ~WorkerClient() override {
    loop_.Run([this] {
      listener_ = nullptr;
      while (!attempts_.empty()) Cancel(Attempt(attempts_.begin()->first));
    });
    { const absl::MutexLock lock(&mutex_, absl::Condition(this, &WorkerClient::NoCalls)); }
    loop_.Run([] {});  // What the last one has posted is done.
  }

  void Decode(const std::string& endpoint, const DecodeOrder& order, MonoTime deadline) override {
    Calls& calls = attempts_[order.attempt];
    CallStarted();
    calls.decode = new DecodeCall(*this, order, deadline - loop_.Now(), StubOf(endpoint));
  }

  void Prefill(const std::string& endpoint, const PrefillOrder& order) override {
    Calls& calls = attempts_[order.attempt];
    CallStarted();
    auto* const call = new UnaryCall<v1::PrefillRequest, v1::PrefillResponse>(
        *this, order.attempt, order.timeout, StubOf(endpoint));
    rpc::ToProto(order.attempt, call->request.mutable_attempt());
    call->request.mutable_tokens()->Add(order.tokens.begin(), order.tokens.end());
    call->request.set_root(rpc::ChainsToProto({&order.root, 1}));
    call->request.set_tenant(order.tenant);
    call->request.set_priority(order.priority);
    rpc::ToProto(order.timeout, call->request.mutable_timeout());
    calls.prefill = &call->context;
    call->stub->async()->Prefill(&call->context, &call->request, &call->response, call);
    call->StartCall();
  }

  void StopChoice(const std::string& endpoint, const Attempt& attempt,
                  std::int32_t choice) override {
    CallStarted();
    auto* const call = new UnaryCall<v1::StopChoiceRequest, v1::StopChoiceResponse>(
        *this, std::nullopt, kStopTimeout, StubOf(endpoint));
    rpc::ToProto(attempt, call->request.mutable_attempt());
    call->request.set_choice(choice);
    call->stub->async()->StopChoice(&call->context, &call->request, &call->response, call);
    call->StartCall();
  }

  void Cancel(const Attempt& attempt) override {
    const auto it = attempts_.find(attempt);
    if (it == attempts_.end()) return;
    if (it->second.decode != nullptr) {
      it->second.decode->heard = false;
      it->second.decode->context.TryCancel();
    }
    if (it->second.prefill != nullptr) it->second.prefill->TryCancel();
    attempts_.erase(it);
  }

 private:
  using Stub = v1::Worker::Stub;

  // gRPC's threads only post to the loop. Deletes itself there when all is done.
  class DecodeCall final : public grpc::ClientReadReactor<v1::DecodeResponse> {
   public:
    DecodeCall(WorkerClient& client, const DecodeOrder& order, Duration within,
               std::shared_ptr<Stub> stub)
        : client_(client), attempt_(order.attempt), request_(ToProto(order)), stub_(stub) {
      SetDeadline(within, &context);
      stub_->async()->Decode(&context, &request_, this);
      StartRead(&response_);
      AddHold();  // Reads start outside of reactions.
      StartCall();
    }

    grpc::ClientContext context;
    bool heard = true;  // Somebody still wants to know.

   private:
    // Read on only when the last message is dealt with: so a slow gateway slows its workers.
    void OnReadDone(bool ok) override {
      client_.loop_.PostOrRun([this, ok] {
        if (!ok) return RemoveHold();
        if (heard && client_.listener_ != nullptr) {
          client_.listener_->OnStep(attempt_, FromProto(response_));
        }
        response_.Clear();
        StartRead(&response_);
      });
    }
    void OnDone(const grpc::Status& status) override {
      WorkerClient& client = client_;
      client.loop_.Post([this, status] {
        client_.OnDecodeDone(attempt_, this, rpc::FromGrpc(status));
        delete this;
      });
      client.CallEnded();  // This may be gone.
    }

    WorkerClient& client_;
    const Attempt attempt_;
    const v1::DecodeRequest request_;
    const std::shared_ptr<Stub> stub_;  // Also the cache's, which may drop it first.
    v1::DecodeResponse response_;
  };

  template <typename Request, typename Response>
  class UnaryCall final : public grpc::ClientUnaryReactor {
   public:
    UnaryCall(WorkerClient& client, std::optional<Attempt> prefill_of, Duration within,
              std::shared_ptr<Stub> the_stub)
        : stub(std::move(the_stub)), client_(client), prefill_of_(std::move(prefill_of)) {
      SetDeadline(within, &context);
    }

    grpc::ClientContext context;
    Request request;
    Response response;
    const std::shared_ptr<Stub> stub;  // Also the cache's, which may drop it first.

   private:
    void OnDone(const grpc::Status&) override {
      WorkerClient& client = client_;
      client.loop_.Post([this] {
        if (prefill_of_.has_value()) client_.OnPrefillDone(*prefill_of_, &context);
        delete this;
      });
      client.CallEnded();  // This may be gone.
    }

    WorkerClient& client_;
    const std::optional<Attempt> prefill_of_;
  };

  struct Calls {
    DecodeCall* decode = nullptr;  // Its own; null once it is done.
    grpc::ClientContext* prefill = nullptr;
  };
  struct Channel {
    std::shared_ptr<Stub> stub;
    std::uint64_t used = 0;
  };

  std::shared_ptr<Stub> StubOf(const std::string& endpoint) {
    Channel& channel = channels_[endpoint];
    channel.used = ++uses_;
    if (channel.stub == nullptr) channel.stub = v1::Worker::NewStub(rpc::MakeChannel(endpoint));
    std::shared_ptr<Stub> stub = channel.stub;
    if (channels_.size() > options_.channels_max) {
      channels_.erase(std::ranges::min_element(
          channels_, {}, [](const auto& entry) { return entry.second.used; }));
    }
    return stub;
  }

  void OnDecodeDone(const Attempt& attempt, const DecodeCall* call, const absl::Status& status) {
    const auto it = attempts_.find(attempt);
    if (it == attempts_.end() || it->second.decode != call) return;
    it->second.decode = nullptr;
    if (it->second.prefill == nullptr) attempts_.erase(it);
    if (listener_ != nullptr) listener_->OnDecodeEnd(attempt, status);
  }

  void OnPrefillDone(const Attempt& attempt, const grpc::ClientContext* call) {
    const auto it = attempts_.find(attempt);
    if (it == attempts_.end() || it->second.prefill != call) return;
    it->second.prefill = nullptr;
    if (it->second.decode == nullptr) attempts_.erase(it);
  }

  void CallStarted() {
    const absl::MutexLock lock(&mutex_);
    ++calls_;
  }
  void CallEnded() {
    const absl::MutexLock lock(&mutex_);
    --calls_;
  }
  bool NoCalls() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return calls_ == 0; }

  EpollLoop& loop_;
  const WorkerClientOptions options_;
  // On the loop alone.
  WorkersListener* listener_;
  std::map<Attempt, Calls> attempts_;
  std::map<std::string, Channel> channels_;  // By endpoint.
  std::uint64_t uses_ = 0;
  absl::Mutex mutex_;
  std::size_t calls_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace

std::unique_ptr<Workers> MakeWorkerClient(EpollLoop& loop, WorkersListener& listener,
                                          const WorkerClientOptions& options) {
  return std::make_unique<WorkerClient>(loop, listener, options);
}

}  // namespace penstock::gateway

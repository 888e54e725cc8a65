// SPDX-License-Identifier: Apache-2.0
#include "prefill/prefill_service.h"

#include <string>
#include <utility>

#include "base/status.h"
#include "grpcpp/grpcpp.h"
#include "penstock/v1/worker.grpc.pb.h"
#include "rpc/convert.h"
#include "rpc/reply.h"

namespace penstock::prefill {
namespace {

absl::StatusOr<MonoTime> DeadlineOf(const google::protobuf::Duration& timeout) {
  ASSIGN_OR_RETURN(const Duration duration, rpc::FromProto("timeout", timeout));
  return SteadyClock().Now() + duration;
}

// One Prefill call; deletes itself when gRPC is done with it.
class Call final : public grpc::ServerUnaryReactor {
 public:
  // `release` is called at most once, from a gRPC thread: the gateway is gone.
  explicit Call(std::function<void()> release) : release_(std::move(release)) {}

 private:
  void OnCancel() override { release_(); }
  void OnDone() override { delete this; }

  const std::function<void()> release_;
};

class PrefillService final : public v1::Worker::CallbackService {
 public:
  explicit PrefillService(const PrefillServiceParts& parts) : parts_(parts) {}

  grpc::ServerUnaryReactor* Prefill(grpc::CallbackServerContext*, const v1::PrefillRequest* request,
                                    v1::PrefillResponse* response) override {
    const absl::StatusOr<Attempt> attempt = rpc::FromProto(request->attempt());
    const absl::StatusOr<MonoTime> deadline = DeadlineOf(request->timeout());
    auto* const call = new Call([parts = parts_, attempt] {
      if (!attempt.ok()) return;
      parts.loop->Post([parts, attempt = *attempt] { parts.state->Release(attempt); });
    });
    const absl::StatusOr<std::optional<Chain>> root = rpc::RootFromProto(request->root());
    absl::Status status = attempt.status();
    status.Update(deadline.status());
    status.Update(root.status());
    if (!status.ok()) {
      call->Finish(rpc::ToGrpc(status));
      return call;
    }
    Prompt prompt{.tokens = {request->tokens().begin(), request->tokens().end()},
                  .root = *root,
                  .tenant = request->tenant(),
                  .priority = request->priority()};
    parts_.loop->Post([state = parts_.state, attempt = *attempt, prompt = std::move(prompt),
                       deadline = *deadline, call, response]() mutable {
      const absl::Status taken =
          state->Submit(attempt, std::move(prompt), deadline,
                        [call, response](const PrefillState::Outcome& outcome) {
                          response->set_bytes_told(outcome.handoff.bytes_told);
                          call->Finish(rpc::ToGrpc(outcome.status));
                        });
      if (!taken.ok()) call->Finish(rpc::ToGrpc(taken));
    });
    return call;
  }

  grpc::ServerUnaryReactor* Describe(grpc::CallbackServerContext* context,
                                     const v1::DescribeRequest*,
                                     v1::DescribeResponse* response) override {
    *response = parts_.description;
    return rpc::Reply(context, absl::OkStatus());
  }

 private:
  const PrefillServiceParts parts_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakePrefillService(const PrefillServiceParts& parts) {
  return std::make_unique<PrefillService>(parts);
}

}  // namespace penstock::prefill

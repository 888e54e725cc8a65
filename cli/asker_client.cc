// SPDX-License-Identifier: Apache-2.0
#include "cli/asker_client.h"

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "grpcpp/grpcpp.h"
#include "rpc/channel.h"
#include "rpc/convert.h"

namespace penstock::cli {

Asker::Asker(const std::string& server, std::chrono::seconds patience)
    : server_(server), patience_(patience), stub_(v1::Cluster::NewStub(rpc::MakeChannel(server))) {}

absl::StatusOr<v1::StatusResponse> Asker::Status() {
  return Ask<v1::StatusResponse>([this](grpc::ClientContext* context, v1::StatusResponse* out) {
    return stub_->Status(context, {}, out);
  });
}

absl::StatusOr<std::string> Asker::Explain(const std::string& request) {
  v1::ExplainRequest message;
  message.set_request_id(request);
  ASSIGN_OR_RETURN(
      const v1::ExplainResponse response,
      Ask<v1::ExplainResponse>([&](grpc::ClientContext* context, v1::ExplainResponse* out) {
        return stub_->Explain(context, message, out);
      }));
  return response.text();
}

template <typename Response, typename Call>
absl::StatusOr<Response> Asker::Ask(const Call& call) {
  grpc::ClientContext context;
  const gpr_timespec patience = gpr_time_from_seconds(patience_.count(), GPR_TIMESPAN);
  context.set_deadline(gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), patience));
  Response response;
  const absl::Status status = rpc::FromGrpc(call(&context, &response));
  if (status.ok()) return response;
  if (!absl::IsUnavailable(status) && !absl::IsDeadlineExceeded(status)) return status;
  return absl::Status(status.code(),
                      absl::StrCat("no coordinator answers at ", server_, ": ", status.message()));
}

}  // namespace penstock::cli

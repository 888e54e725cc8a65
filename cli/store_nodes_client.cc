// SPDX-License-Identifier: Apache-2.0
#include "cli/store_nodes_client.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/status.h"
#include "cli/asker_client.h"
#include "grpcpp/grpcpp.h"
#include "rpc/channel.h"
#include "rpc/convert.h"

namespace penstock::cli {
namespace {

constexpr int kAnswerWithin_s = 10;      // Of what is answered at once.
constexpr int kWorkWithin_s = 6 * 3600;  // Of what goes through all copies.
constexpr std::size_t kPieceBytes = 4096 * 16;

void SetDeadline(grpc::ClientContext& context, int seconds) {
  context.set_deadline(
      gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_seconds(seconds, GPR_TIMESPAN)));
}

}  // namespace

StoreNode::StoreNode(std::string name, const std::string& endpoint)
    : name_(std::move(name)),
      endpoint_(endpoint),
      stub_(v1::Store::NewStub(rpc::MakeChannel(endpoint))) {}

absl::Status StoreNode::Named(const absl::Status& status) const {
  if (status.ok()) return status;
  return absl::Status(
      status.code(), absl::StrCat("store node ", name_, " at ", endpoint_, ": ", status.message()));
}

absl::StatusOr<v1::StatResponse> StoreNode::Stat() {
  grpc::ClientContext context;
  SetDeadline(context, kAnswerWithin_s);
  v1::StatResponse response;
  RETURN_IF_ERROR(Named(rpc::FromGrpc(stub_->Stat(&context, {}, &response))));
  return response;
}

absl::Status StoreNode::List(
    const v1::ListRequest& request,
    const std::function<void(const v1::ListResponse::Copy& copy)>& on_copy) {
  grpc::ClientContext context;
  SetDeadline(context, kWorkWithin_s);
  const auto reader = stub_->List(&context, request);
  for (v1::ListResponse response; reader->Read(&response);) {
    for (const v1::ListResponse::Copy& copy : response.copies()) on_copy(copy);
  }
  return Named(rpc::FromGrpc(reader->Finish()));
}

absl::StatusOr<std::uint64_t> StoreNode::InPieces(
    const std::string& names,
    const std::function<absl::StatusOr<std::uint64_t>(const std::string& piece)>& ask) {
  std::uint64_t sum = 0;
  for (std::size_t at = 0; at < names.size(); at += kPieceBytes) {
    const absl::StatusOr<std::uint64_t> count = ask(names.substr(at, kPieceBytes));
    RETURN_IF_ERROR(Named(count.status()));
    sum += *count;
  }
  return sum;
}

absl::StatusOr<std::uint64_t> StoreNode::Pin(const std::string& names, bool unpin) {
  return InPieces(names, [&](const std::string& piece) -> absl::StatusOr<std::uint64_t> {
    grpc::ClientContext context;
    SetDeadline(context, kAnswerWithin_s);
    v1::PinRequest request;
    request.set_names(piece);
    request.set_unpin(unpin);
    v1::PinResponse response;
    RETURN_IF_ERROR(rpc::FromGrpc(stub_->Pin(&context, request, &response)));
    return response.changed();
  });
}

absl::StatusOr<std::uint64_t> StoreNode::Delete(const std::string& names) {
  return InPieces(names, [&](const std::string& piece) -> absl::StatusOr<std::uint64_t> {
    grpc::ClientContext context;
    SetDeadline(context, kWorkWithin_s);
    v1::DeleteRequest request;
    request.set_names(piece);
    v1::DeleteResponse response;
    RETURN_IF_ERROR(rpc::FromGrpc(stub_->Delete(&context, request, &response)));
    return response.deleted();
  });
}

absl::StatusOr<std::uint64_t> StoreNode::DeleteAll() {
  grpc::ClientContext context;
  SetDeadline(context, kWorkWithin_s);
  v1::DeleteRequest request;
  request.set_all(true);
  v1::DeleteResponse response;
  RETURN_IF_ERROR(Named(rpc::FromGrpc(stub_->Delete(&context, request, &response))));
  return response.deleted();
}

absl::StatusOr<std::uint64_t> StoreNode::Flush() {
  grpc::ClientContext context;
  SetDeadline(context, kWorkWithin_s);
  v1::FlushResponse response;
  RETURN_IF_ERROR(Named(rpc::FromGrpc(stub_->Flush(&context, {}, &response))));
  return response.bytes();
}

absl::StatusOr<v1::VerifyResponse> StoreNode::Verify(
    const std::function<void(const v1::VerifyResponse& so_far)>& on_progress) {
  grpc::ClientContext context;
  SetDeadline(context, kWorkWithin_s);
  const auto reader = stub_->Verify(&context, {});
  v1::VerifyResponse sum;
  for (v1::VerifyResponse response; reader->Read(&response);) {
    sum = response;
    on_progress(sum);
  }
  RETURN_IF_ERROR(Named(rpc::FromGrpc(reader->Finish())));
  return sum;
}

absl::StatusOr<StoreNodes> FindStoreNodes(const std::string& server, const std::string& name) {
  ASSIGN_OR_RETURN(const v1::StatusResponse status, Asker(server).Status());
  if (status.standby()) {
    return absl::FailedPreconditionError(
        absl::StrCat(server, " is a standby; ",
                     status.leader().empty() ? "no leader is known" : status.leader() + " leads"));
  }
  StoreNodes found;
  std::vector<std::string> names;
  for (const auto& store : status.stores()) {
    names.push_back(store.name());
    if (name.empty() || name == store.name()) {
      found.nodes.emplace_back(store.name(), store.endpoint());
    }
  }
  if (names.empty()) return absl::NotFoundError("the cluster has no store nodes");
  if (found.nodes.empty()) {
    return absl::NotFoundError(absl::StrCat("the cluster has no store node '", name,
                                            "'; it has: ", absl::StrJoin(names, ", ")));
  }
  std::set<std::int32_t> block_tokens;
  for (const auto& model : status.models()) {
    block_tokens.insert(static_cast<std::int32_t>(model.block_tokens()));
  }
  found.block_tokens.assign(block_tokens.begin(), block_tokens.end());
  return found;
}

}  // namespace penstock::cli

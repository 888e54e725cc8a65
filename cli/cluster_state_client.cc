// SPDX-License-Identifier: Apache-2.0
#include "cli/cluster_state_client.h"

#include <map>
#include <memory>
#include <string>
#include <utility>

#include "grpc/support/time.h"
#include "grpcpp/client_context.h"
#include "grpcpp/support/client_callback.h"
#include "penstock/v1/cluster.grpc.pb.h"
#include "rpc/channel.h"
#include "rpc/convert.h"

namespace penstock::cli {
namespace {

constexpr int kAnswerWithinMillis = 2000;

// One question, until it is answered.
struct Question {
  grpc::ClientContext context;
  v1::StatusRequest request;
  v1::StatusResponse response;
};

launch::ClusterState FromProto(const v1::StatusResponse& response) {
  launch::ClusterState state;
  for (const v1::GatewayEvent::Model& model : response.models()) {
    state.models.push_back({.name = model.name(), .ready = model.ready()});
  }
  for (const v1::StatusResponse::WorkerStatus& worker : response.workers()) {
    state.workers.push_back({.name = worker.name(), .state = worker.state()});
  }
  for (const v1::StatusResponse::Pair& pair : response.pairs()) {
    state.pairs.push_back({.prefill = pair.prefill(),
                           .decode = pair.decode(),
                           .verified = !pair.transport().empty() && !pair.has_error()});
  }
  return state;
}

}  // namespace

launch::Cluster::Ask MakeClusterStateClient(EpollLoop& loop) {
  // Shared by the function's copies; on the loop.
  const auto stubs = std::make_shared<std::map<std::string, std::unique_ptr<v1::Cluster::Stub>>>();
  return [&loop, stubs](const std::string& address,
                        std::function<void(absl::StatusOr<launch::ClusterState>)> done) {
    std::unique_ptr<v1::Cluster::Stub>& stub = (*stubs)[address];
    if (stub == nullptr) stub = v1::Cluster::NewStub(rpc::MakeChannel(address));
    const auto question = std::make_shared<Question>();  // Shared with gRPC, which answers last.
    question->context.set_deadline(gpr_time_from_millis(kAnswerWithinMillis, GPR_TIMESPAN));
    stub->async()->Status(&question->context, &question->request, &question->response,
                          [&loop, question, done = std::move(done)](const grpc::Status& status) {
                            loop.Post([question, done, status = rpc::FromGrpc(status)] {
                              if (!status.ok()) return done(status);
                              done(FromProto(question->response));
                            });
                          });
  };
}

}  // namespace penstock::cli

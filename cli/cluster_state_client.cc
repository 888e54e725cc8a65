// SPDX-License-Identifier: Apache-2.0
#include "cli/cluster_state_client.h"

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "grpcpp/client_context.h"
#include "penstock/v1/cluster.grpc.pb.h"
#include "penstock/v1/inference.grpc.pb.h"
#include "rpc/channel.h"
#include "rpc/open_calls.h"

namespace penstock::cli {
namespace {

constexpr Duration kAnswerWithin = std::chrono::seconds(2);

// Asks by `ask`, a method of the stub of the service at each address, and answers on `loop` with
// what `from_proto` makes of the response.
template <typename Service, typename Request, typename Response, typename State>
auto MakeClient(EpollLoop& loop,
                void (Service::StubInterface::async_interface::*ask)(
                    grpc::ClientContext*, const Request*, Response*,
                    std::function<void(grpc::Status)>),
                State (*from_proto)(const Response&)) {
  // Shared by the function's copies; on the loop.
  struct Shared {
    explicit Shared(EpollLoop& loop) : calls(loop) {}
    std::map<std::string, std::unique_ptr<typename Service::Stub>> stubs;
    rpc::OpenCalls calls;  // Ends first.
  };
  return [ask, from_proto, shared = std::make_shared<Shared>(loop)](
             const std::string& address, std::function<void(absl::StatusOr<State>)> done) {
    std::unique_ptr<typename Service::Stub>& stub = shared->stubs[address];
    if (stub == nullptr) stub = Service::NewStub(rpc::MakeChannel(address));
    shared->calls.template Start<Response>(
        Request(), kAnswerWithin,
        [&](auto... parts) { (stub->async()->*ask)(std::move(parts)...); },
        [from_proto, done = std::move(done)](const absl::StatusOr<Response>& response) {
          if (!response.ok()) return done(response.status());
          done(from_proto(*response));
        });
  };
}

launch::ClusterState FromProto(const v1::StatusResponse& response) {
  launch::ClusterState state;
  for (const v1::GatewayEvent::Model& model : response.models()) {
    state.models.push_back({.name = model.name(), .ready = model.ready()});
  }
  for (const v1::StatusResponse::WorkerStatus& worker : response.workers()) {
    state.workers.push_back({.name = worker.name(), .state = worker.state()});
  }
  for (const v1::StatusResponse::StoreStatus& store : response.stores()) {
    state.stores.push_back({.name = store.name(), .state = store.state()});
  }
  for (const v1::StatusResponse::Pair& pair : response.pairs()) {
    state.pairs.push_back({.prefill = pair.prefill(),
                           .decode = pair.decode(),
                           .verified = !pair.transport().empty() && !pair.has_error()});
  }
  return state;
}

std::vector<launch::ClusterState::Model> FromProto(const v1::ListModelsResponse& response) {
  std::vector<launch::ClusterState::Model> models;
  for (const v1::ListModelsResponse::Model& model : response.models()) {
    models.push_back({.name = model.name(), .ready = model.ready()});
  }
  return models;
}

}  // namespace

launch::Cluster::Questions MakeClusterStateClient(EpollLoop& loop) {
  return {.coordinator =
              MakeClient<v1::Cluster, v1::StatusRequest, v1::StatusResponse, launch::ClusterState>(
                  loop, &v1::Cluster::StubInterface::async_interface::Status, &FromProto),
          .gateway = MakeClient<v1::Inference, v1::ListModelsRequest, v1::ListModelsResponse,
                                std::vector<launch::ClusterState::Model>>(
              loop, &v1::Inference::StubInterface::async_interface::ListModels, &FromProto)};
}

}  // namespace penstock::cli

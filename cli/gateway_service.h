// SPDX-License-Identifier: Apache-2.0
// A gateway as a part of a process: `penstock gateway`, or the coordinator's own.
//
//   ASSIGN_OR_RETURN(models, OpenServed(flags.serve));
//   ASSIGN_OR_RETURN(hosted, HostedGateway::Make(std::move(models), "gateway"));
//   ... rpc::Server::Start(..., {..., hosted->service()}) ...
//   hosted->Attend({{.channel = server->InProcessChannel()}});
//
// The server ends before it.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "gateway/coordinator_client.h"
#include "gateway/gateway.h"
#include "grpcpp/impl/service_type.h"

namespace penstock::cli {

// Models as --serve names them: NAME=MODEL, MODEL as for --model (cli/model_store.h).
// INVALID_ARGUMENT where one is not of that form, or two have a name.
absl::StatusOr<gateway::Gateway::Models> OpenServed(const std::vector<std::string>& serve);

class HostedGateway {
 public:
  // `name` is unique in the deployment.
  static absl::StatusOr<std::unique_ptr<HostedGateway>> Make(gateway::Gateway::Models models,
                                                             const std::string& name,
                                                             SpanRing* spans = nullptr);
  ~HostedGateway();

  // penstock.v1.Inference. Until Attend, all requests are UNAVAILABLE.
  grpc::Service* service() { return service_.get(); }
  // Goes to the coordinator; of several, to the one that leads. Once.
  void Attend(const std::vector<gateway::CoordinatorTarget>& coordinators);

  gateway::Gateway& gateway() { return *gateway_; }
  // The last collection is over before it ends.
  void AddMetrics(Metrics& metrics) const {
    metrics.Add([this](MetricsWriter& writer) { gateway_->metrics().Write(writer); });
  }

 private:
  HostedGateway() = default;

  std::string name_;
  std::uint64_t seed_ = 0;
  std::unique_ptr<gateway::Gateway> gateway_;
  std::unique_ptr<grpc::Service> service_;  // Of gateway_.
};

}  // namespace penstock::cli

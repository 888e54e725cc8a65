// SPDX-License-Identifier: Apache-2.0
// A gateway as a part of a process: `penstock gateway`, or the coordinator's own.
//
//   ASSIGN_OR_RETURN(hosted, HostedGateway::Make(flags.gateway, "gateway"));
//   ... rpc::Server::Start(..., {..., hosted->service()}) ...
//   hosted->Attend({{.channel = server->InProcessChannel()}});
//
// The server ends before it.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "CLI/App.hpp"
#include "absl/status/statusor.h"
#include "cli/http_part.h"
#include "gateway/coordinator_client.h"
#include "gateway/gateway.h"
#include "grpcpp/impl/service_type.h"

namespace penstock::cli {

struct HostedGatewayFlags {
  std::vector<std::string> serve;  // NAME=MODEL, MODEL as for --model (cli/model_store.h).
  double slo_ttft_ms = 0;          // 0: none.
  double slo_tpot_ms = 0;
  HttpFlags http;
};
// Returns --serve, of which the commands say different things.
CLI::Option* AddHostedGatewayFlags(CLI::App& command, HostedGatewayFlags& flags);

class HostedGateway {
 public:
  // `name` is unique in the deployment. INVALID_ARGUMENT where a model is not of that form, or two
  // have a name; errors of ModelFront::Open.
  static absl::StatusOr<std::unique_ptr<HostedGateway>> Make(const HostedGatewayFlags& flags,
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

// SPDX-License-Identifier: Apache-2.0
// penstock.v1.Cluster: the coordinator's state machine on a loop of its own, with the streams of
// workers and gateways around it and the calls of operators.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "base/metrics.h"
#include "base/time.h"
#include "coordinator/coordinator.h"
#include "grpcpp/impl/service_type.h"

namespace penstock::coordinator {

class ClusterService {
 public:
  struct Options {
    Coordinator::Options coordinator;
    Duration report_every = std::chrono::seconds(1);  // Of workers.
    // A gateway that is away for so long is gone: what it asked is cancelled.
    Duration gateway_grace = std::chrono::seconds(5);
  };

  // INVALID_ARGUMENT as Coordinator::Make; RESOURCE_EXHAUSTED without a thread.
  static absl::StatusOr<std::unique_ptr<ClusterService>> Make(const Options& options);
  // After the server that it was registered with.
  ~ClusterService();

  // To be registered with a server.
  grpc::Service* service();
  // Adds what the coordinator counts. The last collection is over before the service ends.
  void AddMetrics(Metrics& metrics);
  // Ends every stream as UNAVAILABLE, so that the server need not cut them. Any thread.
  void EndStreams();

 private:
  class Impl;
  explicit ClusterService(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace penstock::coordinator

// SPDX-License-Identifier: Apache-2.0
// penstock.v1.Cluster: the coordinator's state machine on a loop of its own, with the streams of
// workers and gateways around it and the calls of operators. With a store (etcd) one of several
// coordinators leads, and the next one goes on where it ended (leadership.h, durable_state.h).
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

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
    // Of every stream: for the peer's first message, and, once the stream ends, for the peer to read
    // the last that it is told.
    Duration first_within = std::chrono::seconds(10);
    Duration end_within = std::chrono::seconds(5);
    // "host:port" of etcd's members; none: this coordinator is the only one, and keeps nothing.
    std::vector<std::string> etcd = {};
    std::string etcd_prefix = "/penstock/";  // Of the deployment's keys; ends with '/'.
  };

  // INVALID_ARGUMENT as Coordinator::Make; RESOURCE_EXHAUSTED without a thread.
  static absl::StatusOr<std::unique_ptr<ClusterService>> Make(const Options& options);
  // After the server that it was registered with.
  ~ClusterService();

  // To be registered with a server.
  grpc::Service* service();
  // Adds what the coordinator counts. The last collection is over before the service ends.
  void AddMetrics(Metrics& metrics);
  // Once, when the server is there: with a store this coordinator is a standby before. It is called
  // `name` and found at `address`. `on_leading` is called with every change, and at once where it
  // leads by now; on the service's loop, until End.
  void Begin(const std::string& name, const std::string& address,
             std::function<void(bool leading)> on_leading);
  // Ends every stream as UNAVAILABLE, so that the server need not cut them, and lets another
  // coordinator lead. Once; not from the service's loop.
  void End();

 private:
  class Impl;
  explicit ClusterService(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace penstock::coordinator

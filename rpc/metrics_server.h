// SPDX-License-Identifier: Apache-2.0
// A process's metrics for Prometheus: http://ADDRESS/metrics, in threads of its own.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "base/metrics.h"
#include "prometheus/collectable.h"
#include "prometheus/exposer.h"

namespace penstock::rpc {

class MetricsServer {
 public:
  struct Options {
    std::string host =
        "127.0.0.1";  // An address. Nothing listens beyond loopback unless it says so.
    int port = 0;     // 0: any.
  };
  // Serves until destroyed; `metrics`, and all that its sources read, outlive that.
  // INVALID_ARGUMENT for a port above 65,535; UNAVAILABLE when the address cannot be had, naming
  // it.
  static absl::StatusOr<std::unique_ptr<MetricsServer>> Start(const Options& options,
                                                              Metrics& metrics);
  ~MetricsServer();

  // "127.0.0.1:9464", with the port that was found.
  const std::string& address() const { return address_; }

 private:
  MetricsServer() = default;

  std::string address_;
  std::shared_ptr<prometheus::Collectable> source_;  // Shared as the exposer wants it.
  std::unique_ptr<prometheus::Exposer> exposer_;
};

}  // namespace penstock::rpc

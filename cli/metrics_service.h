// SPDX-License-Identifier: Apache-2.0
// A process's metrics, as its flags ask for them.
//
//   MetricsPart metrics("decode", name);
//   metrics.sources().AddOn(loop, ...);
//   RETURN_IF_ERROR(metrics.Serve(flags.metrics));  // The ready file gets metrics.address().
//
// To be destroyed before what its sources read: declare it after that.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "CLI/App.hpp"
#include "absl/status/status.h"
#include "base/metrics.h"
#include "rpc/metrics_server.h"

namespace penstock::cli {

struct MetricsFlags {
  std::optional<int> port;
  std::string host = "127.0.0.1";
};
void AddMetricsFlags(CLI::App& command, MetricsFlags& flags);

class MetricsPart {
 public:
  MetricsPart(const std::string& role, const std::string& name);
  Metrics& sources() { return metrics_; }
  // Where flags name a port; else nothing. Errors of MetricsServer::Start.
  absl::Status Serve(const MetricsFlags& flags);
  // "127.0.0.1:9464", to be asked for /metrics. Empty: nothing is served.
  std::string address() const { return server_ == nullptr ? std::string() : server_->address(); }

 private:
  Metrics metrics_;
  std::unique_ptr<rpc::MetricsServer> server_;  // Of metrics_.
};

}  // namespace penstock::cli

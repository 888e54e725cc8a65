// SPDX-License-Identifier: Apache-2.0
#include "cli/metrics_service.h"

#include <utility>

#include "base/status.h"

namespace penstock::cli {

void AddMetricsFlags(CLI::App& command, MetricsFlags& flags) {
  command
      .add_option(
          "--metrics-port", flags.port,
          "For Prometheus: /metrics over HTTP; 0 finds a free one, without it there is none")
      ->check(CLI::Range(0, 65535));
  command
      .add_option("--metrics-host", flags.host,
                  "Address that metrics listen on; loopback unless this says otherwise")
      ->capture_default_str();
}

MetricsPart::MetricsPart(const std::string& role, const std::string& name) {
  metrics_.Add([role, name](MetricsWriter& writer) {
    writer.Gauge("penstock_build_info", "1, with what this process is as labels", 1,
                 {{"version", PENSTOCK_VERSION}, {"role", role}, {"name", name}});
    WriteProcessMetrics(writer);
  });
}

absl::Status MetricsPart::Serve(const MetricsFlags& flags) {
  if (!flags.port) return absl::OkStatus();
  ASSIGN_OR_RETURN(server_,
                   rpc::MetricsServer::Start({.host = flags.host, .port = *flags.port}, metrics_));
  return absl::OkStatus();
}

}  // namespace penstock::cli

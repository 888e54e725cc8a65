// SPDX-License-Identifier: Apache-2.0
// penstock coordinator: decides which workers serve a request, until a signal ends it.
#include "coordinator/coordinator_service.h"

#include <unistd.h>

#include <memory>
#include <string>
#include <vector>

#include "CLI/App.hpp"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status.h"
#include "cli/commands.h"
#include "cli/gateway_service.h"
#include "cli/http_part.h"
#include "cli/metrics_service.h"
#include "cli/serving.h"
#include "cli/trace_service.h"
#include "nlohmann/json.hpp"
#include "rpc/channel.h"
#include "rpc/server.h"

namespace penstock::cli {
namespace {

struct CoordinatorFlags {
  std::string host = "127.0.0.1";
  int port = 0;
  std::string name = "coordinator";
  std::string policy = "cost";
  std::string etcd;
  std::string etcd_prefix = "/penstock/";
  std::string ready_file;
  TraceFlags trace;
  MetricsFlags metrics;
  HostedGatewayFlags gateway;
};

absl::StatusOr<int> RunCoordinator(const CoordinatorFlags& flags) {
  BlockSignals();
  SetLogLevel(LogLevel::kInfo);
  coordinator::ClusterService::Options options;
  options.coordinator.policy.name = flags.policy;
  options.coordinator.verify_pairs = true;
  RETURN_IF_ERROR(
      CheckRange("length of --name", static_cast<std::int64_t>(flags.name.size()), 1, 64));
  if (!flags.etcd.empty()) {
    ASSIGN_OR_RETURN(options.etcd, rpc::SplitAddresses("--etcd", flags.etcd));
    options.etcd_prefix = flags.etcd_prefix;
    if (!absl::EndsWith(options.etcd_prefix, "/")) options.etcd_prefix += '/';
  }
  const TracePart trace(flags.trace, "coordinator", flags.name);
  options.coordinator.spans = trace.spans();
  ASSIGN_OR_RETURN(const std::unique_ptr<coordinator::ClusterService> cluster,
                   coordinator::ClusterService::Make(options));
  std::vector<grpc::Service*> services = {cluster->service(), trace.service()};
  std::unique_ptr<HostedGateway> gateway;
  if (!flags.gateway.serve.empty()) {
    ASSIGN_OR_RETURN(gateway, HostedGateway::Make(flags.gateway, "gateway", trace.spans()));
    services.push_back(gateway->service());
  }
  ASSIGN_OR_RETURN(const std::unique_ptr<rpc::Server> server,
                   rpc::Server::Start({.host = flags.host, .port = flags.port}, services));
  if (gateway != nullptr) gateway->Attend({{.channel = server->InProcessChannel()}});
  std::unique_ptr<gateway::HttpServer> http;
  if (gateway != nullptr) {
    ASSIGN_OR_RETURN(http, ServeHttp(flags.gateway.http, flags.host, gateway->gateway()));
  } else if (flags.gateway.http.port.has_value()) {
    return absl::InvalidArgumentError("--http-port needs --serve");
  }
  MetricsPart metrics("coordinator", flags.name);
  cluster->AddMetrics(metrics.sources());
  if (gateway != nullptr) gateway->AddMetrics(metrics.sources());
  RETURN_IF_ERROR(metrics.Serve(flags.metrics));
  LOG_INFO("coordinator ready", {{"grpc", server->address()}, {"policy", flags.policy}});
  nlohmann::ordered_json ready = {
      {"name", flags.name}, {"grpc", server->address()}, {"pid", ::getpid()}};
  if (http != nullptr) ready["http"] = http->address();
  if (!metrics.address().empty()) ready["metrics"] = metrics.address();
  RETURN_IF_ERROR(WriteReadyFile(flags.ready_file, ready));
  cluster->Begin(flags.name, server->address(),
                 [&server](bool leading) { server->SetServing(leading); });
  const int signal = WaitForSignal();
  server->SetServing(false);
  if (http != nullptr) http->Shutdown(kHttpGrace);
  LOG_INFO("coordinator ends", {{"signal", signal}});
  cluster->End();
  return kExitOk;
}

}  // namespace

void RegisterCoordinator(CLI::App& app, Run& run) {
  const auto flags = std::make_shared<CoordinatorFlags>();
  CLI::App* const sub = app.add_subcommand(
      "coordinator", "Decides which workers of a cluster serve a request; workers join it");
  sub->add_option("--host", flags->host,
                  "Address to listen on; nothing listens beyond loopback unless this says so")
      ->capture_default_str();
  sub->add_option("--port", flags->port, "For gRPC; 0 finds a free one")
      ->check(CLI::Range(0, 65535))
      ->capture_default_str();
  sub->add_option("--name", flags->name, "What this coordinator is called; of several, unique")
      ->capture_default_str();
  sub->add_option("--etcd", flags->etcd,
                  "HOST:PORT of etcd's members, with commas between them. With it several "
                  "coordinators may run: one leads, and another goes on where it ended");
  sub->add_option("--etcd-prefix", flags->etcd_prefix,
                  "Of this deployment's keys in etcd; the same for all of its coordinators")
      ->capture_default_str();
  sub->add_option("--policy", flags->policy,
                  "How workers are chosen: cost, least-loaded or round-robin")
      ->check(CLI::IsMember({"cost", "least-loaded", "round-robin"}))
      ->capture_default_str();
  AddHostedGatewayFlags(*sub, flags->gateway)
      ->description(
          "NAME=MODEL: with it a gateway runs inside, which serves clients on the same port; may "
          "be "
          "repeated");
  sub->add_option("--ready-file", flags->ready_file,
                  "Written once the coordinator serves: its address and process id, as JSON");
  AddTraceFlags(*sub, flags->trace);
  AddMetricsFlags(*sub, flags->metrics);
  sub->footer(
      "Example:\n"
      "  penstock coordinator --port 7070 --serve smollm2=smollm2\n"
      "  penstock decode --coordinator 127.0.0.1:7070 --model smollm2 --model-name smollm2");
  sub->callback([flags, &run] { run = [flags] { return RunCoordinator(*flags); }; });
}

}  // namespace penstock::cli

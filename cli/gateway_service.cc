// SPDX-License-Identifier: Apache-2.0
// penstock gateway: the clients' edge, as a process of its own.
#include "cli/gateway_service.h"

#include <unistd.h>

#include <algorithm>
#include <random>
#include <utility>

#include "CLI/App.hpp"
#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status.h"
#include "cli/commands.h"
#include "cli/metrics_service.h"
#include "cli/model_store.h"
#include "cli/serving.h"
#include "cli/trace_service.h"
#include "gateway/coordinator_client.h"
#include "gateway/gateway_service.h"
#include "gateway/worker_client.h"
#include "nlohmann/json.hpp"
#include "rpc/channel.h"
#include "rpc/server.h"

namespace penstock::cli {
namespace {

struct GatewayFlags {
  std::string coordinator;
  std::string name;
  std::string host = "127.0.0.1";
  int port = 0;
  std::string ready_file;
  TraceFlags trace;
  MetricsFlags metrics;
  HostedGatewayFlags gateway;
};

absl::StatusOr<int> RunGateway(const GatewayFlags& flags) {
  BlockSignals();
  SetLogLevel(LogLevel::kInfo);
  const std::string name = flags.name.empty() ? absl::StrCat("gateway-", ::getpid()) : flags.name;
  RETURN_IF_ERROR(CheckRange("length of --name", static_cast<std::int64_t>(name.size()), 1, 64));
  ASSIGN_OR_RETURN(const std::vector<std::string> addresses,
                   rpc::SplitAddresses("--coordinator", flags.coordinator));
  std::vector<gateway::CoordinatorTarget> coordinators;
  for (const std::string& address : addresses) {
    coordinators.push_back({.address = address, .channel = rpc::MakeChannel(address)});
  }
  const TracePart trace(flags.trace, "gateway", name);
  ASSIGN_OR_RETURN(const std::unique_ptr<HostedGateway> hosted,
                   HostedGateway::Make(flags.gateway, name, trace.spans()));
  ASSIGN_OR_RETURN(const std::unique_ptr<rpc::Server> server,
                   rpc::Server::Start({.host = flags.host, .port = flags.port},
                                      {hosted->service(), trace.service()}));
  hosted->Attend(coordinators);
  ASSIGN_OR_RETURN(const std::unique_ptr<gateway::HttpServer> http,
                   ServeHttp(flags.gateway.http, flags.host, hosted->gateway()));
  MetricsPart metrics("gateway", name);
  hosted->AddMetrics(metrics.sources());
  RETURN_IF_ERROR(metrics.Serve(flags.metrics));
  server->SetServing(true);
  LOG_INFO("gateway serves", {{"name", name}, {"grpc", server->address()}});
  nlohmann::ordered_json ready = {{"name", name}, {"grpc", server->address()}, {"pid", ::getpid()}};
  if (http != nullptr) ready["http"] = http->address();
  if (!metrics.address().empty()) ready["metrics"] = metrics.address();
  RETURN_IF_ERROR(WriteReadyFile(flags.ready_file, ready));
  const int signal = WaitForSignal();
  server->SetServing(false);
  if (http != nullptr) http->Shutdown(kHttpGrace);
  LOG_INFO("gateway ends", {{"name", name}, {"signal", signal}});
  return kExitOk;
}

absl::StatusOr<gateway::Gateway::Models> OpenServed(const std::vector<std::string>& serve) {
  gateway::Gateway::Models models;
  for (const std::string& text : serve) {
    const std::size_t equals = text.find('=');
    if (equals == std::string::npos || equals == 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("--serve takes NAME=MODEL, such as smollm2=smollm2, got \"", text, "\""));
    }
    ASSIGN_OR_RETURN(const std::string path, ResolveModel(text.substr(equals + 1)));
    ASSIGN_OR_RETURN(models.emplace_back(),
                     gateway::ModelFront::Open(text.substr(0, equals), path));
  }
  return models;
}

// Far more than anybody waits is clamped, so that it is a Duration.
Duration Millis(double ms) {
  return std::chrono::duration_cast<Duration>(
      std::chrono::duration<double, std::milli>(std::min(ms, 1e9)));
}

}  // namespace

absl::StatusOr<std::unique_ptr<HostedGateway>> HostedGateway::Make(const HostedGatewayFlags& flags,
                                                                   const std::string& name,
                                                                   SpanRing* spans) {
  ASSIGN_OR_RETURN(gateway::Gateway::Models models, OpenServed(flags.serve));
  std::random_device device;
  std::unique_ptr<HostedGateway> hosted(new HostedGateway);
  hosted->name_ = name;
  hosted->seed_ = (std::uint64_t{device()} << 32) | device();
  ASSIGN_OR_RETURN(
      hosted->gateway_,
      gateway::Gateway::Make(std::move(models), {.seed = hosted->seed_,
                                                 .slo = {.ttft = Millis(flags.slo_ttft_ms),
                                                         .tpot = Millis(flags.slo_tpot_ms)},
                                                 .relay = {.spans = spans}}));
  hosted->service_ = gateway::MakeInferenceService(*hosted->gateway_);
  return hosted;
}

HostedGateway::~HostedGateway() = default;

void HostedGateway::Attend(const std::vector<gateway::CoordinatorTarget>& coordinators) {
  gateway_->Attend(
      {.coordinator =
           [this, &coordinators](EpollLoop& loop, gateway::CoordinatorListener& listener) {
             return gateway::MakeCoordinatorClient(loop, listener, coordinators,
                                                   {.name = name_, .seed = seed_});
           },
       .workers =
           [](EpollLoop& loop, gateway::WorkersListener& listener) {
             return gateway::MakeWorkerClient(loop, listener, {});
           }});
}

CLI::Option* AddHostedGatewayFlags(CLI::App& command, HostedGatewayFlags& flags) {
  command
      .add_option("--slo-ttft-ms", flags.slo_ttft_ms,
                  "Metrics count as good the answers that begin by then ...")
      ->check(CLI::NonNegativeNumber);
  command
      .add_option("--slo-tpot-ms", flags.slo_tpot_ms,
                  "... and whose tokens come this often, on average")
      ->check(CLI::NonNegativeNumber);
  AddHttpFlags(command, flags.http);
  return command.add_option("--serve", flags.serve)->allow_extra_args(false);
}

void RegisterGateway(CLI::App& app, Run& run) {
  const auto flags = std::make_shared<GatewayFlags>();
  CLI::App* const sub = app.add_subcommand(
      "gateway", "Takes requests of clients, and relays the answers of a cluster's workers");
  sub->add_option(
         "--coordinator", flags->coordinator,
         "Address of the coordinator, HOST:PORT; of several, with commas between them, the one "
         "that leads is found")
      ->required();
  AddHostedGatewayFlags(*sub, flags->gateway)
      ->required()
      ->description(
          "NAME=MODEL: what requests call a model, and the file that has its tokenizer and chat "
          "template; may be repeated");
  sub->add_option("--name", flags->name, "What the cluster calls this gateway; unique")
      ->default_str("gateway-PID");
  sub->add_option("--host", flags->host,
                  "Address to listen on; nothing listens beyond loopback unless this says so")
      ->capture_default_str();
  sub->add_option("--port", flags->port, "For gRPC; 0 finds a free one")
      ->check(CLI::Range(0, 65535))
      ->capture_default_str();
  sub->add_option("--ready-file", flags->ready_file,
                  "Written once the gateway serves: its address and process id, as JSON");
  AddTraceFlags(*sub, flags->trace);
  AddMetricsFlags(*sub, flags->metrics);
  sub->footer(
      "Example:\n"
      "  penstock gateway --coordinator 127.0.0.1:7070 --serve smollm2=smollm2 --port 7071");
  sub->callback([flags, &run] { run = [flags] { return RunGateway(*flags); }; });
}

}  // namespace penstock::cli

// SPDX-License-Identifier: Apache-2.0
#include "rpc/server.h"

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "grpc/support/time.h"
#include "grpcpp/ext/proto_server_reflection_plugin.h"
#include "grpcpp/grpcpp.h"
#include "grpcpp/health_check_service_interface.h"
#include "rpc/channel.h"

namespace penstock::rpc {

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const Options& options,
                                                      const std::vector<grpc::Service*>& services) {
  // gRPC takes the lower 16 bits of any number.
  RETURN_IF_ERROR(CheckRange("port", options.port, 0, 65535));
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  const std::string host = options.host.find(':') == std::string::npos
                               ? options.host
                               : absl::StrCat("[", options.host, "]");
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort(absl::StrCat(host, ":", options.port), grpc::InsecureServerCredentials(),
                           &port);
  // Two servers must not share a port in silence.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  // A peer that went silent is noticed on both sides; pings of ours and theirs are welcome.
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kPingEveryMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kPingEveryMs);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                             kPingEveryMs / 5);
  builder.SetMaxReceiveMessageSize(options.message_bytes_max);
  for (grpc::Service* const service : services) builder.RegisterService(service);
  std::unique_ptr<Server> server(new Server);
  server->server_ = builder.BuildAndStart();
  if (server->server_ == nullptr || port == 0) {
    return absl::UnavailableError(
        absl::StrCat("cannot listen on ", host, ":", options.port, "; is it taken?"));
  }
  server->drain_for_ = options.drain_for;
  server->address_ = absl::StrCat(host, ":", port);
  server->SetServing(false);
  return server;
}

std::shared_ptr<grpc::Channel> Server::InProcessChannel() {
  return server_->InProcessChannel(grpc::ChannelArguments());
}

Server::~Server() {
  if (server_ == nullptr) return;
  server_->Shutdown(gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                                 gpr_time_from_nanos(drain_for_.count(), GPR_TIMESPAN)));
  server_->Wait();
}

void Server::SetServing(bool serving) {
  server_->GetHealthCheckService()->SetServingStatus(serving);
}

}  // namespace penstock::rpc

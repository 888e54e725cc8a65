// SPDX-License-Identifier: Apache-2.0
// A gRPC server with what every process of a cluster has: health checks and reflection.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/time.h"
#include "grpcpp/channel.h"
#include "grpcpp/impl/service_type.h"
#include "grpcpp/server.h"

namespace penstock::rpc {

class Server {
 public:
  struct Options {
    std::string host = "127.0.0.1";  // Nothing listens beyond loopback unless this says so.
    int port = 0;                    // 0: any.
    int message_bytes_max = 64 << 20;
    // Calls that are still open when the server ends are cancelled after so long.
    Duration drain_for = std::chrono::seconds(2);
  };

  // Serves until destroyed. `services` outlive the server. INVALID_ARGUMENT for a port above
  // 65,535; UNAVAILABLE when the address cannot be had, naming it.
  static absl::StatusOr<std::unique_ptr<Server>> Start(const Options& options,
                                                       const std::vector<grpc::Service*>& services);
  ~Server();

  // "127.0.0.1:50051", with the port that was found.
  const std::string& address() const { return address_; }
  // To this server, without a socket.
  std::shared_ptr<grpc::Channel> InProcessChannel();
  // What health checks answer; not serving at first.
  void SetServing(bool serving);

 private:
  Server() = default;

  Duration drain_for_{};
  std::string address_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace penstock::rpc

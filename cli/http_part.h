// SPDX-License-Identifier: Apache-2.0
// The OpenAI-compatible HTTP server of a process with a gateway, as its flags ask for it.
//
//   ASSIGN_OR_RETURN(const auto http, ServeHttp(flags.http, flags.host, hosted->gateway()));
//   if (http != nullptr) ready["http"] = http->address();
//   ... WaitForSignal() ...
//   if (http != nullptr) http->Shutdown(kHttpGrace);
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "CLI/App.hpp"
#include "absl/status/statusor.h"
#include "gateway/http_server.h"

namespace penstock::cli {

// What running answers get when the process ends.
inline constexpr Duration kHttpGrace = std::chrono::seconds(5);

struct HttpFlags {
  std::optional<int> port;
  std::string host;  // Empty: where the process listens for gRPC.
};
void AddHttpFlags(CLI::App& command, HttpFlags& flags);

// Null where flags name no port. `gateway` outlives it. Errors of HttpServer::Start.
absl::StatusOr<std::unique_ptr<gateway::HttpServer>> ServeHttp(const HttpFlags& flags,
                                                               const std::string& host,
                                                               gateway::Gateway& gateway);

}  // namespace penstock::cli

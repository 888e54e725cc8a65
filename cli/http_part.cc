// SPDX-License-Identifier: Apache-2.0
#include "cli/http_part.h"

#include <random>

#include "base/log.h"
#include "base/status.h"

namespace penstock::cli {

void AddHttpFlags(CLI::App& command, HttpFlags& flags) {
  command
      .add_option("--http-port", flags.port,
                  "Serves OpenAI's HTTP API (/v1/chat/completions, ...) here, too; 0 finds a free "
                  "port")
      ->check(CLI::Range(0, 65535));
  command.add_option("--http-host", flags.host, "Address to listen on for HTTP")
      ->default_str("that of --host");
}

absl::StatusOr<std::unique_ptr<gateway::HttpServer>> ServeHttp(const HttpFlags& flags,
                                                               const std::string& host,
                                                               gateway::Gateway& gateway) {
  if (!flags.port.has_value()) return nullptr;
  std::random_device device;
  ASSIGN_OR_RETURN(
      std::unique_ptr<gateway::HttpServer> server,
      gateway::HttpServer::Start(gateway::BackendOf(gateway),
                                 {.host = flags.host.empty() ? host : flags.host,
                                  .port = *flags.port,
                                  .version = PENSTOCK_VERSION,
                                  .seed = (std::uint64_t{device()} << 32) | device()}));
  LOG_INFO("HTTP serves", {{"http", server->address()}});
  return server;
}

}  // namespace penstock::cli

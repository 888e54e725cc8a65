// SPDX-License-Identifier: Apache-2.0
// The OpenAI-compatible HTTP/1.1 server of a gateway (what it answers: http_api.h). A few threads
// hold thousands of open streams.
//
// Bounded: connections, header and body bytes of each, bytes of all bodies that are being read, and
// what waits to be read by a client (event_queue.h). Every read and write has a deadline. A client
// that hangs up, before its first token or in mid-stream, cancels its request at once; one that
// reads too slowly is cut.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/time.h"
#include "gateway/event_queue.h"
#include "gateway/gateway.h"

namespace penstock::gateway {

// What the server needs of a gateway; all from any thread, and none may block.
struct HttpBackend {
  std::function<RequestHandle(Request, std::shared_ptr<Sink>)> submit;
  std::function<void(RequestHandle)> cancel;
  std::function<std::vector<Gateway::Model>()> models;
};
// `gateway` outlives the server.
HttpBackend BackendOf(Gateway& gateway);

class HttpServer {
 public:
  struct Options {
    std::string host = "127.0.0.1";  // Nothing listens beyond loopback unless this says so.
    int port = 0;                    // 0: any.
    int threads = 2;                 // 1 to 4; one more parses long bodies.
    std::string version = {};        // What /version says.
    std::uint64_t seed = 0;          // Of the ids that it draws: another in every process.
    std::size_t connections_max = 8192;
    std::size_t header_bytes_max = std::size_t{16} << 10;
    std::size_t body_bytes_max = std::size_t{16} << 20;
    std::size_t bodies_bytes_max = std::size_t{256} << 20;  // Of all that are being read.
    std::size_t reply_bytes_max = std::size_t{64} << 20;    // Of an answer that is no stream.
    EventQueue::Limits queue = {};
    Duration idle_timeout = std::chrono::seconds(120);  // Between two requests.
    Duration head_timeout = std::chrono::seconds(10);   // From a request's first byte.
    Duration body_timeout = std::chrono::seconds(60);
    // For what is ready to be written, and more for how much it is.
    Duration write_timeout = std::chrono::seconds(30);
    std::size_t write_bytes_per_second = std::size_t{64} << 10;
  };

  // Serves until destroyed. INVALID_ARGUMENT: port or threads out of range. UNAVAILABLE when the
  // address cannot be had, naming it. RESOURCE_EXHAUSTED: no threads.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(HttpBackend backend,
                                                           const Options& options);
  // As Shutdown with no grace.
  ~HttpServer();

  // Takes no more connections or requests; lets those that run finish, for `grace` at most, then
  // cuts them. Once; not from the backend's callbacks.
  void Shutdown(Duration grace);

  // "127.0.0.1:8000", with the port that was found.
  const std::string& address() const;
  std::size_t connections() const;

 private:
  class Impl;
  explicit HttpServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace penstock::gateway

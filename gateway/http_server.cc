// SPDX-License-Identifier: Apache-2.0
#include "gateway/http_server.h"

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/status.h"
#include "gateway/http_server_connection.h"
#include "gateway/http_server_core.h"

namespace penstock::gateway {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using ErrorCode = boost::system::error_code;

// After the system refused a descriptor.
constexpr Duration kAcceptPause = std::chrono::milliseconds(100);
// Cut connections go at once, but for a stream that is told why.
constexpr Duration kCutWithin = std::chrono::seconds(10);

std::string Show(const tcp::endpoint& endpoint) {
  const std::string host = endpoint.address().to_string();
  return endpoint.address().is_v6() ? absl::StrCat("[", host, "]:", endpoint.port())
                                    : absl::StrCat(host, ":", endpoint.port());
}

}  // namespace

HttpBackend BackendOf(Gateway& gateway) {
  return {.submit =
              [&gateway](Request request, std::shared_ptr<Sink> sink) {
                return gateway.Submit(std::move(request), std::move(sink));
              },
          .cancel = [&gateway](RequestHandle handle) { gateway.Cancel(handle); },
          .models = [&gateway] { return gateway.ListModels(); }};
}

class HttpServer::Impl {
 public:
  Impl(HttpBackend backend, const Options& options)
      : core_(std::move(backend), options),
        work_(core_.io.get_executor()),
        acceptor_(asio::make_strand(core_.io)),
        pause_(acceptor_.get_executor()) {}

  ~Impl() { Shutdown({}); }

  absl::Status Listen();
  absl::Status Run();
  void Shutdown(Duration grace);
  const std::string& address() const { return address_; }
  std::size_t connections() const { return core_.Count(); }

 private:
  using Acceptor = asio::basic_socket_acceptor<tcp, HttpConnection::Strand>;

  void Accept();
  void OnAccept(ErrorCode error, HttpConnection::Socket socket);
  void Refuse(HttpConnection::Socket socket);

  HttpCore core_;
  asio::executor_work_guard<asio::io_context::executor_type> work_;
  // On its own strand.
  Acceptor acceptor_;
  asio::basic_waitable_timer<std::chrono::steady_clock,
                             asio::wait_traits<std::chrono::steady_clock>, HttpConnection::Strand>
      pause_;
  std::string address_;
  bool ended_ = false;  // Of the owner's thread.
  std::vector<std::jthread> threads_;
};

absl::Status HttpServer::Impl::Listen() {
  const Options& options = core_.options;
  RETURN_IF_ERROR(CheckRange("HTTP port", options.port, 0, 65535));
  RETURN_IF_ERROR(CheckRange("HTTP threads", options.threads, 1, 4));
  const auto failed = [&](const ErrorCode& error) {
    return absl::UnavailableError(absl::StrCat("cannot listen for HTTP on ", options.host, ":",
                                               options.port, ": ", error.message()));
  };
  ErrorCode error;
  tcp::resolver resolver(core_.io);
  const auto found =
      resolver.resolve(options.host, absl::StrCat(options.port),
                       tcp::resolver::passive | tcp::resolver::numeric_service, error);
  if (error || found.empty()) return failed(error);
  const tcp::endpoint endpoint = found.begin()->endpoint();
  if (acceptor_.open(endpoint.protocol(), error)) return failed(error);
  if (acceptor_.set_option(Acceptor::reuse_address(true), error)) return failed(error);
  if (acceptor_.bind(endpoint, error)) return failed(error);
  if (acceptor_.listen(Acceptor::max_listen_connections, error)) return failed(error);
  const tcp::endpoint local = acceptor_.local_endpoint(error);
  if (error) return failed(error);
  address_ = Show(local);
  return absl::OkStatus();
}

absl::Status HttpServer::Impl::Run() {
  asio::post(acceptor_.get_executor(), [this] { Accept(); });
  try {
    for (int i = 0; i < core_.options.threads; ++i) {
      threads_.emplace_back([this] { core_.io.run(); });
    }
  } catch (const std::system_error& e) {
    return absl::ResourceExhaustedError(absl::StrCat("no thread for HTTP: ", e.what()));
  }
  return absl::OkStatus();
}

void HttpServer::Impl::Accept() {
  // Each connection has a strand of its own.
  acceptor_.async_accept(asio::make_strand(core_.io),
                         [this](ErrorCode error, HttpConnection::Socket socket) {
                           OnAccept(error, std::move(socket));
                         });
}

void HttpServer::Impl::OnAccept(ErrorCode error, HttpConnection::Socket socket) {
  if (!acceptor_.is_open()) return;
  if (error) {
    LOG_WARNING("cannot accept a connection", {{"why", error.message()}});
    pause_.expires_after(kAcceptPause);
    pause_.async_wait([this](ErrorCode cancelled) {
      if (!cancelled && acceptor_.is_open()) Accept();
    });
    return;
  }
  if (core_.Count() >= core_.options.connections_max) {
    Refuse(std::move(socket));
  } else {
    const auto connection = std::make_shared<HttpConnection>(core_, std::move(socket));
    core_.Add(connection.get(), connection);
    connection->Start();
  }
  Accept();
}

// What fits the socket's buffer at once.
void HttpServer::Impl::Refuse(HttpConnection::Socket socket) {
  const std::string body = ErrorJson({.http_status = 503,
                                      .message = "too many connections",
                                      .type = "server_error",
                                      .code = "service_unavailable"});
  const std::string reply = absl::StrCat(
      "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\n"
      "Content-Type: application/json\r\nContent-Length: ",
      body.size(), "\r\n\r\n", body);
  ErrorCode ignored;
  socket.non_blocking(true, ignored);
  socket.write_some(asio::buffer(reply), ignored);
  socket.shutdown(HttpConnection::Socket::shutdown_send, ignored);
}

void HttpServer::Impl::Shutdown(Duration grace) {
  if (std::exchange(ended_, true)) return;
  if (!threads_.empty()) {
    std::mutex mutex;
    std::condition_variable changed;
    bool closed = false;
    asio::post(acceptor_.get_executor(), [&] {
      ErrorCode ignored;
      acceptor_.close(ignored);
      pause_.cancel();
      const std::lock_guard lock(mutex);
      closed = true;
      changed.notify_one();
    });
    {
      std::unique_lock lock(mutex);
      changed.wait(lock, [&] { return closed; });
    }
    for (const auto& connection : core_.Connections()) connection->Drain();
    if (grace > Duration()) core_.AwaitNone(grace);
    for (const auto& connection : core_.Connections()) connection->Abort();
    core_.AwaitNone(kCutWithin);
  }
  core_.parser.join();
  work_.reset();
  core_.io.stop();
  threads_.clear();
}

HttpServer::HttpServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
HttpServer::~HttpServer() = default;

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(HttpBackend backend,
                                                              const Options& options) {
  RETURN_IF_ERROR(CheckRange("HTTP threads", options.threads, 1, 4));
  auto impl = std::make_unique<Impl>(std::move(backend), options);
  RETURN_IF_ERROR(impl->Listen());
  RETURN_IF_ERROR(impl->Run());
  return std::unique_ptr<HttpServer>(new HttpServer(std::move(impl)));
}

void HttpServer::Shutdown(Duration grace) { impl_->Shutdown(grace); }
const std::string& HttpServer::address() const { return impl_->address(); }
std::size_t HttpServer::connections() const { return impl_->connections(); }

}  // namespace penstock::gateway

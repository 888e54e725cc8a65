// SPDX-License-Identifier: Apache-2.0
// Of HttpConnection: from the first byte of a request to its handler, and the connection's end.
#include "gateway/http_server_connection.h"

#include <algorithm>
#include <array>
#include <boost/asio/post.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/string.hpp>
#include <boost/beast/http/read.hpp>
#include <limits>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace penstock::gateway {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;

// Longer bodies are parsed beside the threads that serve streams.
constexpr std::size_t kInlineBodyBytes = std::size_t{64} << 10;
// Of what a client may send ahead while its answer is made; the rest waits in the socket.
constexpr std::size_t kPipelineBytes = std::size_t{64} << 10;
constexpr Duration kLingerFor = std::chrono::seconds(2);
constexpr std::size_t kLingerBytesMax = std::size_t{64} << 20;

std::string_view ToStd(boost::beast::string_view s) { return {s.data(), s.size()}; }

}  // namespace

HttpConnection::HttpConnection(HttpCore& core, Socket socket)
    : core_(core),
      socket_(std::move(socket)),
      strand_(socket_.get_executor()),
      timer_(strand_),
      buffer_(core.options.header_bytes_max + kPipelineBytes) {}

HttpConnection::~HttpConnection() { core_.Remove(this); }

void HttpConnection::Start() {
  asio::post(strand_, [self = shared_from_this()] {
    ErrorCode ignored;
    self->socket_.set_option(asio::ip::tcp::no_delay(true), ignored);
    self->socket_.non_blocking(true, ignored);
    self->BeginIdle();
  });
}

void HttpConnection::Drain() {
  asio::post(strand_, [self = shared_from_this()] {
    self->draining_ = true;
    self->keep_alive_ = false;
    if (self->phase_ == Phase::kIdle) self->Close();
  });
}

void HttpConnection::Abort() {
  asio::post(strand_, [self = shared_from_this()] {
    if (self->phase_ != Phase::kBusy || !self->exchange_.has_value()) return self->Close();
    self->keep_alive_ = false;
    self->Fail({.http_status = 503,
                .message = "the server ends",
                .type = "server_error",
                .code = "service_unavailable"});
    self->SetDeadline(std::chrono::seconds(1));
  });
}

void HttpConnection::BeginIdle() {
  parser_.reset();
  exchange_.reset();
  phase_ = Phase::kIdle;
  http10_ = head_only_ = must_linger_ = false;
  if (draining_) return Close();
  if (buffer_.size() > 0) return ReadHead();
  buffer_.shrink_to_fit();
  SetDeadline(core_.options.idle_timeout);
  Wait();
}

// For bytes, or for the client's end of the connection.
void HttpConnection::Wait() {
  if (std::exchange(waiting_, true)) return;
  socket_.async_wait(Socket::wait_read,
                     [self = shared_from_this()](ErrorCode error) { self->OnReadable(error); });
}

void HttpConnection::OnReadable(ErrorCode error) {
  waiting_ = false;
  if (phase_ == Phase::kIdle && !error) return ReadHead();
  if (phase_ == Phase::kLinger) return OnLinger();
  if (phase_ != Phase::kBusy) {
    if (error && phase_ == Phase::kIdle) Close();
    return;
  }
  // The client sends its next request, or hangs up.
  const std::size_t room = kPipelineBytes - std::min(buffer_.size(), kPipelineBytes);
  if (room == 0) return;
  const std::size_t bytes =
      socket_.read_some(buffer_.prepare(std::min<std::size_t>(room, 4096)), error);
  buffer_.commit(bytes);
  if (error && error != asio::error::would_block && error != asio::error::interrupted) {
    // One that only says that it has said all still wants a reply that is there already.
    if (exchange_.has_value() || error != asio::error::eof) return Close();
    keep_alive_ = false;
    return;
  }
  Wait();
}

void HttpConnection::ReadHead() {
  phase_ = Phase::kReading;
  draw_ = core_.Draw();
  expired_ = false;
  parser_.emplace();
  parser_->header_limit(static_cast<std::uint32_t>(core_.options.header_bytes_max));
  // The body has its own; none at all is too much for Beast.
  parser_->body_limit(std::numeric_limits<std::uint64_t>::max());
  parser_->get().body().bytes_max = core_.options.body_bytes_max;
  parser_->get().body().charge = HttpBudget::Charge(&core_.bodies);
  SetDeadline(core_.options.head_timeout);
  http::async_read_header(
      socket_, buffer_, *parser_,
      [self = shared_from_this()](ErrorCode error, std::size_t) { self->OnHead(error); });
}

void HttpConnection::OnHead(ErrorCode error) {
  if (phase_ == Phase::kClosed) return;
  if (error == http::error::end_of_stream) return Close();  // Between two requests.
  if (error) return RefuseRead(error);
  http10_ = parser_->get().version() < 11;
  keep_alive_ = parser_->keep_alive() && !draining_;
  head_only_ = parser_->get().method() == http::verb::head;
  std::optional<std::uint64_t> body_bytes;
  if (const auto length = parser_->content_length()) body_bytes = *length;
  if (auto refused = CheckHead(View(), Context(draw_), body_bytes)) {
    must_linger_ = !parser_->is_done() && (body_bytes.value_or(0) > 0 || parser_->chunked());
    return Send(*refused);
  }
  const auto expect = parser_->get()[http::field::expect];
  if (!http10_ && boost::beast::iequals(expect, "100-continue") && buffer_.size() == 0) {
    static constexpr std::string_view kContinue = "HTTP/1.1 100 Continue\r\n\r\n";
    SetDeadline(core_.options.head_timeout);
    asio::async_write(socket_, asio::buffer(kContinue),
                      [self = shared_from_this()](ErrorCode failed, std::size_t) {
                        if (self->phase_ == Phase::kClosed) return;
                        if (failed) return self->Close();
                        self->ReadBody();
                      });
    return;
  }
  ReadBody();
}

void HttpConnection::ReadBody() {
  SetDeadline(core_.options.body_timeout);
  http::async_read(
      socket_, buffer_, *parser_,
      [self = shared_from_this()](ErrorCode error, std::size_t) { self->OnBody(error); });
}

void HttpConnection::OnBody(ErrorCode error) {
  if (phase_ == Phase::kClosed) return;
  if (error) return RefuseRead(error);
  ClearDeadline();
  Serve();
}

// A request that could not be read.
void HttpConnection::RefuseRead(ErrorCode error) {
  ApiError why{.http_status = 400, .message = absl::StrCat("not HTTP: ", error.message())};
  const bool parse_error =
      error.category() == http::make_error_code(http::error::bad_value).category();
  if (expired_) {
    why.http_status = 408;
    why.message = "the request did not come in time";
    why.code = "request_timeout";
  } else if (error == http::error::header_limit) {
    why.http_status = 431;
    why.message = absl::StrCat("the header has more than ", core_.options.header_bytes_max,
                               " bytes, which is the limit");
    why.code = "header_too_large";
  } else if (error == http::error::body_limit) {
    why.http_status = 413;
    why.message = absl::StrCat("the body has more than ", core_.options.body_bytes_max,
                               " bytes, which is the limit");
    why.code = "body_too_large";
  } else if (error == boost::system::errc::not_enough_memory) {
    why.http_status = 503;
    why.type = "server_error";
    why.message = "too many requests are being read";
    why.code = "service_unavailable";
    why.retry_after = std::chrono::seconds(1);
  } else if (!parse_error || error == http::error::partial_message) {
    return Close();  // The client is gone.
  }
  keep_alive_ = false;
  must_linger_ = true;
  Send(ErrorReply(why, *RequestIdOf({}, draw_)));
}

HttpRequest HttpConnection::View() const {
  const auto& message = parser_->get();
  HttpRequest request{.method = gateway::ToStd(message.method_string()),
                      .target = gateway::ToStd(message.target()),
                      .body = message.body().text};
  for (const auto& field : message) {
    request.headers.emplace_back(gateway::ToStd(field.name_string()),
                                 gateway::ToStd(field.value()));
  }
  return request;
}

HttpContext HttpConnection::Context(std::uint64_t draw) const {
  return {.models = core_.backend.models(),
          .unix_now = UnixNow(),
          .draw = draw,
          .version = core_.options.version,
          .body_bytes_max = core_.options.body_bytes_max};
}

void HttpConnection::Serve() {
  phase_ = Phase::kBusy;
  if (parser_->get().body().text.size() <= kInlineBodyBytes) {
    return OnHandled(HandleHttp(View(), Context(draw_)));
  }
  asio::post(core_.parser, [self = shared_from_this()]() mutable {
    auto result = std::make_shared<std::variant<HttpReply, HttpWork>>(
        HandleHttp(self->View(), self->Context(self->draw_)));
    HttpConnection& connection = *self;
    asio::post(connection.strand_, [self = std::move(self), result = std::move(result)] {
      self->OnHandled(std::move(*result));
    });
  });
}

void HttpConnection::OnHandled(std::variant<HttpReply, HttpWork> result) {
  if (phase_ == Phase::kClosed) return;
  parser_.reset();  // With the body.
  if (buffer_.size() == 0) buffer_.shrink_to_fit();
  Wait();
  if (auto* const reply = std::get_if<HttpReply>(&result)) return Send(*reply);
  Submit(std::get<HttpWork>(std::move(result)));
}

// All of the answer is said, but not all of the request was read.
void HttpConnection::BeginLinger() {
  phase_ = Phase::kLinger;
  ErrorCode ignored;
  socket_.shutdown(Socket::shutdown_send, ignored);
  SetDeadline(kLingerFor);
  Wait();
}

void HttpConnection::OnLinger() {
  std::array<char, 16384> dropped;
  ErrorCode error;
  const std::size_t bytes = socket_.read_some(asio::buffer(dropped), error);
  lingered_bytes_ += bytes;
  const bool again = !error || error == asio::error::would_block;
  if (!again || lingered_bytes_ > kLingerBytesMax) return Close();
  Wait();
}

void HttpConnection::Close() {
  if (phase_ == Phase::kClosed) return;
  phase_ = Phase::kClosed;
  EndExchange();
  ErrorCode ignored;
  socket_.close(ignored);
  timer_.cancel();
}

void HttpConnection::SetDeadline(Duration within) {
  deadline_ = SteadyClock().Now() + within;
  ArmTimer();
}

// The timer is left alone as long as it fires no later than it must: deadlines change often.
void HttpConnection::ArmTimer() {
  if (deadline_ == MonoTime::max() || timer_at_ <= deadline_) return;
  timer_at_ = deadline_;
  timer_.expires_at(timer_at_);
  timer_.async_wait([weak = weak_from_this()](ErrorCode error) {
    if (error) return;
    if (const auto self = weak.lock()) self->OnDeadline();
  });
}

void HttpConnection::OnDeadline() {
  timer_at_ = MonoTime::max();
  if (phase_ == Phase::kClosed) return;
  if (SteadyClock().Now() < deadline_) return ArmTimer();
  ClearDeadline();
  if (phase_ != Phase::kReading || writing_ || expired_) return Close();
  // Ends the read, which answers.
  expired_ = true;
  SetDeadline(kLingerFor);
  ErrorCode ignored;
  socket_.cancel(ignored);
}

}  // namespace penstock::gateway

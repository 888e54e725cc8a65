// SPDX-License-Identifier: Apache-2.0
// Of HttpConnection: from the gateway's events to the socket.
#include <time.h>

#include <array>
#include <boost/asio/post.hpp>
#include <boost/asio/write.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status.h"
#include "gateway/http_server_connection.h"

namespace penstock::gateway {
namespace {

namespace asio = boost::asio;

// A stream's head waits for all parts of its answer to be taken by the cluster, so that a refusal
// has a status of its own; but not for longer than this.
constexpr std::size_t kHeldBytesMax = std::size_t{64} << 10;

// "Sun, 06 Nov 1994 08:49:37 GMT"
std::string HttpDate(std::int64_t unix_seconds) {
  constexpr std::array<const char*, 7> kDays = {"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"};
  constexpr std::array<const char*, 12> kMonths = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                                   "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
  const std::time_t seconds = unix_seconds;
  std::tm civil{};
  ::gmtime_r(&seconds, &civil);
  return absl::StrFormat("%s, %02d %s %04d %02d:%02d:%02d GMT",
                         kDays[static_cast<std::size_t>(civil.tm_wday)], civil.tm_mday,
                         kMonths[static_cast<std::size_t>(civil.tm_mon)], civil.tm_year + 1900,
                         civil.tm_hour, civil.tm_min, civil.tm_sec);
}

void AppendHead(int status, std::string_view type, const std::string& request_id,
                std::string* out) {
  absl::StrAppend(out, "HTTP/1.1 ", status, " ", ToAbsl(ReasonPhrase(status)),
                  "\r\nServer: penstock\r\nDate: ", HttpDate(UnixNow()),
                  "\r\nContent-Type: ", ToAbsl(type), "\r\nX-Request-Id: ", request_id, "\r\n");
}

}  // namespace

void HttpConnection::Submit(HttpWork work) {
  exchange_.emplace(Exchange{.answer = OpenAiAnswer(work.format)});
  exchange_->queue = std::make_shared<EventQueue>(core_.options.queue, [self = shared_from_this()] {
    asio::post(self->strand_, [self] { self->Pump(); });
  });
  for (std::size_t part = 0; part < work.requests.size(); ++part) {
    exchange_->handles.push_back(
        core_.backend.submit(std::move(work.requests[part]), exchange_->queue->MakeSink(part)));
  }
}

// Takes what came, unless something is still being written: then it waits in the queue, which is
// bounded.
void HttpConnection::Pump() {
  if (phase_ != Phase::kBusy || writing_ || !exchange_.has_value()) return;
  for (const EventQueue::Item& item : exchange_->queue->Take()) {
    if (exchange_->complete) break;  // Nothing follows an error.
    Take(item);
    if (!exchange_.has_value()) break;
  }
  if (exchange_.has_value() && !writing_) Flush();
}

void HttpConnection::Take(const EventQueue::Item& item) {
  OpenAiAnswer& answer = exchange_->answer;
  if (!item.end.has_value()) {
    answer.Add(item.part, item.event, &exchange_->chunks);
    if (answer.kept_bytes() <= core_.options.reply_bytes_max) return;
    return Fail({.http_status = 400,
                 .message = absl::StrCat("the answer is longer than ",
                                         core_.options.reply_bytes_max, " bytes: ask for a stream"),
                 .code = "answer_too_large"});
  }
  if (!item.end->status.ok()) return Fail(ToApiError(item.end->status, item.end->retry_after));
  if (++exchange_->ended < answer.format().parts) return;
  if (answer.format().stream) {
    answer.AppendEnd(&exchange_->chunks);
    exchange_->complete = true;
    return;
  }
  HttpReply reply{.body = answer.Body(), .request_id = answer.format().request_id};
  EndExchange();
  Send(reply);
}

// Ends the answer with an error: as a reply, or in the stream that has begun.
void HttpConnection::Fail(const ApiError& error) {
  if (!exchange_->head_written) {
    const std::string id = exchange_->answer.format().request_id;
    EndExchange();
    return Send(ErrorReply(error, id));
  }
  exchange_->chunks += ErrorChunk(error);
  exchange_->complete = true;
  if (!writing_) Flush();
}

// Of a stream: frames what there is, and begins to write it.
void HttpConnection::Flush() {
  Exchange& exchange = *exchange_;
  if (!exchange.answer.format().stream) return;
  if (!exchange.head_written) {
    if (!exchange.complete && !exchange.answer.started() &&
        exchange.chunks.size() < kHeldBytesMax) {
      return;
    }
    AppendHead(200, "text/event-stream; charset=utf-8", exchange.answer.format().request_id, &out_);
    out_ += "Cache-Control: no-cache\r\nX-Accel-Buffering: no\r\n";
    if (http10_) keep_alive_ = false;
    if (!http10_) out_ += "Transfer-Encoding: chunked\r\n";
    out_ += keep_alive_ ? "\r\n" : "Connection: close\r\n\r\n";
    exchange.head_written = true;
  }
  if (!exchange.chunks.empty() && http10_) {
    out_ += exchange.chunks;
  } else if (!exchange.chunks.empty()) {
    absl::StrAppend(&out_, absl::Hex(exchange.chunks.size()), "\r\n", exchange.chunks, "\r\n");
  }
  exchange.chunks.clear();
  if (exchange.complete) {
    if (!http10_) out_ += "0\r\n\r\n";
    EndExchange();
  }
  if (!out_.empty()) Write();
}

// Nothing of it is heard any more; what still runs is cancelled.
void HttpConnection::EndExchange() {
  if (!exchange_.has_value()) return;
  exchange_->queue->Detach();
  if (exchange_->ended < exchange_->handles.size()) {
    for (const RequestHandle handle : exchange_->handles) core_.backend.cancel(handle);
  }
  exchange_.reset();
}

void HttpConnection::Send(const HttpReply& reply) {
  phase_ = Phase::kBusy;
  if (must_linger_ || draining_) keep_alive_ = false;
  AppendHead(reply.status, "application/json", reply.request_id, &out_);
  for (const auto& [name, value] : reply.headers) absl::StrAppend(&out_, name, ": ", value, "\r\n");
  absl::StrAppend(&out_, "Content-Length: ", reply.body.size(), "\r\n");
  if (!keep_alive_) out_ += "Connection: close\r\n";
  if (keep_alive_ && http10_) out_ += "Connection: keep-alive\r\n";
  out_ += "\r\n";
  if (!head_only_) out_ += reply.body;
  Write();
}

void HttpConnection::Write() {
  writing_ = true;
  SetDeadline(core_.options.write_timeout +
              std::chrono::milliseconds(out_.size() * 1000 / core_.options.write_bytes_per_second));
  asio::async_write(
      socket_, asio::buffer(out_),
      [self = shared_from_this()](ErrorCode error, std::size_t) { self->OnWritten(error); });
}

void HttpConnection::OnWritten(ErrorCode error) {
  writing_ = false;
  if (phase_ == Phase::kClosed) return;
  if (error) return Close();
  ClearDeadline();
  constexpr std::size_t kKeptBytes = 4096;
  out_.clear();
  if (out_.capacity() > kKeptBytes) out_.shrink_to_fit();
  if (exchange_.has_value()) return Pump();
  if (must_linger_) return BeginLinger();
  if (!keep_alive_) {
    ErrorCode ignored;
    socket_.shutdown(Socket::shutdown_both, ignored);
    return Close();
  }
  BeginIdle();
}

}  // namespace penstock::gateway

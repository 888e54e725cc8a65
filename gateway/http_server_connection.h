// SPDX-License-Identifier: Apache-2.0
// One connection of a client: reads requests, one after another, and writes their answers. Inner to
// http_server*.
//
//   idle     nothing has come       -> reading with the first byte; closed after a while
//   reading  head, then body        -> busy once it is whole; a fault is answered, then lingers
//   busy     the answer is made     -> idle once it is written; closed where either side wants
//   that,
//            and written               when the client hangs up or reads too slowly
//   linger   all is said, and the client still sends: read on for a moment, or it would lose the
//            answer
//
// All on the connection's strand, but for what says otherwise. Lives until it is closed.
#pragma once

#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/optional.hpp>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "gateway/event_queue.h"
#include "gateway/http_api.h"
#include "gateway/http_server_body.h"
#include "gateway/http_server_core.h"

namespace penstock::gateway {

class HttpConnection : public std::enable_shared_from_this<HttpConnection> {
 public:
  using Strand = boost::asio::strand<boost::asio::io_context::executor_type>;
  using Socket = boost::asio::basic_stream_socket<boost::asio::ip::tcp, Strand>;

  HttpConnection(HttpCore& core, Socket socket);
  ~HttpConnection();
  HttpConnection(const HttpConnection&) = delete;
  HttpConnection& operator=(const HttpConnection&) = delete;

  // From any thread.
  void Start();
  // Ends once no request runs.
  void Drain();
  // Ends now; a stream is told why.
  void Abort();

 private:
  using ErrorCode = boost::system::error_code;
  using Parser = boost::beast::http::request_parser<HttpBody>;
  enum class Phase : std::uint8_t { kIdle, kReading, kBusy, kLinger, kClosed };
  // Of an answer that the gateway makes.
  struct Exchange {
    std::shared_ptr<EventQueue> queue = {};
    std::vector<RequestHandle> handles = {};
    OpenAiAnswer answer;
    std::size_t ended = 0;      // Parts.
    bool head_written = false;  // Of a stream.
    bool complete = false;      // All is in `out_`.
    std::string chunks = {};    // Of a stream, not yet framed.
  };

  void BeginIdle();
  void Wait();
  void OnReadable(ErrorCode error);
  void ReadHead();
  void OnHead(ErrorCode error);
  void ReadBody();
  void OnBody(ErrorCode error);
  void RefuseRead(ErrorCode error);
  void Serve();
  void OnHandled(std::variant<HttpReply, HttpWork> result);
  void Submit(HttpWork work);
  HttpRequest View() const;
  HttpContext Context(std::uint64_t draw) const;

  void Pump();
  void Take(const EventQueue::Item& item);
  void Fail(const ApiError& error);
  void Flush();
  void EndExchange();

  void Send(const HttpReply& reply);
  void Write();
  void OnWritten(ErrorCode error);
  void BeginLinger();
  void OnLinger();
  void Close();

  void SetDeadline(Duration within);
  void ClearDeadline() { deadline_ = MonoTime::max(); }
  void ArmTimer();
  void OnDeadline();

  HttpCore& core_;
  Socket socket_;
  const Strand strand_;
  boost::asio::steady_timer timer_;
  MonoTime deadline_ = MonoTime::max();
  MonoTime timer_at_ = MonoTime::max();  // The timer waits for it; max: it does not.
  boost::beast::flat_buffer buffer_;     // What came and was not parsed.
  std::optional<Parser> parser_;
  Phase phase_ = Phase::kIdle;
  std::uint64_t draw_ = 0;  // For the request at hand.
  bool waiting_ = false;    // For the socket to be readable.
  bool expired_ = false;    // A read took too long.
  bool writing_ = false;
  bool keep_alive_ = true;
  bool draining_ = false;
  bool must_linger_ = false;
  bool http10_ = false;
  bool head_only_ = false;
  std::size_t lingered_bytes_ = 0;
  std::string out_;
  std::optional<Exchange> exchange_;
};

}  // namespace penstock::gateway

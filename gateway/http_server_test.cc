// SPDX-License-Identifier: Apache-2.0
// The server over real sockets, with a gateway that is told by hand what to answer.
#include "gateway/http_server.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gateway/http_testing.h"
#include "nlohmann/json.hpp"

namespace penstock::gateway {
namespace {

using nlohmann::json;
using namespace std::chrono_literals;

constexpr char kPrompt[] = R"({"prompt":"hi"})";
constexpr char kStream[] = R"({"prompt":"hi","stream":true})";
constexpr char kCompletions[] = "/v1/completions";
constexpr char kGetHealth[] = "GET /health HTTP/1.1\r\nHost: x\r\n\r\n";

class HttpServerTest : public testing::Test {
 protected:
  void Start(HttpServer::Options options = {}) {
    auto server = HttpServer::Start(backend_.Get(), options);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }
  HttpClient Connect() { return HttpClient(server_->address()); }

  FakeBackend backend_;
  std::unique_ptr<HttpServer> server_;
};

TEST_F(HttpServerTest, AnswersOneRequestAfterAnotherOnAConnection) {
  Start();
  HttpClient client = Connect();
  for (std::size_t i = 0; i < 3; ++i) {
    client.Send(PostText(kCompletions, kPrompt));
    Answer(*backend_.Await(i).sink, "hello");
    const HttpClient::Response response = client.Read();
    EXPECT_EQ(response.status, 200) << response.body;
    EXPECT_EQ(json::parse(response.body)["choices"][0]["text"], "hello");
    EXPECT_TRUE(absl::StrContains(response.head, "X-Request-Id: req-")) << response.head;
  }
  EXPECT_EQ(backend_.cancelled(), 0u);
}

TEST_F(HttpServerTest, StreamsEachTokenWhenItComes) {
  Start();
  HttpClient client = Connect();
  client.Send(PostText(kCompletions, kStream, "X-Request-Id: mine\r\n"));
  const FakeBackend::Submitted request = backend_.Await(0);
  EXPECT_EQ(request.request.id, "mine");
  request.sink->OnEvent(Started{});
  const std::string head = client.ReadUntil("\r\n\r\n");
  EXPECT_TRUE(absl::StrContains(head, "text/event-stream")) << head;
  EXPECT_TRUE(absl::StrContains(head, "X-Request-Id: mine")) << head;
  for (const char* token : {"one", "two"}) {  // The next is told once the last was read.
    request.sink->OnEvent(Delta{.text = token});
    EXPECT_TRUE(absl::StrContains(client.ReadUntil("\n\n"), token));
  }
  request.sink->OnEvent(Finished{});
  request.sink->OnEvent(Usage{});
  request.sink->OnEnd(absl::OkStatus(), {});
  EXPECT_TRUE(absl::StrContains(client.ReadUntil("0\r\n\r\n"), "data: [DONE]"));
  client.Send(kGetHealth);  // The connection goes on.
  EXPECT_EQ(client.Read().status, 200);
}

TEST_F(HttpServerTest, ManyPromptsAreOneAnswer) {
  Start();
  HttpClient client = Connect();
  client.Send(PostText(kCompletions, R"({"prompt":["a","b"],"stream":true})"));
  const auto first = backend_.Await(0);
  const auto second = backend_.Await(1);
  Answer(*second.sink, "2");
  Answer(*first.sink, "1");
  const HttpClient::Response response = client.Read();
  EXPECT_TRUE(absl::StrContains(response.body, R"("index":0,"text":"1")")) << response.body;
  EXPECT_TRUE(absl::StrContains(response.body, R"("index":1,"text":"2")")) << response.body;
  // One that is refused takes the others with it, and has its own status.
  client.Send(PostText(kCompletions, R"({"prompt":["a","b"],"stream":true})"));
  const auto third = backend_.Await(2);
  third.sink->OnEvent(Started{});
  backend_.Await(3).sink->OnEnd(absl::ResourceExhaustedError("full"), 1500ms);
  const HttpClient::Response refused = client.Read();
  EXPECT_EQ(refused.status, 429);
  EXPECT_TRUE(absl::StrContains(refused.head, "Retry-After: 2")) << refused.head;
  EXPECT_TRUE(backend_.AwaitCancelled(third.handle));
}

TEST_F(HttpServerTest, ErrorsHaveAStatusBeforeTheStreamAndAnEventInIt) {
  Start();
  HttpClient client = Connect();
  client.Send(PostText(kCompletions, kStream));
  backend_.Await(0).sink->OnEnd(absl::UnavailableError("no worker"), 1s);
  EXPECT_EQ(client.Read().status, 503);
  client.Send(PostText(kCompletions, kStream));
  const auto request = backend_.Await(1);
  request.sink->OnEvent(Started{});
  EXPECT_TRUE(client.ReadUntil("\r\n\r\n").starts_with("HTTP/1.1 200 OK"));
  request.sink->OnEvent(Delta{.text = "x"});
  request.sink->OnEnd(absl::UnavailableError("no worker left"), {});
  const std::string rest = client.ReadUntil("0\r\n\r\n");
  EXPECT_TRUE(absl::StrContains(rest, R"(data: {"error":{"message":"no worker left")")) << rest;
  EXPECT_FALSE(absl::StrContains(rest, "[DONE]"));
}

TEST_F(HttpServerTest, AClientThatHangsUpCancels) {
  Start();
  struct Case {
    const char* name;
    const char* body;
    bool started;
    bool reset;
  };
  std::size_t next = 0;
  for (const Case& c :
       {Case{"before the first token", kStream, false, false},
        Case{"in mid-stream", kStream, true, false}, Case{"with a reset", kStream, true, true},
        Case{"while a whole answer is made", kPrompt, true, false}}) {
    SCOPED_TRACE(c.name);
    HttpClient client = Connect();
    client.Send(PostText(kCompletions, c.body));
    const auto request = backend_.Await(next++);
    if (c.started) request.sink->OnEvent(Started{});
    if (c.reset) {
      client.Reset();
    } else {
      client.Close();
    }
    EXPECT_TRUE(backend_.AwaitCancelled(request.handle));
    request.sink->OnEvent(Delta{.text = "late"});
    request.sink->OnEnd(absl::CancelledError(""), {});
  }
}

TEST_F(HttpServerTest, ASlowReaderIsBoundedThenCut) {
  HttpServer::Options options;
  options.write_timeout = 10ms;
  options.write_bytes_per_second = std::size_t{1} << 30;
  options.queue.events_max = 16;
  Start(options);
  HttpClient client(server_->address(), 4096);
  client.Send(PostText(kCompletions, kStream));
  const auto request = backend_.Await(0);
  request.sink->OnEvent(Started{});
  // Far more than sockets buffer; behind it, what comes is refused once the queue is full.
  request.sink->OnEvent(Delta{.text = std::string(std::size_t{32} << 20, 'x')});
  bool refused = false;
  for (int i = 0; i < 1000 && !refused; ++i) refused = !request.sink->OnEvent(Delta{.text = "y"});
  EXPECT_TRUE(refused);
  // As the gateway ends such a request. The client still does not read: this ends no sooner than
  // the server gives up on it.
  request.sink->OnEnd(absl::ResourceExhaustedError("the client reads its answer too slowly"), {});
  EXPECT_TRUE(backend_.AwaitCancelled(request.handle));
  server_->Shutdown(1h);
}

TEST_F(HttpServerTest, WhatIsNotHttpIsRefused) {
  HttpServer::Options options;
  options.header_bytes_max = 2048;
  options.body_bytes_max = 1000;
  Start(options);
  struct Case {
    std::string text;
    int status;
    const char* says;
  };
  const std::string chunked =
      "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
      "Transfer-Encoding: chunked\r\n\r\n";
  for (const Case& c : std::initializer_list<Case>{
           {"hello\r\n\r\n", 400, "not HTTP"},
           {"GET / HTTP/9.9\r\n\r\n", 400, "not HTTP"},
           {"GET /health HTTP/1.1\r\nX: " + std::string(5000, 'x'), 431, "2048"},
           {PostText(kCompletions, std::string(1001, ' ')), 413, "1001 bytes, at most 1000"},
           {chunked + "7d0\r\n" + std::string(2000, ' ') + "\r\n0\r\n\r\n", 413, "more than 1000"},
           {chunked + "xyz\r\n", 400, "not HTTP"},
           {PostText("/nowhere", "{}"), 404, "unknown_url"},
           {PostText(kCompletions, "{"), 400, "not valid JSON"},
           {std::string("\0\0\0\0\r\n\r\n", 8), 400, "not HTTP"},
       }) {
    SCOPED_TRACE(c.text.substr(0, 100));
    HttpClient client = Connect();
    client.Send(c.text);
    const HttpClient::Response response = client.Read();
    EXPECT_EQ(response.status, c.status) << response.head;
    EXPECT_TRUE(absl::StrContains(response.body, c.says)) << response.body;
    EXPECT_TRUE(json::accept(response.body));
  }
}

TEST_F(HttpServerTest, ReadsBodiesInAllFramings) {
  Start();
  HttpClient client = Connect();
  client.Send(
      "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
      "Transfer-Encoding: chunked\r\n\r\n5\r\n{\"pro\r\n9\r\nmpt\":\"a\"}\r\n0\r\n\r\n");
  Answer(*backend_.Await(0).sink, "x");
  EXPECT_EQ(client.Read().status, 200);
  // One long enough to be parsed aside.
  const std::string longer = absl::StrCat(R"({"prompt":")", std::string(300000, 'a'), R"("})");
  client.Send(PostText(kCompletions, longer));
  EXPECT_EQ(std::get<Request::Text>(backend_.Await(1).request.prompt).size(), 300000u);
  Answer(*backend_.Await(1).sink, "x");
  EXPECT_EQ(client.Read().status, 200);
  // A client that asks whether it may send.
  client.Send(
      absl::StrCat("POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                   "Expect: 100-continue\r\nContent-Length: ",
                   sizeof kPrompt - 1, "\r\n\r\n"));
  EXPECT_EQ(client.ReadUntil("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
  client.Send(kPrompt);
  Answer(*backend_.Await(2).sink, "x");
  EXPECT_EQ(client.Read().status, 200);
}

TEST_F(HttpServerTest, RequestsThatCameAheadAreAnsweredInOrder) {
  Start();
  HttpClient client = Connect();
  client.Send(PostText(kCompletions, kPrompt) + kGetHealth +
              "GET /version HTTP/1.1\r\nHost: x\r\n\r\n");
  Answer(*backend_.Await(0).sink, "x");
  EXPECT_TRUE(absl::StrContains(client.Read().body, "text_completion"));
  EXPECT_TRUE(absl::StrContains(client.Read().body, "ok"));
  EXPECT_TRUE(absl::StrContains(client.Read().body, "version"));
}

TEST_F(HttpServerTest, OldAndTerseClients) {
  Start();
  HttpClient old = Connect();
  old.Send(absl::StrCat("POST /v1/completions HTTP/1.0\r\nContent-Type: application/json\r\n",
                        "Content-Length: ", sizeof kStream - 1, "\r\n\r\n", kStream));
  Answer(*backend_.Await(0).sink, "x");
  const std::string all = old.ReadAll();
  EXPECT_FALSE(absl::StrContains(all, "chunked"));
  EXPECT_TRUE(absl::StrContains(all, "data: [DONE]\n\n")) << all;
  HttpClient head = Connect();
  head.Send("HEAD /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
  const std::string answer = head.ReadAll();
  EXPECT_TRUE(answer.ends_with("\r\n\r\n")) << answer;
  HttpClient half = Connect();
  half.Send(kGetHealth);
  half.HalfClose();
  EXPECT_EQ(half.Read().status, 200);
}

TEST_F(HttpServerTest, SilenceHasAnEnd) {
  HttpServer::Options options;
  options.idle_timeout = 20ms;
  options.head_timeout = 20ms;
  options.body_timeout = 20ms;
  Start(options);
  HttpClient idle = Connect();
  EXPECT_EQ(idle.ReadAll(), "");
  HttpClient head = Connect();
  head.Send("GET /hea");
  EXPECT_EQ(head.Read().status, 408);
  HttpClient body = Connect();
  body.Send(PostText(kCompletions, kPrompt).substr(0, 100));
  EXPECT_EQ(body.Read().status, 408);
}

TEST_F(HttpServerTest, TooManyConnectionsAndBodies) {
  HttpServer::Options options;
  options.connections_max = 2;
  options.bodies_bytes_max = 1000;
  Start(options);
  HttpClient first = Connect();
  first.Send(kGetHealth);
  EXPECT_EQ(first.Read().status, 200);
  HttpClient second = Connect();
  second.Send(PostText(kCompletions, std::string(1001, ' ')));
  EXPECT_EQ(second.Read().status, 503);
  first.Send(kGetHealth);
  EXPECT_EQ(first.Read().status, 200);
  HttpClient third = Connect();  // The second still lingers, or has gone.
  HttpClient fourth = Connect();
  third.Send(kGetHealth);
  fourth.Send(kGetHealth);
  EXPECT_EQ(fourth.Read().status, 503);
}

TEST_F(HttpServerTest, ReadyWhenAModelIs) {
  Start();
  HttpClient client = Connect();
  backend_.SetReady(false);
  client.Send("GET /ready HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_EQ(client.Read().status, 503);
  backend_.SetReady(true);
  client.Send("GET /ready HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_EQ(client.Read().status, 200);
}

TEST_F(HttpServerTest, AnAnswerTooLongToKeepIsRefused) {
  HttpServer::Options options;
  options.reply_bytes_max = 100;
  Start(options);
  HttpClient client = Connect();
  client.Send(PostText(kCompletions, kPrompt));
  const auto request = backend_.Await(0);
  request.sink->OnEvent(Started{});
  request.sink->OnEvent(Delta{.text = std::string(101, 'x')});
  const HttpClient::Response response = client.Read();
  EXPECT_EQ(response.status, 400);
  EXPECT_TRUE(absl::StrContains(response.body, "longer than 100 bytes: ask for a stream"));
  EXPECT_TRUE(backend_.AwaitCancelled(request.handle));
}

TEST_F(HttpServerTest, ShutdownLetsStreamsFinishThenCutsThem) {
  Start();
  HttpClient idle = Connect();
  idle.Send(kGetHealth);
  EXPECT_EQ(idle.Read().status, 200);
  HttpClient finishes = Connect();
  finishes.Send(PostText(kCompletions, kStream));
  const auto request = backend_.Await(0);
  request.sink->OnEvent(Started{});
  finishes.ReadUntil("\r\n\r\n");
  std::jthread shutdown([&] { server_->Shutdown(60s); });
  EXPECT_EQ(idle.ReadAll(), "");  // It has begun.
  Answer(*request.sink, "whole");
  EXPECT_TRUE(absl::StrContains(finishes.ReadAll(), "[DONE]"));
  shutdown.join();
  EXPECT_EQ(server_->connections(), 0u);

  Start();
  HttpClient cut = Connect();
  cut.Send(PostText(kCompletions, kStream));
  const auto other = backend_.Await(1);
  other.sink->OnEvent(Started{});
  cut.ReadUntil("\r\n\r\n");
  HttpClient waits = Connect();
  waits.Send(PostText(kCompletions, kPrompt));
  const auto third = backend_.Await(2);
  server_->Shutdown(0s);
  EXPECT_TRUE(backend_.AwaitCancelled(other.handle));
  EXPECT_TRUE(backend_.AwaitCancelled(third.handle));
  EXPECT_TRUE(absl::StrContains(cut.ReadAll(), "the server ends"));
  EXPECT_EQ(waits.Read().status, 503);
  other.sink->OnEvent(Delta{.text = "late"});  // Nobody listens; nothing breaks.
  other.sink->OnEnd(absl::CancelledError(""), {});
}

TEST_F(HttpServerTest, StartSaysWhatIsWrong) {
  Start();
  const std::size_t colon = server_->address().rfind(':');
  const int taken = std::stoi(server_->address().substr(colon + 1));
  for (const auto& [options, code] :
       std::initializer_list<std::pair<HttpServer::Options, absl::StatusCode>>{
           {{.port = taken}, absl::StatusCode::kUnavailable},
           {{.port = 65536}, absl::StatusCode::kInvalidArgument},
           {{.threads = 5}, absl::StatusCode::kInvalidArgument},
           {{.host = "no such host"}, absl::StatusCode::kUnavailable}}) {
    EXPECT_EQ(HttpServer::Start(backend_.Get(), options).status().code(), code);
  }
}

}  // namespace
}  // namespace penstock::gateway

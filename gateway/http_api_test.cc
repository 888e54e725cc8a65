// SPDX-License-Identifier: Apache-2.0
#include "gateway/http_api.h"

#include <gtest/gtest.h>

#include <string>

#include "nlohmann/json.hpp"

namespace penstock::gateway {
namespace {

using nlohmann::json;

constexpr char kTrace[] = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
constexpr char kBody[] = R"({"prompt":"hi","max_tokens":3})";

HttpContext Context() {
  HttpContext context{.unix_now = 7, .draw = 0xabc, .version = "1.2.3", .body_bytes_max = 1000};
  Gateway::Model model;
  model.name = "org/m";
  model.context_tokens = 64;
  model.ready = true;
  context.models = {model};
  return context;
}

HttpRequest Post(std::string_view target, std::string_view body) {
  return {.method = "POST",
          .target = target,
          .headers = {{"content-type", "application/json"}},
          .body = body};
}

HttpReply Reply(const HttpRequest& request, const HttpContext& context = Context()) {
  auto result = HandleHttp(request, context);
  EXPECT_TRUE(std::holds_alternative<HttpReply>(result));
  return std::holds_alternative<HttpReply>(result) ? std::get<HttpReply>(result) : HttpReply{};
}

HttpWork Work(const HttpRequest& request, const HttpContext& context = Context()) {
  auto result = HandleHttp(request, context);
  EXPECT_TRUE(std::holds_alternative<HttpWork>(result)) << std::get<HttpReply>(result).body;
  return std::holds_alternative<HttpWork>(result) ? std::get<HttpWork>(result) : HttpWork{};
}

TEST(HttpApiTest, Routes) {
  struct Case {
    const char* method;
    const char* target;
    int status;
    const char* says;
  };
  for (const Case& c : std::initializer_list<Case>{
           {"GET", "/health", 200, "ok"},
           {"HEAD", "/health", 200, "ok"},
           {"GET", "/ready?x=1", 200, "ready"},
           {"GET", "/version", 200, "1.2.3"},
           {"GET", "/v1/models", 200, "org/m"},
           {"GET", "/v1/models/org/m", 200, "org/m"},
           {"GET", "/v1/models/org%2Fm", 200, "org/m"},
           {"GET", "/v1/models/other", 404, "model_not_found"},
           {"GET", "/v1/models/%zz%", 404, "model_not_found"},
           {"GET", "/v1/chat/completions", 405, "takes POST, got GET"},
           {"POST", "/health", 405, "takes GET"},
           {"GET", "/nowhere", 404, "unknown_url"},
           {"GET", "", 404, "unknown_url"},
           {"G\xff", "/\xff", 404, "unknown_url"},
       }) {
    SCOPED_TRACE(c.target);
    const HttpReply reply = Reply({.method = c.method, .target = c.target});
    EXPECT_EQ(reply.status, c.status);
    EXPECT_NE(reply.body.find(c.says), std::string::npos) << reply.body;
    EXPECT_TRUE(json::accept(reply.body)) << reply.body;
    EXPECT_EQ(reply.request_id, "req-0000000000000abc");
  }
}

TEST(HttpApiTest, NotReadyIsUnavailable) {
  HttpContext context = Context();
  context.models[0].ready = false;
  const HttpReply reply = Reply({.method = "GET", .target = "/ready"}, context);
  EXPECT_EQ(reply.status, 503);
  EXPECT_EQ(reply.headers[0], (std::pair<std::string, std::string>("Retry-After", "1")));
  EXPECT_EQ(Reply({.method = "GET", .target = "/health"}, context).status, 200);
}

TEST(HttpApiTest, OnlyJsonIsTaken) {
  for (const char* type : {"", "text/plain", "application/jsonp", "application/json2"}) {
    SCOPED_TRACE(type);
    HttpRequest request = Post("/v1/completions", kBody);
    request.headers = {{"Content-Type", type}};
    EXPECT_EQ(Reply(request).status, 415);
  }
  HttpRequest request = Post("/v1/completions", kBody);
  request.headers = {{"CONTENT-TYPE", "Application/JSON ; charset=utf-8"}};
  Work(request);
  request.headers.clear();
  EXPECT_EQ(Reply(request).status, 415);
}

TEST(HttpApiTest, ALongBodyIsRefusedWithBothNumbers) {
  const auto refused = CheckHead(Post("/v1/completions", ""), Context(), 1001);
  ASSERT_TRUE(refused.has_value());
  EXPECT_EQ(refused->status, 413);
  EXPECT_NE(refused->body.find("1001 bytes, at most 1000"), std::string::npos) << refused->body;
  EXPECT_FALSE(CheckHead(Post("/v1/completions", ""), Context(), 1000).has_value());
}

TEST(HttpApiTest, WorkHasIdModelAndFormat) {
  const HttpWork work = Work(Post("/v1/completions", R"({"prompt":["a","b"],"n":2})"));
  ASSERT_EQ(work.requests.size(), 2u);
  EXPECT_EQ(work.requests[0].id, "req-0000000000000abc-0");
  EXPECT_EQ(work.requests[1].id, "req-0000000000000abc-1");
  EXPECT_EQ(work.requests[1].model, "org/m");
  EXPECT_EQ(work.format.parts, 2u);
  EXPECT_EQ(work.format.n, 2);
  EXPECT_EQ(work.format.created, 7);
  EXPECT_EQ(work.format.model, "org/m");
  EXPECT_EQ(Work(Post("/v1/completions", kBody)).requests[0].id, "req-0000000000000abc");
}

TEST(HttpApiTest, ModelsAreKnownByName) {
  const HttpReply reply = Reply(
      Post("/v1/chat/completions", R"({"model":"x","messages":[{"role":"user","content":"a"}]})"));
  EXPECT_EQ(reply.status, 404);
  EXPECT_EQ(json::parse(reply.body)["error"]["code"], "model_not_found");
  HttpContext two = Context();
  two.models.push_back(two.models[0]);
  two.models[1].name = "n";
  EXPECT_EQ(Reply(Post("/v1/completions", kBody), two).status, 400);  // Which one?
  EXPECT_EQ(Work(Post("/v1/completions", R"({"prompt":"a","model":"n"})"), two).format.model, "n");
}

TEST(HttpApiTest, HeadersSayWhatBodiesDoNot) {
  HttpRequest request = Post("/v1/completions", R"({"prompt":"a","timeout":9,"priority":1})");
  EXPECT_EQ(Work(request).requests[0].end_within, std::chrono::seconds(9));
  request.headers.emplace_back("X-Request-Timeout-Ms", "250");
  request.headers.emplace_back("x-request-priority", "-7");
  request.headers.emplace_back("x-request-id", "mine");
  const HttpWork work = Work(request);
  EXPECT_EQ(work.requests[0].end_within, std::chrono::milliseconds(250));
  EXPECT_EQ(work.requests[0].priority, -7);
  EXPECT_EQ(work.requests[0].id, "mine");
  EXPECT_EQ(work.format.request_id, "mine");
  for (const auto& [name, value] : std::initializer_list<std::pair<const char*, std::string>>{
           {"x-request-timeout-ms", "0"},
           {"x-request-timeout-ms", "1.5"},
           {"x-request-timeout-ms", "99999999999999999999"},
           {"x-request-priority", "high"},
           {"x-request-id", "with space"},
           {"x-request-id", std::string(65, 'x')},
           {"x-request-id", ""},
       }) {
    SCOPED_TRACE(value);
    HttpRequest wrong = Post("/v1/completions", kBody);
    wrong.headers.emplace_back(name, value);
    const HttpReply reply = Reply(wrong);
    EXPECT_EQ(reply.status, 400);
    EXPECT_EQ(json::parse(reply.body)["error"]["param"], name);
  }
}

TEST(HttpApiTest, TraceParents) {
  EXPECT_EQ(TraceIdOf(kTrace), "4bf92f3577b34da6a3ce929d0e0e4736");
  const std::string later = std::string("01") + (kTrace + 2);
  EXPECT_TRUE(TraceIdOf(later).has_value());
  EXPECT_TRUE(TraceIdOf(later + "-more").has_value());
  std::string zero_trace = kTrace;
  std::fill(zero_trace.begin() + 3, zero_trace.begin() + 35, '0');
  std::string upper = kTrace;
  upper[3] = 'A';
  for (const std::string& wrong :
       {std::string(), std::string("ff") + (kTrace + 2), std::string(kTrace) + "-x",
        std::string(kTrace).substr(1), later + "more", zero_trace, upper}) {
    EXPECT_FALSE(TraceIdOf(wrong).has_value()) << wrong;
  }
  HttpRequest request = Post("/v1/completions", kBody);
  request.headers.emplace_back("traceparent", kTrace);
  EXPECT_EQ(Work(request).requests[0].id, "4bf92f3577b34da6a3ce929d0e0e4736-0000000000000abc");
  request.headers.back().second = "nonsense";
  EXPECT_EQ(Work(request).requests[0].id, "req-0000000000000abc");
}

TEST(HttpApiTest, RetryAfterIsRoundedUp) {
  const HttpReply reply =
      ErrorReply({.http_status = 429, .retry_after = std::chrono::milliseconds(1001)}, "r");
  ASSERT_EQ(reply.headers.size(), 2u);
  EXPECT_EQ(reply.headers[0].second, "2");
  EXPECT_EQ(reply.headers[1].second, "1001");
}

}  // namespace
}  // namespace penstock::gateway

// SPDX-License-Identifier: Apache-2.0
// What each HTTP request asks for, without sockets: a parsed request in, a reply or work for the
// gateway out.
//
//   POST /v1/chat/completions, /v1/completions   (openai_request.h)
//   GET  /v1/models, /v1/models/{id}
//   GET  /health    200 while the process lives
//   GET  /ready     200 when some model can take a request, else 503
//   GET  /version
//
// Headers that are read: Content-Type (application/json alone, so that no web page of another
// origin can post), X-Request-Id (1 to 64 printable bytes without spaces; made here where there is
// none), X-Request-Timeout-Ms and X-Request-Priority (they win over the body's timeout and
// priority), traceparent (one that is not valid is ignored, as W3C asks). Every reply carries
// X-Request-Id; the gateway, its logs and `penstock explain` know the request by it.
//
// Pure functions; any thread. Nothing throws.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "gateway/gateway.h"
#include "gateway/openai_error.h"
#include "gateway/openai_request.h"
#include "gateway/openai_response.h"

namespace penstock::gateway {

struct HttpRequest {
  std::string_view method = {};
  std::string_view target = {};  // With the query, which is ignored.
  std::vector<std::pair<std::string_view, std::string_view>> headers = {};
  std::string_view body = {};

  // The first of that name, in whatever case; nothing where there is none.
  std::optional<std::string_view> Header(std::string_view name) const;
};

struct HttpReply {
  int status = 200;
  std::string body = {};  // JSON.
  std::string request_id = {};
  std::vector<std::pair<std::string, std::string>> headers = {};
};

// What an API process knows when a request comes.
struct HttpContext {
  std::vector<Gateway::Model> models = {};
  std::int64_t unix_now = 0;
  std::uint64_t draw = 0;  // Random: makes the id of a request that has none.
  std::string version = {};
  std::size_t body_bytes_max = std::size_t{16} << 20;
};

// Requests for the gateway, one for each part of the answer. With ids, and the model's name.
struct HttpWork {
  std::vector<Request> requests = {};
  AnswerFormat format = {};
};

// All that can be refused before the body is read: the route, the method, the content's type and
// length.
std::optional<HttpReply> CheckHead(const HttpRequest& request, const HttpContext& context,
                                   std::optional<std::uint64_t> body_bytes);

std::variant<HttpReply, HttpWork> HandleHttp(const HttpRequest& request,
                                             const HttpContext& context);

// With Retry-After (and retry-after-ms) where there is something to say.
HttpReply ErrorReply(const ApiError& error, std::string request_id);

// The trace id of a valid W3C traceparent header: 32 hexadecimal digits.
std::optional<std::string> TraceIdOf(std::string_view traceparent);

// The request's own id; otherwise one that begins with the trace id, if there is one, and ends with
// `draw`. INVALID_ARGUMENT for an X-Request-Id that is not one.
absl::StatusOr<std::string> RequestIdOf(const HttpRequest& request, std::uint64_t draw);

// "Not Found" of 404.
std::string_view ReasonPhrase(int status);

}  // namespace penstock::gateway

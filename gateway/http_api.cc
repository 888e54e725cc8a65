// SPDX-License-Identifier: Apache-2.0
#include "gateway/http_api.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status.h"
#include "gateway/json_text.h"

namespace penstock::gateway {
namespace {

enum class Route : std::uint8_t {
  kNone,
  kChat,
  kCompletion,
  kModels,
  kModel,
  kHealth,
  kReady,
  kVersion
};

constexpr std::string_view kModelPrefix = "/v1/models/";
constexpr std::size_t kEchoedBytesMax = 200;
constexpr Duration kRetryWhenReady = std::chrono::seconds(1);

std::string_view PathOf(std::string_view target) { return target.substr(0, target.find('?')); }

Route RouteOf(std::string_view path) {
  constexpr std::array<std::pair<std::string_view, Route>, 6> kRoutes = {{
      {"/v1/chat/completions", Route::kChat},
      {"/v1/completions", Route::kCompletion},
      {"/v1/models", Route::kModels},
      {"/health", Route::kHealth},
      {"/ready", Route::kReady},
      {"/version", Route::kVersion},
  }};
  for (const auto& [known, route] : kRoutes) {
    if (path == known) return route;
  }
  return path.starts_with(kModelPrefix) ? Route::kModel : Route::kNone;
}

bool IsPost(Route route) { return route == Route::kChat || route == Route::kCompletion; }

std::optional<int> HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return std::nullopt;
}

// "%2F" as "/"; what is not such an escape stays.
std::string PercentDecoded(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '%' && i + 2 < text.size()) {
      const std::optional<int> high = HexDigit(text[i + 1]);
      const std::optional<int> low = HexDigit(text[i + 2]);
      if (high.has_value() && low.has_value()) {
        out.push_back(static_cast<char>(*high * 16 + *low));
        i += 2;
        continue;
      }
    }
    out.push_back(text[i]);
  }
  return out;
}

bool IsJson(const HttpRequest& request) {
  const std::string_view type = request.Header("content-type").value_or("");
  std::string_view media = type.substr(0, type.find(';'));
  while (media.ends_with(' ') || media.ends_with('\t')) media.remove_suffix(1);
  return absl::EqualsIgnoreCase(ToAbsl(media), "application/json");
}

ApiError NotFound(std::string message, std::string param, std::string code) {
  return {.http_status = 404,
          .message = std::move(message),
          .param = std::move(param),
          .code = std::move(code)};
}

ApiError NoModel(std::string_view name, const std::vector<Gateway::Model>& models) {
  std::string there;
  for (const Gateway::Model& model : models) {
    absl::StrAppend(&there, there.empty() ? "" : ", ", model.name);
  }
  return NotFound(absl::StrCat("The model '", ToAbsl(name.substr(0, kEchoedBytesMax)),
                               "' does not exist; there is: ", there),
                  "model", "model_not_found");
}

void AppendModel(const Gateway::Model& model, std::int64_t created, std::string* out) {
  out->append(R"({"id":)");
  AppendJsonString(model.name, out);
  absl::StrAppend(out, R"(,"object":"model","created":)", created,
                  R"(,"owned_by":"penstock","max_model_len":)", model.context_tokens,
                  R"(,"ready":)", model.ready ? "true" : "false", R"(,"chat":)",
                  model.chat ? "true" : "false", "}");
}

HttpReply Json(std::string body, std::string request_id) {
  return {.body = std::move(body), .request_id = std::move(request_id)};
}

HttpReply ListModels(const HttpContext& context, std::string request_id) {
  std::string body = R"({"object":"list","data":[)";
  for (std::size_t i = 0; i < context.models.size(); ++i) {
    if (i > 0) body += ",";
    AppendModel(context.models[i], context.unix_now, &body);
  }
  body += "]}";
  return Json(std::move(body), std::move(request_id));
}

HttpReply OneModel(std::string_view path, const HttpContext& context, std::string request_id) {
  const std::string name = PercentDecoded(path.substr(kModelPrefix.size()));
  for (const Gateway::Model& model : context.models) {
    if (model.name != name) continue;
    std::string body;
    AppendModel(model, context.unix_now, &body);
    return Json(std::move(body), std::move(request_id));
  }
  return ErrorReply(NoModel(name, context.models), std::move(request_id));
}

HttpReply Readiness(const HttpContext& context, std::string request_id) {
  const bool ready = std::ranges::any_of(context.models, [](const auto& m) { return m.ready; });
  if (ready) return Json(R"({"status":"ready"})", std::move(request_id));
  return ErrorReply({.http_status = 503,
                     .message = "no model can take a request yet",
                     .type = "server_error",
                     .code = "not_ready",
                     .retry_after = kRetryWhenReady},
                    std::move(request_id));
}

// Nothing: the header is not there. Otherwise a number in the range, or the fault.
template <typename T>
std::optional<ApiError> ReadHeader(const HttpRequest& request, std::string_view name, T least,
                                   T most, std::optional<T>* value) {
  const std::optional<std::string_view> text = request.Header(name);
  if (!text.has_value()) return std::nullopt;
  T number{};
  const auto [end, error] = std::from_chars(text->data(), text->data() + text->size(), number);
  if (error != std::errc() || end != text->data() + text->size() || number < least ||
      number > most) {
    return WrongParam(name,
                      absl::StrCat(ToAbsl(name), " must be an integer from ", least, " to ", most,
                                   ", got '", ToAbsl(text->substr(0, kEchoedBytesMax)), "'"));
  }
  *value = number;
  return std::nullopt;
}

// What headers say of every part. The id of a part is that of the request, but for a number where
// there are several.
std::optional<ApiError> ApplyHeaders(const HttpRequest& request, const std::string& id,
                                     std::vector<Request>* parts) {
  std::optional<std::int64_t> timeout;
  const std::int64_t timeout_max = kEndWithinMax / std::chrono::milliseconds(1);
  if (auto error =
          ReadHeader<std::int64_t>(request, "x-request-timeout-ms", 1, timeout_max, &timeout)) {
    return error;
  }
  std::optional<std::int32_t> priority;
  if (auto error =
          ReadHeader(request, "x-request-priority", -kPriorityMax, kPriorityMax, &priority)) {
    return error;
  }
  for (std::size_t i = 0; i < parts->size(); ++i) {
    Request& part = (*parts)[i];
    part.id = parts->size() == 1 ? id : absl::StrCat(id, "-", i);
    if (timeout.has_value()) part.end_within = std::chrono::milliseconds(*timeout);
    if (priority.has_value()) part.priority = *priority;
    // Now that it has an id.
    if (const absl::Status status = CheckRequest(part); !status.ok()) return ToApiError(status);
  }
  return std::nullopt;
}

// Names the model in every part, if it exists.
std::optional<ApiError> FindModel(const HttpContext& context, std::vector<Request>* parts) {
  std::string name = parts->front().model;
  if (name.empty()) {
    if (context.models.size() != 1) return WrongParam("model", "model is missing");
    name = context.models[0].name;
  }
  const bool known =
      std::ranges::any_of(context.models, [&](const auto& model) { return model.name == name; });
  if (!known) return NoModel(name, context.models);
  for (Request& part : *parts) part.model = name;
  return std::nullopt;
}

std::variant<HttpReply, HttpWork> Complete(OpenAiKind kind, const HttpRequest& request,
                                           const HttpContext& context, const std::string& id) {
  OpenAiRequest parsed;
  std::optional<ApiError> error =
      ParseOpenAiRequest(kind, request.body, context.body_bytes_max, &parsed);
  if (!error.has_value()) error = FindModel(context, &parsed.requests);
  if (!error.has_value()) error = ApplyHeaders(request, id, &parsed.requests);
  if (error.has_value()) return ErrorReply(*error, id);
  HttpWork work;
  const Request& first = parsed.requests.front();
  work.format = {.kind = kind,
                 .request_id = id,
                 .model = first.model,
                 .created = context.unix_now,
                 .parts = parsed.requests.size(),
                 .n = first.n,
                 .stream = parsed.stream,
                 .include_usage = parsed.include_usage,
                 .logprobs = first.sampling.logprobs >= 0};
  work.requests = std::move(parsed.requests);
  return work;
}

}  // namespace

std::optional<std::string_view> HttpRequest::Header(std::string_view name) const {
  for (const auto& [key, value] : headers) {
    if (absl::EqualsIgnoreCase(ToAbsl(key), ToAbsl(name))) return value;
  }
  return std::nullopt;
}

std::string_view ReasonPhrase(int status) {
  constexpr std::array<std::pair<int, std::string_view>, 16> kPhrases = {{
      {200, "OK"},
      {400, "Bad Request"},
      {404, "Not Found"},
      {405, "Method Not Allowed"},
      {408, "Request Timeout"},
      {409, "Conflict"},
      {413, "Content Too Large"},
      {415, "Unsupported Media Type"},
      {429, "Too Many Requests"},
      {431, "Request Header Fields Too Large"},
      {499, "Client Closed Request"},
      {500, "Internal Server Error"},
      {501, "Not Implemented"},
      {503, "Service Unavailable"},
      {504, "Gateway Timeout"},
      {505, "HTTP Version Not Supported"},
  }};
  for (const auto& [known, phrase] : kPhrases) {
    if (known == status) return phrase;
  }
  return "Unknown";
}

HttpReply ErrorReply(const ApiError& error, std::string request_id) {
  HttpReply reply{
      .status = error.http_status, .body = ErrorJson(error), .request_id = std::move(request_id)};
  if (error.retry_after > Duration()) {
    const auto millis = std::chrono::ceil<std::chrono::milliseconds>(error.retry_after).count();
    reply.headers.emplace_back("Retry-After", absl::StrCat((millis + 999) / 1000));
    // Read by OpenAI's clients, which wait no longer than asked.
    reply.headers.emplace_back("retry-after-ms", absl::StrCat(millis));
  }
  return reply;
}

std::optional<std::string> TraceIdOf(std::string_view traceparent) {
  // 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01
  constexpr std::size_t kLength = 55;
  if (traceparent.size() < kLength) return std::nullopt;
  const std::string_view version = traceparent.substr(0, 2);
  const bool later = version != "00";
  if (version == "ff" || (!later && traceparent.size() != kLength)) return std::nullopt;
  if (later && traceparent.size() > kLength && traceparent[kLength] != '-') return std::nullopt;
  for (std::size_t i = 0; i < kLength; ++i) {
    const char c = traceparent[i];
    const bool dash = i == 2 || i == 35 || i == 52;
    const bool hex = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
    if (dash ? c != '-' : !hex) return std::nullopt;
  }
  const std::string_view trace = traceparent.substr(3, 32);
  const std::string_view parent = traceparent.substr(36, 16);
  const auto zero = [](std::string_view id) {
    return id.find_first_not_of('0') == std::string_view::npos;
  };
  if (zero(trace) || zero(parent)) return std::nullopt;
  return std::string(trace);
}

absl::StatusOr<std::string> RequestIdOf(const HttpRequest& request, std::uint64_t draw) {
  if (const auto given = request.Header("x-request-id"); given.has_value()) {
    RETURN_IF_ERROR(CheckRequestId("x-request-id", *given));
    return std::string(*given);
  }
  const std::string own = absl::StrFormat("%016x", draw);
  const std::optional<std::string> trace = TraceIdOf(request.Header("traceparent").value_or(""));
  return trace.has_value() ? absl::StrCat(*trace, "-", own) : absl::StrCat("req-", own);
}

std::optional<HttpReply> CheckHead(const HttpRequest& request, const HttpContext& context,
                                   std::optional<std::uint64_t> body_bytes) {
  const absl::StatusOr<std::string> given = RequestIdOf(request, context.draw);
  if (!given.ok()) {
    ApiError error = ToApiError(given.status());
    error.param = "x-request-id";
    return ErrorReply(error, *RequestIdOf({}, context.draw));
  }
  const std::string& id = *given;
  const std::string_view path = PathOf(request.target);
  const Route route = RouteOf(path);
  if (route == Route::kNone) {
    return ErrorReply(NotFound(absl::StrCat("there is nothing at ", ToAbsl(request.method), " ",
                                            ToAbsl(path.substr(0, kEchoedBytesMax))),
                               "", "unknown_url"),
                      id);
  }
  const bool allowed = IsPost(route) ? request.method == "POST"
                                     : request.method == "GET" || request.method == "HEAD";
  if (!allowed) {
    const std::string allow = IsPost(route) ? "POST" : "GET, HEAD";
    HttpReply reply = ErrorReply(
        {.http_status = 405,
         .message = absl::StrCat(ToAbsl(path.substr(0, kEchoedBytesMax)), " takes ", allow,
                                 ", got ", ToAbsl(request.method.substr(0, kEchoedBytesMax))),
         .code = "method_not_allowed"},
        id);
    reply.headers.emplace_back("Allow", allow);
    return reply;
  }
  if (IsPost(route) && !IsJson(request)) {
    return ErrorReply({.http_status = 415,
                       .message = "the Content-Type must be application/json",
                       .code = "unsupported_media_type"},
                      id);
  }
  if (body_bytes.value_or(0) > context.body_bytes_max) {
    return ErrorReply({.http_status = 413,
                       .message = absl::StrCat("the body has ", *body_bytes, " bytes, at most ",
                                               context.body_bytes_max, " are allowed"),
                       .code = "body_too_large"},
                      id);
  }
  return std::nullopt;
}

std::variant<HttpReply, HttpWork> HandleHttp(const HttpRequest& request,
                                             const HttpContext& context) {
  if (auto refused = CheckHead(request, context, request.body.size())) return *std::move(refused);
  std::string id = *RequestIdOf(request, context.draw);  // CheckHead saw that it is good.
  const std::string_view path = PathOf(request.target);
  switch (RouteOf(path)) {
    case Route::kChat:
      return Complete(OpenAiKind::kChat, request, context, id);
    case Route::kCompletion:
      return Complete(OpenAiKind::kCompletion, request, context, id);
    case Route::kModels:
      return ListModels(context, std::move(id));
    case Route::kModel:
      return OneModel(path, context, std::move(id));
    case Route::kReady:
      return Readiness(context, std::move(id));
    case Route::kVersion: {
      std::string body = R"({"version":)";
      AppendJsonString(context.version, &body);
      body += "}";
      return Json(std::move(body), std::move(id));
    }
    case Route::kHealth:
    case Route::kNone:
      break;
  }
  return Json(R"({"status":"ok"})", std::move(id));
}

}  // namespace penstock::gateway

// SPDX-License-Identifier: Apache-2.0
#include "gateway/openai_error.h"

#include <array>
#include <optional>
#include <utility>

#include "absl/strings/cord.h"
#include "base/status.h"
#include "gateway/json_text.h"
#include "gateway/request.h"

namespace penstock::gateway {
namespace {

struct Row {
  absl::StatusCode status;
  int http_status;
  std::string_view type;
  std::string_view code;
};

constexpr std::array<Row, 9> kRows = {{
    {absl::StatusCode::kInvalidArgument, 400, "invalid_request_error", ""},
    {absl::StatusCode::kOutOfRange, 400, "invalid_request_error", ""},
    {absl::StatusCode::kNotFound, 404, "invalid_request_error", "model_not_found"},
    {absl::StatusCode::kAlreadyExists, 409, "invalid_request_error", "request_id_in_use"},
    {absl::StatusCode::kResourceExhausted, 429, "rate_limit_error", "rate_limit_exceeded"},
    {absl::StatusCode::kUnavailable, 503, "server_error", "service_unavailable"},
    {absl::StatusCode::kFailedPrecondition, 503, "server_error", "service_unavailable"},
    {absl::StatusCode::kDeadlineExceeded, 504, "server_error", "deadline_exceeded"},
    {absl::StatusCode::kCancelled, 499, "server_error", "request_cancelled"},
}};

// What the gateway calls a field, and what OpenAI's clients call it.
constexpr std::array<std::pair<std::string_view, std::string_view>, 20> kParams = {{
    {"request_id", "x-request-id"},
    {"model", "model"},
    {"n", "n"},
    {"max_tokens", "max_tokens"},
    {"temperature", "temperature"},
    {"top_k", "top_k"},
    {"top_p", "top_p"},
    {"min_p", "min_p"},
    {"typical_p", "typical_p"},
    {"repetition_penalty", "repetition_penalty"},
    {"presence_penalty", "presence_penalty"},
    {"frequency_penalty", "frequency_penalty"},
    {"logit_bias", "logit_bias"},
    {"logprobs", "logprobs"},
    {"stop", "stop"},
    {"stop_tokens", "stop_token_ids"},
    {"priority", "priority"},
    {"tenant", "cache_salt"},
    {"prompt", "prompt"},
    {"messages", "messages"},
}};

// "length of stop[0] must be ...": stop[0]. Empty where the message starts with no field.
std::string ParamOf(std::string_view message) {
  for (const std::string_view prefix :
       {"length of ", "bytes in ", "number of entries in ", "number of "}) {
    if (!message.starts_with(prefix)) continue;
    message.remove_prefix(prefix.size());
    break;
  }
  const std::string_view word = message.substr(0, message.find_first_of(" ,;:"));
  const std::string_view name = word.substr(0, word.find_first_of("[."));
  for (const auto& [ours, theirs] : kParams) {
    if (name != ours) continue;
    return absl::StrCat(ToAbsl(theirs), ToAbsl(word.substr(name.size())));
  }
  return {};
}

void AppendField(std::string_view name, const std::string& value, std::string* out) {
  absl::StrAppend(out, ",\"", ToAbsl(name), "\":");
  if (value.empty()) {
    out->append("null");
  } else {
    AppendJsonString(value, out);
  }
}

}  // namespace

ApiError WrongParam(std::string_view param, std::string message) {
  return {.message = std::move(message), .param = std::string(param)};
}

ApiError ToApiError(const absl::Status& status, Duration retry_after) {
  ApiError error{.http_status = 500,
                 .message = std::string(ToStd(status.message())),
                 .type = "server_error",
                 .retry_after = retry_after};
  for (const Row& row : kRows) {
    if (row.status != status.code()) continue;
    error.http_status = row.http_status;
    error.type = row.type;
    error.code = row.code;
  }
  if (error.http_status == 404) error.param = "model";
  if (error.http_status != 400) return error;
  if (status.GetPayload(kContextOverflow).has_value()) {
    error.code = "context_length_exceeded";
  } else {
    error.param = ParamOf(error.message);
  }
  return error;
}

std::string ErrorJson(const ApiError& error) {
  std::string json = R"({"error":{"message":)";
  AppendJsonString(error.message, &json);
  AppendField("type", error.type, &json);
  AppendField("param", error.param, &json);
  AppendField("code", error.code, &json);
  json += "}}";
  return json;
}

}  // namespace penstock::gateway

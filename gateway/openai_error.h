// SPDX-License-Identifier: Apache-2.0
// Errors as OpenAI's clients understand them:
//   {"error": {"message": "...", "type": "...", "param": "...", "code": "..."}}
//
//   status                  HTTP  type                   code
//   INVALID_ARGUMENT,       400   invalid_request_error  context_length_exceeded, or null
//   OUT_OF_RANGE
//   NOT_FOUND               404   invalid_request_error  model_not_found
//   ALREADY_EXISTS          409   invalid_request_error  request_id_in_use
//   RESOURCE_EXHAUSTED      429   rate_limit_error       rate_limit_exceeded
//   UNAVAILABLE,            503   server_error           service_unavailable
//   FAILED_PRECONDITION
//   DEADLINE_EXCEEDED       504   server_error           deadline_exceeded
//   CANCELLED               499   server_error           request_cancelled
//   all others              500   server_error           null
//
// Pure functions; any thread.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "base/time.h"

namespace penstock::gateway {

struct ApiError {
  int http_status = 400;
  std::string message = {};
  std::string type = "invalid_request_error";
  std::string param = {};     // The field that is wrong; empty: null.
  std::string code = {};      // Empty: null.
  Duration retry_after = {};  // 0: nothing is said.
};

// A field of a request that is wrong.
ApiError WrongParam(std::string_view param, std::string message);

// What a gateway ended a request with. A message about a field names it as `param`.
ApiError ToApiError(const absl::Status& status, Duration retry_after = {});

// {"error": ...}, valid UTF-8 on one line.
std::string ErrorJson(const ApiError& error);

}  // namespace penstock::gateway

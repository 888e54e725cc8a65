// SPDX-License-Identifier: Apache-2.0
// A body of a request: it becomes requests that the gateway takes, or an error that is JSON; the
// same one twice. The first byte chooses the kind.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "gateway/openai_request.h"
#include "nlohmann/json.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace penstock::gateway;
  if (size == 0) return 0;
  const std::string_view body(reinterpret_cast<const char*>(data) + 1, size - 1);
  const OpenAiKind kind = (data[0] & 1) != 0 ? OpenAiKind::kChat : OpenAiKind::kCompletion;
  constexpr std::size_t kBytesMax = 1 << 20;
  OpenAiRequest request;
  const auto error = ParseOpenAiRequest(kind, body, kBytesMax, &request);
  OpenAiRequest again;
  const auto same = ParseOpenAiRequest(kind, body, kBytesMax, &again);
  CHECK_EQ(error.has_value(), same.has_value());
  if (error.has_value()) {
    CHECK_EQ(error->message, same->message);
    CHECK(error->http_status >= 400 && error->http_status < 500);
    CHECK(nlohmann::json::accept(ErrorJson(*error)));
    return 0;
  }
  CHECK(!request.requests.empty() && request.requests.size() <= kPromptsMax);
  for (const Request& one : request.requests) CHECK(CheckRequest(one).ok());
  return 0;
}

// SPDX-License-Identifier: Apache-2.0
// A request as it comes over HTTP, past the framing: a line "METHOD TARGET", lines "name: value", an
// empty line, the body. It becomes work that the gateway takes, or a reply of valid JSON whose
// headers hold no line break; and whatever the gateway then tells, the answer is valid JSON.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/check.h"
#include "gateway/http_api.h"
#include "nlohmann/json.hpp"

namespace penstock::gateway {
namespace {

std::string_view TakeLine(std::string_view* text) {
  const std::size_t end = std::min(text->find('\n'), text->size());
  const std::string_view line = text->substr(0, end);
  text->remove_prefix(std::min(end + 1, text->size()));
  return line;
}

HttpRequest Parse(std::string_view input) {
  HttpRequest request;
  const std::string_view first = TakeLine(&input);
  const std::size_t space = std::min(first.find(' '), first.size());
  request.method = first.substr(0, space);
  request.target = first.substr(std::min(space + 1, first.size()));
  while (!input.empty() && request.headers.size() < 100) {
    const std::string_view line = TakeLine(&input);
    if (line.empty()) break;
    const std::size_t colon = std::min(line.find(": "), line.size());
    request.headers.emplace_back(line.substr(0, colon),
                                 line.substr(std::min(colon + 2, line.size())));
  }
  request.body = input;
  return request;
}

void CheckReply(const HttpReply& reply) {
  CHECK(reply.status >= 200 && reply.status < 600);
  CHECK(nlohmann::json::accept(reply.body));
  CHECK(CheckRequestId("id", reply.request_id).ok());
  for (const auto& [name, value] : reply.headers) {
    CHECK(value.find_first_of("\r\n") == std::string::npos);
  }
}

// Tells the body's bytes back, as text and as pieces of tokens.
void CheckAnswer(const HttpWork& work, const std::string& bytes) {
  OpenAiAnswer answer(work.format);
  std::string chunks;
  for (std::size_t part = 0; part < work.format.parts; ++part) {
    answer.Add(part, Started{}, &chunks);
    const SampledToken token{.token = 1, .logprob = -1, .top = {{2, -2, bytes}}, .piece = bytes};
    answer.Add(part, Delta{.text = bytes, .tokens = {token}}, &chunks);
    for (std::int32_t c = 0; c < work.format.n; ++c) {
      answer.Add(part, Finished{.choice = c}, &chunks);
    }
    answer.Add(part, Usage{}, &chunks);
  }
  CHECK(answer.started());
  if (!work.format.stream) {
    CHECK(chunks.empty());
    CHECK(nlohmann::json::accept(answer.Body()));
    return;
  }
  answer.AppendEnd(&chunks);
  std::string_view rest = chunks;
  while (rest != "data: [DONE]\n\n") {
    const std::size_t end = rest.find("\n\n");
    CHECK(end != std::string_view::npos && rest.starts_with("data: "));
    CHECK(nlohmann::json::accept(rest.substr(6, end - 6)));
    rest.remove_prefix(end + 2);
  }
}

}  // namespace
}  // namespace penstock::gateway

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace penstock::gateway;
  const HttpRequest request = Parse({reinterpret_cast<const char*>(data), size});
  HttpContext context{.unix_now = 7, .draw = size, .version = "1", .body_bytes_max = 1 << 16};
  Gateway::Model model;
  model.name = "org/m";
  context.models = {model};
  const auto result = HandleHttp(request, context);
  if (const auto* const reply = std::get_if<HttpReply>(&result)) {
    CheckReply(*reply);
    return 0;
  }
  const HttpWork& work = std::get<HttpWork>(result);
  for (const Request& one : work.requests) {
    CHECK(CheckRequest(one).ok() && !one.id.empty() && one.model == "org/m");
  }
  // Enough to hold any mistake in the escapes.
  CheckAnswer(work, std::string(request.body.substr(0, 256)));
  return 0;
}

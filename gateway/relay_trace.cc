// SPDX-License-Identifier: Apache-2.0
// What a relay records of its request.
#include <utility>

#include "gateway/relay_state.h"

namespace penstock::gateway {

Span RelayState::SpanOf(SpanName name, const Leg& leg, MonoTime begin, MonoTime end) const {
  return {.name = name,
          .request_id = leg.id,
          .attempt = leg.plan.attempt.number,
          .begin = begin,
          .end = end,
          .peer = leg.plan.decode_name};
}

void RelayState::TracePlanned(Leg& leg, const Plan& plan) {
  leg.planned = loop_.Now();
  leg.first_token = {};
  leg.tokens = 0;
  Span span = SpanOf(SpanName::kRoute, leg, leg.asked, leg.planned);
  span.tokens = plan.prompt_tokens;
  Trace(options_.spans, span);
}

void RelayState::TraceToken(Leg& leg) {
  leg.last_token = loop_.Now();
  if (leg.tokens++ > 0) return;
  leg.first_token = leg.last_token;
  options_.spans->Record(SpanOf(SpanName::kFirstToken, leg, leg.planned, leg.first_token));
}

void RelayState::TraceStream(Leg& leg) {
  if (leg.tokens == 0) return;
  Span span = SpanOf(SpanName::kStream, leg, leg.first_token, leg.last_token);
  span.tokens = std::exchange(leg.tokens, 0);
  Trace(options_.spans, span);
}

void RelayState::TraceRequest() const {
  if (options_.spans == nullptr) return;
  const auto record = [this](SpanName name, MonoTime begin, MonoTime end, std::size_t tokens,
                             std::size_t blocks, std::string_view text) {
    options_.spans->Record({.name = name,
                            .request_id = request_.id,
                            .begin = begin,
                            .end = end,
                            .tokens = static_cast<std::uint32_t>(tokens),
                            .blocks = static_cast<std::uint32_t>(blocks),
                            .text = text});
  };
  const std::size_t tokens = request_.prompt.size();
  record(SpanName::kTokenize, request_.prepare_begin, request_.tokenized, tokens, 0, {});
  record(SpanName::kHash, request_.tokenized, request_.hashed, tokens, request_.chains.size(), {});
  record(SpanName::kRequest, request_.arrived, loop_.Now(), tokens, 0, request_.traceparent);
}

}  // namespace penstock::gateway

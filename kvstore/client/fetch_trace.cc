// SPDX-License-Identifier: Apache-2.0
// What a fetch leaves in a request's trace.
#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "kvstore/client/fetcher.h"

namespace penstock::kvstore {

void TraceFetch(SpanRing& spans, const Attempt& attempt, const Fetcher::Outcome& outcome) {
  for (const Fetcher::Span& part : outcome.spans) {
    const std::string what =
        absl::StrCat(ToAbsl(ToString(part.tier)), " ", ToAbsl(ToString(part.codec)),
                     part.blocks_mapped > 0 ? " mapped" : "");
    Span span = {.name = SpanName::kStoreWait,
                 .request_id = attempt.request_id,
                 .attempt = attempt.number,
                 .begin = part.asked,
                 .end = part.first_found,
                 .blocks = static_cast<std::uint32_t>(part.blocks),
                 .group = static_cast<std::int16_t>(part.group),
                 .peer = part.store,
                 .transport = transfer::ToString(part.kind),
                 .text = what};
    spans.Record(span);
    span.name = SpanName::kFetch;
    span.begin = part.first_found;
    span.end = part.verified;
    span.bytes = part.bytes;
    spans.Record(span);
    if (part.turn_wait > Duration()) {
      Span turn = span;
      turn.name = SpanName::kTurn;
      turn.end = part.first_found + part.turn_wait;
      turn.text = transfer::ToString(transfer::MoveClass::kFetch);
      spans.Record(turn);
    }
    if (part.decode == Duration()) continue;
    span.name = SpanName::kUnpack;
    span.end = part.first_found + part.decode;
    span.bytes = part.block_bytes;
    spans.Record(span);
  }
}

}  // namespace penstock::kvstore

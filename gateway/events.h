// SPDX-License-Identifier: Apache-2.0
// What a client hears of its request, whatever it speaks.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "base/key.h"
#include "base/time.h"

namespace penstock::gateway {

struct TokenLogprob {
  TokenId token = 0;
  double logprob = 0;      // Natural log.
  std::string piece = {};  // The bytes it stands for; may be part of a character.

  bool operator==(const TokenLogprob&) const = default;
};

struct SampledToken {
  TokenId token = 0;
  std::optional<double> logprob = {};  // When asked for.
  std::vector<TokenLogprob> top = {};  // Likewise; most likely first.
  std::string piece = {};              // Likewise.

  bool operator==(const SampledToken&) const = default;
};

enum class FinishReason : std::uint8_t { kStop, kLength };

// Where the time of a handoff went, as the decode worker saw it.
struct Handoff {
  std::string peer = {};
  std::string transport = {};
  std::uint64_t bytes = 0;
  std::uint32_t repeated_reads = 0;
  Duration first_told_to_verified = {};
  Duration last_told_to_verified = {};
};

// First, once: the cluster has taken the request.
struct Started {
  std::string request_id = {};
  std::int32_t prompt_tokens = 0;
  std::uint64_t seed = 0;
  std::vector<TokenId> prompt = {};  // When asked for.
};
struct Delta {
  std::int32_t choice = 0;
  std::string text = {};  // Valid UTF-8; may lag behind the tokens by part of a stop string.
  std::vector<SampledToken> tokens = {};
  std::int64_t sampled_unix_ns = 0;  // When the decode worker had them, by its clock; 0: no tokens.
};
// Once for each choice, after its last delta.
struct Finished {
  std::int32_t choice = 0;
  FinishReason reason = FinishReason::kStop;
  std::string stopped_by = {};  // The stop string that was met.
};
// Last, once.
struct Usage {
  std::int32_t prompt_tokens = 0;
  std::int32_t cached_tokens = 0;      // Of the prompt, whose KV was reused.
  std::int32_t completion_tokens = 0;  // Of all choices.
  std::uint32_t attempts = 1;          // Above 1 where workers were lost.
  Duration ttft = {};                  // From submission to the first token.
  std::optional<Handoff> handoff =
      {};  // Of the last attempt; none where its worker prefilled itself.
};
using Event = std::variant<Started, Delta, Finished, Usage>;

// A client's end of a request. Called on the gateway's loop: neither call may block.
class Sink {
 public:
  virtual ~Sink() = default;
  // False: too much waits to be read by the client. The request then ends with RESOURCE_EXHAUSTED.
  virtual bool OnEvent(Event event) = 0;
  // Once, last. OK: all choices are finished and Usage was told. `retry_after` is of
  // RESOURCE_EXHAUSTED and UNAVAILABLE; 0 where there is nothing to say.
  virtual void OnEnd(const absl::Status& status, Duration retry_after) = 0;
};

}  // namespace penstock::gateway

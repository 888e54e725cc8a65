// SPDX-License-Identifier: Apache-2.0
// What a client asks, as plain structs, and the one place that checks it: whatever gets past here
// is in range. INVALID_ARGUMENT names the field, its value and the limits.
//
// Pure functions; any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/key.h"
#include "base/loss_class.h"
#include "base/time.h"
#include "gateway/model_front.h"
#include "model/chat_prompt.h"

namespace penstock::gateway {

inline constexpr std::size_t kRequestIdBytesMax = 64;
inline constexpr std::size_t kModelNameBytesMax = 256;
inline constexpr std::size_t kMessagesMax = 4096;
inline constexpr std::size_t kTextBytesMax = std::size_t{16} << 20;  // All messages together.
inline constexpr std::int32_t kAnswersMax = 64;
inline constexpr std::size_t kStopsMax = 16;
inline constexpr std::size_t kStopBytesMax = 256;
inline constexpr std::size_t kStopTokensMax = 64;
inline constexpr std::size_t kLogitBiasMax = 300;
inline constexpr std::int32_t kLogprobsMax = 20;
inline constexpr std::size_t kTenantBytesMax = 64;
inline constexpr std::int32_t kPriorityMax = 1000000;  // And as much below 0.
inline constexpr Duration kEndWithinMax = std::chrono::hours(24);

// As in penstock.v1.SamplingParams; the decode worker's sampler defines what each does.
struct SamplingParams {
  double temperature = 1;
  std::int32_t top_k = 0;
  double top_p = 1;
  double min_p = 0;
  double typical_p = 1;
  double repetition_penalty = 1;
  double presence_penalty = 0;
  double frequency_penalty = 0;
  std::map<TokenId, double> logit_bias = {};
  std::optional<std::uint64_t> seed = {};
  std::int32_t logprobs = -1;  // -1: none; else the chosen token's, and the n most likely ones'.
};

struct Request {
  using Text = std::string;                      // Control tokens in it are tokens.
  using Tokens = std::vector<TokenId>;           // As they are.
  using Chat = std::vector<model::ChatMessage>;  // Through the model's chat template.

  std::string id = {};     // Empty: the gateway makes one.
  std::string model = {};  // Empty where the gateway serves one model.
  std::variant<Text, Tokens, Chat> prompt = {};
  SamplingParams sampling = {};
  std::int32_t n = 1;
  std::int32_t max_tokens = 0;  // Of each answer; 0: what the context leaves.
  std::vector<std::string> stops = {};
  std::vector<TokenId> stop_tokens = {};
  bool ignore_eos = false;
  std::int32_t priority = 0;  // Higher first.
  // Blocks of the prompt may be reused up to this loss.
  LossClass reuse = LossClass::kExact;
  std::string tenant = {};   // Prefixes are shared only under the same name.
  bool tokens_only = false;  // No text: deltas carry token ids alone.
  bool prompt_ids = false;   // Started carries the prompt's token ids.
  // The client's deadline, from when the request is submitted; without, the gateway's own.
  std::optional<Duration> end_within = {};
  std::string traceparent = {};  // W3C's, as the client sent it; for traces.
};

// A request that is good, in tokens.
struct Prepared {
  std::string id = {};
  std::shared_ptr<const ModelFront> model =
      {};  // Shared with the gateway, which may drop it first.
  std::vector<TokenId> prompt = {};
  std::vector<Chain> chains = {};  // Of the prompt's full blocks.
  std::int32_t block_tokens = 0;
  SamplingParams sampling = {};  // With a seed.
  std::int32_t n = 1;
  std::int32_t max_tokens = 0;  // At least 1; fits the context behind the prompt.
  std::vector<std::string> stops = {};
  std::vector<TokenId> stop_tokens = {};
  bool ignore_eos = false;
  std::int32_t priority = 0;
  LossClass reuse = LossClass::kExact;
  Chain root = {};           // Of all its chains. The salt goes no further than here.
  std::uint32_t tenant = 0;  // See TenantOf.
  bool tokens_only = false;
  bool prompt_ids = false;
  MonoTime arrived = {};
  MonoTime deadline = {};
  // For traces.
  std::string traceparent = {};
  MonoTime prepare_begin = {};
  MonoTime tokenized = {};
  MonoTime hashed = {};
};

// The payload type of Prepare's error when the prompt is longer than the context: the one that
// clients mend in a way of their own.
inline constexpr char kContextOverflow[] = "penstock.context_overflow";

// All that can be said without the model. Quick, but for reading texts once.
absl::Status CheckRequest(const Request& request);

// What the cluster says of the model now.
struct ModelLimits {
  std::int32_t block_tokens = 0;
  std::int32_t context_tokens = 0;  // Prompt and answer together.
};

// Tokenizes and hashes a request that CheckRequest passed; takes the time that takes. `seed` serves
// where the request has none, `today` is what chat templates are told. id, arrived and deadline are
// left to the caller. INVALID_ARGUMENT: the context is too short (both numbers), ids outside of the
// vocabulary, no chat template, or what the template says.
absl::StatusOr<Prepared> Prepare(Request request, std::shared_ptr<const ModelFront> model,
                                 const ModelLimits& limits, std::uint64_t seed, CivilTime today,
                                 const Clock& clock = SteadyClock());

// 1 to 64 bytes of printable ASCII without spaces.
absl::Status CheckRequestId(std::string_view field, std::string_view id);
// Roles and sizes; at least one message.
absl::Status CheckMessages(const std::vector<model::ChatMessage>& messages);
// Valid UTF-8 of a bounded size.
absl::Status CheckText(std::string_view field, std::string_view text);

}  // namespace penstock::gateway

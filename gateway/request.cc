// SPDX-License-Identifier: Apache-2.0
#include "gateway/request.h"

#include <algorithm>
#include <array>
#include <limits>
#include <utility>

#include "absl/strings/cord.h"
#include "base/status.h"
#include "model/utf8.h"

namespace penstock::gateway {
namespace {

// Whatever else a template knows could be the way to a control token.
constexpr std::array<std::string_view, 4> kRoles = {"system", "user", "assistant", "tool"};

std::int64_t Size(const auto& x) { return static_cast<std::int64_t>(x.size()); }

absl::Status CheckUtf8(std::string_view field, std::string_view text) {
  const std::size_t valid = model::ValidUtf8Prefix(text);
  if (valid == text.size()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(ToAbsl(field), " must be valid UTF-8; byte ",
                                                 valid, " of ", text.size(), " is not"));
}

// Within [least, most], or (least, most] with `above`; NaN is not.
absl::Status CheckReal(std::string_view field, double value, double least, double most,
                       bool above = false) {
  if ((above ? value > least : value >= least) && value <= most) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(ToAbsl(field), " must be ", above ? "above " : "from ", least,
                   above ? " and at most " : " to ", most, ", got ", value));
}

absl::Status CheckSampling(const SamplingParams& params) {
  RETURN_IF_ERROR(CheckReal("temperature", params.temperature, 0, 100));
  RETURN_IF_ERROR(CheckRange("top_k", params.top_k, 0, std::numeric_limits<std::int32_t>::max()));
  RETURN_IF_ERROR(CheckReal("top_p", params.top_p, 0, 1, /*above=*/true));
  RETURN_IF_ERROR(CheckReal("min_p", params.min_p, 0, 1));
  RETURN_IF_ERROR(CheckReal("typical_p", params.typical_p, 0, 1, /*above=*/true));
  RETURN_IF_ERROR(
      CheckReal("repetition_penalty", params.repetition_penalty, 0, 10, /*above=*/true));
  RETURN_IF_ERROR(CheckReal("presence_penalty", params.presence_penalty, -2, 2));
  RETURN_IF_ERROR(CheckReal("frequency_penalty", params.frequency_penalty, -2, 2));
  RETURN_IF_ERROR(
      CheckRange("number of entries in logit_bias", Size(params.logit_bias), 0, kLogitBiasMax));
  for (const auto& [token, bias] : params.logit_bias) {
    RETURN_IF_ERROR(CheckReal(absl::StrCat("logit_bias of token ", token), bias, -100, 100));
  }
  return CheckRange("logprobs", params.logprobs, -1, kLogprobsMax);
}

absl::Status CheckStops(const Request& request) {
  RETURN_IF_ERROR(CheckRange("number of stop strings", Size(request.stops), 0, kStopsMax));
  for (std::size_t i = 0; i < request.stops.size(); ++i) {
    const std::string field = absl::StrCat("stop[", i, "]");
    RETURN_IF_ERROR(
        CheckRange(absl::StrCat("length of ", field), Size(request.stops[i]), 1, kStopBytesMax));
    RETURN_IF_ERROR(CheckUtf8(field, request.stops[i]));
  }
  return CheckRange("number of stop tokens", Size(request.stop_tokens), 0, kStopTokensMax);
}

absl::Status CheckToken(std::string_view field, TokenId token, std::int32_t vocab) {
  if (token >= 0 && token < vocab) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(ToAbsl(field), " must be token ids from 0 to ", vocab - 1, ", got ", token));
}

absl::Status CheckTokens(const Request& request, std::int32_t vocab) {
  if (const auto* const tokens = std::get_if<Request::Tokens>(&request.prompt)) {
    for (const TokenId token : *tokens) RETURN_IF_ERROR(CheckToken("prompt", token, vocab));
  }
  for (const TokenId token : request.stop_tokens) {
    RETURN_IF_ERROR(CheckToken("stop_tokens", token, vocab));
  }
  for (const auto& [token, bias] : request.sampling.logit_bias) {
    RETURN_IF_ERROR(CheckToken("logit_bias", token, vocab));
  }
  return absl::OkStatus();
}

absl::Status Overflow(std::string_view what, const ModelFront& model, std::int64_t context) {
  absl::Status overflow = absl::InvalidArgumentError(absl::StrCat(
      "the prompt has ", ToAbsl(what), ", the context of model '", model.name(), "' is ", context));
  overflow.SetPayload(kContextOverflow, absl::Cord());
  return overflow;
}

// A text that cannot fit is not worth the seconds that it would take to see by how much.
absl::Status CheckBytes(const Request& request, const ModelFront& model, std::int64_t context) {
  std::size_t bytes = 0;
  if (const auto* const text = std::get_if<Request::Text>(&request.prompt)) bytes = text->size();
  if (const auto* const chat = std::get_if<Request::Chat>(&request.prompt)) {
    for (const model::ChatMessage& message : *chat) bytes += message.content.size();
  }
  const std::size_t least = bytes / model.token_bytes_max();
  if (least <= static_cast<std::size_t>(context)) return absl::OkStatus();
  return Overflow(absl::StrCat(bytes, " bytes, that is at least ", least, " tokens"), model,
                  context);
}

absl::StatusOr<std::vector<TokenId>> Encode(Request& request, const ModelFront& model,
                                            CivilTime today) {
  if (auto* const tokens = std::get_if<Request::Tokens>(&request.prompt)) {
    return std::move(*tokens);
  }
  if (const auto* const chat = std::get_if<Request::Chat>(&request.prompt)) {
    return model.EncodeChat(*chat, today);
  }
  return model.tokenizer().Encode(std::get<Request::Text>(request.prompt), {});
}

}  // namespace

absl::Status CheckRequestId(std::string_view field, std::string_view id) {
  RETURN_IF_ERROR(
      CheckRange(absl::StrCat("length of ", ToAbsl(field)), Size(id), 1, kRequestIdBytesMax));
  const auto bad = std::ranges::find_if(id, [](char c) { return c <= ' ' || c > '~'; });
  if (bad == id.end()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(ToAbsl(field), " must be printable ASCII without spaces; byte ",
                   bad - id.begin(), " is ", static_cast<unsigned char>(*bad)));
}

absl::Status CheckText(std::string_view field, std::string_view text) {
  RETURN_IF_ERROR(
      CheckRange(absl::StrCat("length of ", ToAbsl(field)), Size(text), 0, kTextBytesMax));
  return CheckUtf8(field, text);
}

absl::Status CheckMessages(const std::vector<model::ChatMessage>& messages) {
  RETURN_IF_ERROR(CheckRange("number of messages", Size(messages), 1, kMessagesMax));
  std::size_t bytes = 0;
  for (std::size_t i = 0; i < messages.size(); ++i) {
    const model::ChatMessage& message = messages[i];
    if (std::ranges::find(kRoles, message.role) == kRoles.end()) {
      // Not more of it than one can look at; and the status itself must be UTF-8.
      const std::string shown = model::ReplaceInvalidUtf8(message.role.substr(0, 64));
      return absl::InvalidArgumentError(absl::StrCat(
          "messages[", i, "].role must be system, user, assistant or tool, got '", shown, "'"));
    }
    RETURN_IF_ERROR(CheckUtf8(absl::StrCat("messages[", i, "].content"), message.content));
    bytes += message.content.size();
  }
  return CheckRange("bytes in messages", static_cast<std::int64_t>(bytes), 0, kTextBytesMax);
}

absl::Status CheckRequest(const Request& request) {
  if (!request.id.empty()) RETURN_IF_ERROR(CheckRequestId("request_id", request.id));
  RETURN_IF_ERROR(CheckRange("length of model", Size(request.model), 0, kModelNameBytesMax));
  RETURN_IF_ERROR(CheckUtf8("model", request.model));
  RETURN_IF_ERROR(CheckRange("n", request.n, 1, kAnswersMax));
  if (request.n > 1) {
    // Answers that lose their worker go on by names of their own: the request's and ".63".
    RETURN_IF_ERROR(CheckRange("length of request_id (with n above 1)", Size(request.id), 0,
                               kRequestIdBytesMax - 3));
  }
  RETURN_IF_ERROR(
      CheckRange("max_tokens", request.max_tokens, 0, std::numeric_limits<std::int32_t>::max()));
  RETURN_IF_ERROR(CheckSampling(request.sampling));
  RETURN_IF_ERROR(CheckStops(request));
  RETURN_IF_ERROR(CheckRange("priority", request.priority, -kPriorityMax, kPriorityMax));
  RETURN_IF_ERROR(CheckRange("length of tenant", Size(request.tenant), 0, kTenantBytesMax));
  RETURN_IF_ERROR(CheckUtf8("tenant", request.tenant));
  if (const auto* const text = std::get_if<Request::Text>(&request.prompt)) {
    return CheckText("prompt", *text);
  }
  if (const auto* const chat = std::get_if<Request::Chat>(&request.prompt)) {
    return CheckMessages(*chat);
  }
  return CheckRange("number of prompt tokens", Size(std::get<Request::Tokens>(request.prompt)), 1,
                    kTextBytesMax);
}

absl::StatusOr<Prepared> Prepare(Request request, std::shared_ptr<const ModelFront> model,
                                 const ModelLimits& limits, std::uint64_t seed, CivilTime today,
                                 const Clock& clock) {
  RETURN_IF_ERROR(CheckTokens(request, model->vocab()));
  RETURN_IF_ERROR(CheckBytes(request, *model, limits.context_tokens));
  Prepared prepared;
  prepared.prepare_begin = clock.Now();
  ASSIGN_OR_RETURN(prepared.prompt, Encode(request, *model, today));
  prepared.tokenized = clock.Now();
  const std::int64_t prompt_tokens = Size(prepared.prompt);
  if (prompt_tokens == 0) {
    return absl::InvalidArgumentError("the prompt must have at least 1 token, got 0");
  }
  if (prompt_tokens > limits.context_tokens) {
    return Overflow(absl::StrCat(prompt_tokens, " tokens"), *model, limits.context_tokens);
  }
  // The last token needs no place in the context: nothing comes after it.
  const auto room = static_cast<std::int32_t>(limits.context_tokens - prompt_tokens + 1);
  prepared.max_tokens = request.max_tokens == 0 ? room : std::min(request.max_tokens, room);
  const auto block_tokens = static_cast<std::uint32_t>(limits.block_tokens);
  prepared.root = RootChain(request.tenant, block_tokens);
  prepared.chains = ChainsFrom(prepared.root, prepared.prompt, block_tokens);
  prepared.hashed = clock.Now();
  prepared.block_tokens = limits.block_tokens;
  prepared.model = std::move(model);
  prepared.sampling = std::move(request.sampling);
  if (!prepared.sampling.seed.has_value()) prepared.sampling.seed = seed;
  prepared.n = request.n;
  prepared.stops = std::move(request.stops);
  prepared.stop_tokens = std::move(request.stop_tokens);
  prepared.ignore_eos = request.ignore_eos;
  prepared.priority = request.priority;
  prepared.reuse = request.reuse;
  prepared.tenant = TenantOf(request.tenant);
  prepared.traceparent = std::move(request.traceparent);
  prepared.tokens_only = request.tokens_only;
  prepared.prompt_ids = request.prompt_ids;
  return prepared;
}

}  // namespace penstock::gateway

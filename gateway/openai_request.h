// SPDX-License-Identifier: Apache-2.0
// Bodies of /v1/chat/completions and /v1/completions as requests of the gateway.
//
// Understood: model, messages (content: a string, or an array of {"type": "text"} parts, which are
// joined by line breaks; role "developer" is "system"), prompt (a string, an array of token ids, or
// an array of either: each is answered), max_tokens, max_completion_tokens, temperature, top_p, n,
// stop, seed, presence_penalty, frequency_penalty, logit_bias, logprobs, top_logprobs, stream,
// stream_options.include_usage; and, as vLLM has them, top_k, min_p, repetition_penalty,
// ignore_eos, stop_token_ids, cache_salt (prefixes are shared only under the same), and typical_p.
// Ours: priority (higher first; vLLM has it the other way round), timeout (seconds), reuse ("exact",
// "kl3", "kl2": the loss up to which KV may be reused).
//
// Refused, unless its value changes nothing: what would give another answer than was asked for
// (tools, images, response_format, echo, ...). All else is ignored, as OpenAI's servers do.
//
// Pure functions; any thread. Nothing throws.
#pragma once

#include <cstddef>
#include <optional>
#include <string_view>
#include <vector>

#include "gateway/openai_error.h"
#include "gateway/request.h"

namespace penstock::gateway {

enum class OpenAiKind : std::uint8_t { kChat, kCompletion };

// Of a JSON body, whatever its size: about 200 bytes of memory each while it is parsed.
inline constexpr std::size_t kJsonValuesMax = std::size_t{1} << 20;
// Answers of one body, all prompts together.
inline constexpr std::size_t kPromptsMax = 64;
// Of a completion that does not say, as OpenAI has it; a chat may fill the context.
inline constexpr std::int32_t kCompletionTokensDefault = 16;

struct OpenAiRequest {
  OpenAiKind kind = OpenAiKind::kChat;
  std::vector<Request> requests = {};  // One for each prompt; alike otherwise. Without ids.
  bool stream = false;
  bool include_usage = false;  // A last chunk with it.
};

// Fills `out` (which is to be as constructed), or says what the first fault is. What is said passes
// CheckRequest.
std::optional<ApiError> ParseOpenAiRequest(OpenAiKind kind, std::string_view body,
                                           std::size_t bytes_max, OpenAiRequest* out);

}  // namespace penstock::gateway

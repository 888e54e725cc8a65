// SPDX-License-Identifier: Apache-2.0
// One request, run to its end in this process: tokens out of the engine become text as they come.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "cli/terminal.h"
#include "engine/engine.h"
#include "model/tokenizer.h"
#include "nlohmann/json.hpp"

namespace penstock::cli {

struct Answer {
  std::vector<TokenId> tokens;                // All that were drawn, a final stop token too.
  std::vector<engine::SampledToken> sampled;  // As `tokens`, with logprobs; empty unless asked for.
  std::string text;
  std::string finish_reason;  // "stop", "length", "cancelled"
};

struct Answers {
  std::vector<Answer> choices;
  std::int32_t prompt_tokens = 0;
  std::int32_t reused_tokens = 0;
  double ttft_ms = 0;
  // Tokens after the first per second, over all choices; with one token alone, 1 / TTFT.
  double tokens_per_s = 0;
  std::int64_t tokens = 0;
};

// Submits `request` and steps until it is done. `emit` gets text of a choice as soon as that is
// certain; when it returns false, or Ctrl-C is pressed, the request is cancelled and what there is
// comes back. Errors as Engine::Submit; INTERNAL when the model gave no usable logits.
absl::StatusOr<Answers> RunRequest(engine::Engine& engine, const model::Tokenizer& tokenizer,
                                   const engine::Request& request,
                                   const std::vector<std::string>& stops,
                                   InterruptWatch& interrupts,
                                   absl::FunctionRef<bool(std::int32_t, std::string_view)> emit);

// The object that `penstock generate --json` prints. `piece` is what a token with a log-probability
// stands for, control tokens by name.
nlohmann::ordered_json ToJson(const Answers& answers, const std::vector<TokenId>& prompt,
                              absl::FunctionRef<std::string(TokenId)> piece);

// "36 prompt tokens, first after 12 ms; 120 tokens, 205.3 tokens/s"
std::string Summary(const Answers& answers);

}  // namespace penstock::cli

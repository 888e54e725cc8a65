// SPDX-License-Identifier: Apache-2.0
// Who answers a conversation: an engine in this process, or a running cluster.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "base/time.h"
#include "cli/answer.h"
#include "cli/flags.h"
#include "cli/terminal.h"
#include "engine/sampler.h"
#include "model/chat_prompt.h"

namespace penstock::cli {

class Responder {
 public:
  using Emit = absl::FunctionRef<bool(std::int32_t, std::string_view)>;

  virtual ~Responder() = default;
  // Prompt and answer together.
  virtual std::int32_t context_tokens() const = 0;
  // How long a prompt these messages make. `began` is when the conversation did, for its template.
  virtual absl::StatusOr<std::size_t> Measure(const std::vector<model::ChatMessage>& messages,
                                              CivilTime began) = 0;
  // Answers what was measured last. As RunRequest.
  virtual absl::StatusOr<Answers> Respond(const engine::SamplingParams& sampling,
                                          InterruptWatch& interrupts, Emit emit) = 0;
};

// Loads the model. INVALID_ARGUMENT where it was not made for conversations.
absl::StatusOr<std::unique_ptr<Responder>> MakeLocalResponder(const ModelFlags& model,
                                                              const SamplingFlags& sampling);
// Over model.server.
absl::StatusOr<std::unique_ptr<Responder>> MakeRemoteResponder(const ModelFlags& model,
                                                               const SamplingFlags& sampling);

}  // namespace penstock::cli

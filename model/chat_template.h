// SPDX-License-Identifier: Apache-2.0
// Chat templates: the Jinja subset that models ship in tokenizer.chat_template, compiled once,
// rendered per request. Templates come from model files and are hostile: rendering is bounded in
// steps and output, and touches nothing but the values it is given. An unsupported construct is an
// INVALID_ARGUMENT that names it and its line when the template is compiled, as far as that can be
// seen then.
//
// Immutable once made; any thread.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace penstock::model {

class ChatTemplate {
 public:
  virtual ~ChatTemplate() = default;

  static absl::StatusOr<std::unique_ptr<ChatTemplate>> Compile(std::string_view source);

  // `variables`: an object with at least "messages" ([{"role": ..., "content": ...}, ...]) and
  // "add_generation_prompt"; usually "bos_token", "eos_token", "tools", "date_string" too. No clock
  // is read: strftime_now exists for the template only if "now_unix_seconds" is there, and shows it
  // without a time zone: give it UTC for UTC, civil time for that. What the
  // template raises (raise_exception) is an INVALID_ARGUMENT with its words; so is any failure
  // while rendering, with the line. RESOURCE_EXHAUSTED past the limits (10 million steps, 16 MiB of
  // text).
  virtual absl::StatusOr<std::string> Render(const nlohmann::ordered_json& variables) const = 0;
};

}  // namespace penstock::model

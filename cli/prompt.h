// SPDX-License-Identifier: Apache-2.0
// Where a prompt comes from.
#pragma once

#include <optional>
#include <string>

#include "absl/status/statusor.h"

namespace penstock::cli {

// The argument, else the file ("-": standard input), else standard input where that is no terminal.
// Bytes are taken as they are. INVALID_ARGUMENT: both given, none given, or more than 64 MiB.
// `what` is the argument's name in messages, such as "the prompt".
absl::StatusOr<std::string> ReadText(const std::optional<std::string>& argument,
                                     const std::optional<std::string>& file,
                                     const std::string& what);

// INVALID_ARGUMENT for an empty text, or one that is not UTF-8 (names the first wrong byte).
absl::Status CheckPrompt(const std::string& text, const std::string& what);

}  // namespace penstock::cli

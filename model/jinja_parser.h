// SPDX-License-Identifier: Apache-2.0
// Tokens to a tree, by Jinja's grammar and precedences. Pure function; any thread.
#pragma once

#include <string_view>

#include "absl/status/statusor.h"
#include "model/jinja_ast.h"

namespace penstock::model {

inline constexpr int kJinjaDepthMax = 200;  // Of nested blocks, and of nested expressions.

// INVALID_ARGUMENT with the line: bad syntax, unknown tags, filters or tests, nesting too deep.
absl::StatusOr<JinjaBody> ParseJinja(std::string_view source);

}  // namespace penstock::model

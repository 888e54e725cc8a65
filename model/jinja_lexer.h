// SPDX-License-Identifier: Apache-2.0
// Chat template source to tokens, with Jinja's white space control as transformers sets it:
// trim_blocks (a newline after a block goes) and lstrip_blocks (so does the indentation before
// one). Pure function; any thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace penstock::model {

struct JinjaToken {
  enum class Kind : std::uint8_t {
    kData,        // Text to print.
    kPrintBegin,  // {{
    kPrintEnd,
    kBlockBegin,  // {%
    kBlockEnd,
    kName,
    kString,  // `text` without quotes, escapes resolved.
    kInteger,
    kFloat,
    kOperator,
    kEnd,
  };
  Kind kind = Kind::kEnd;
  std::string text;
  int line = 0;
};

inline constexpr std::size_t kTemplateBytesMax = std::size_t{1} << 20;

// The last token is kEnd. INVALID_ARGUMENT with the line.
absl::StatusOr<std::vector<JinjaToken>> LexJinja(std::string_view source);

}  // namespace penstock::model

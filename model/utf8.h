// SPDX-License-Identifier: Apache-2.0
// Walks UTF-8 that may be broken, by the rule Unicode recommends (and Python's errors="replace"
// follows): one replacement character for every maximal subpart of an ill-formed sequence.
//
// Pure functions; any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace penstock::model {

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD

struct Utf8Step {
  std::int32_t bytes = 1;        // Of the character, or of the maximal ill-formed subpart: 1 to 4.
  std::uint32_t code_point = 0;  // 0 unless valid.
  bool valid = false;
  bool unfinished = false;  // Not valid, but more bytes after the end of the text could make it so.
};

// What stands at the start of `text`, which is not empty.
Utf8Step NextUtf8(std::string_view text);

// The length of the longest prefix of `text` that is valid UTF-8.
std::size_t ValidUtf8Prefix(std::string_view text);

// U+0000 to U+10FFFF without surrogates; anything else is written as U+FFFD.
void AppendUtf8(std::uint32_t code_point, std::string* out);

// `text` with U+FFFD for every maximal ill-formed subpart.
std::string ReplaceInvalidUtf8(std::string_view text);

}  // namespace penstock::model

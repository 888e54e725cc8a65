// SPDX-License-Identifier: Apache-2.0
// Python's str methods on UTF-8. Positions count characters; a broken byte sequence counts as one
// character per maximal ill-formed subpart. Pure functions; any thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace penstock::model {

std::size_t CountCharacters(std::string_view text);
// Byte offset of character `position`, at most text.size().
std::size_t ByteOffset(std::string_view text, std::size_t position);

bool IsSpaceCharacter(std::uint32_t code_point);  // As str.isspace.

// Any of `characters` at the ends; white space without. `left`, `right`: which ends.
std::string_view StripSpace(std::string_view text, bool left, bool right);
std::string_view StripAny(std::string_view text, std::string_view characters, bool left,
                          bool right);

std::string ToUpper(std::string_view text);
std::string ToLower(std::string_view text);
std::string ToTitle(std::string_view text);       // str.title: letters after non-letters.
std::string ToWordsTitle(std::string_view text);  // Jinja's filter: words after spaces and -({[<.
std::string ToCapitalized(std::string_view text);

// At most `splits_max` cuts from the left (or right); below 0: all.
std::vector<std::string> SplitSpace(std::string_view text, std::int64_t splits_max);
std::vector<std::string> SplitOn(std::string_view text, std::string_view separator,
                                 std::int64_t splits_max);
std::vector<std::string> SplitOnFromRight(std::string_view text, std::string_view separator,
                                          std::int64_t splits_max);
std::vector<std::string> SplitLines(std::string_view text, bool keep_ends);

// `from` may be empty: then `to` goes before every character and at the end, as in Python.
std::string ReplaceText(std::string_view text, std::string_view from, std::string_view to,
                        std::int64_t replacements_max);

void AppendStringRepr(std::string_view text, std::string* out);

}  // namespace penstock::model

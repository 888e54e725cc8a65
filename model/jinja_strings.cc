// SPDX-License-Identifier: Apache-2.0
#include "model/jinja_strings.h"

#include <utf8proc.h>

#include <algorithm>

#include "model/utf8.h"

namespace penstock::model {
namespace {

// Calls use(code_point, bytes) for every character; broken ones have code point 0xFFFFFFFF.
template <typename Use>
void ForEachCharacter(std::string_view text, const Use& use) {
  while (!text.empty()) {
    const Utf8Step step = NextUtf8(text);
    const auto bytes = static_cast<std::size_t>(step.bytes);
    use(step.valid ? step.code_point : 0xFFFFFFFFu, text.substr(0, bytes));
    text.remove_prefix(bytes);
  }
}

bool IsCased(std::uint32_t c) {
  if (c == 0xFFFFFFFFu) return false;
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
      return true;
    default:
      return false;
  }
}

// As str.isprintable: no control, format, private or unassigned characters, no space but ' '.
bool IsPrintable(std::uint32_t c) {
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
      return false;
    case UTF8PROC_CATEGORY_ZS:
      return c == ' ';
    default:
      return true;
  }
}

enum class Case { kUpper, kLower, kTitle };

void AppendCased(std::uint32_t c, std::string_view bytes, Case to, std::string* out) {
  if (c == 0xFFFFFFFFu) {
    out->append(bytes);
  } else if (c == 0xDF && to != Case::kLower) {
    out->append(to == Case::kUpper ? "SS" : "Ss");  // The one common letter that grows.
  } else {
    const auto letter = static_cast<utf8proc_int32_t>(c);
    const utf8proc_int32_t made = to == Case::kUpper   ? utf8proc_toupper(letter)
                                  : to == Case::kLower ? utf8proc_tolower(letter)
                                                       : utf8proc_totitle(letter);
    AppendUtf8(static_cast<std::uint32_t>(made), out);
  }
}

std::size_t LastCharacterBytes(std::string_view text) {
  std::size_t bytes = 1;
  while (bytes < 4 && bytes < text.size() && (text[text.size() - bytes] & 0xC0) == 0x80) ++bytes;
  const Utf8Step step = NextUtf8(text.substr(text.size() - bytes));
  return step.valid && static_cast<std::size_t>(step.bytes) == bytes ? bytes : 1;
}

template <typename Stripped>
std::string_view StripWhile(std::string_view text, bool left, bool right,
                            const Stripped& stripped) {
  while (left && !text.empty()) {
    const auto bytes = static_cast<std::size_t>(NextUtf8(text).bytes);
    if (!stripped(text.substr(0, bytes))) break;
    text.remove_prefix(bytes);
  }
  while (right && !text.empty()) {
    const std::size_t bytes = LastCharacterBytes(text);
    if (!stripped(text.substr(text.size() - bytes))) break;
    text.remove_suffix(bytes);
  }
  return text;
}

bool IsSpaceText(std::string_view character) {
  const Utf8Step step = NextUtf8(character);
  return step.valid && IsSpaceCharacter(step.code_point);
}

}  // namespace

std::size_t CountCharacters(std::string_view text) {
  std::size_t count = 0;
  ForEachCharacter(text, [&](std::uint32_t, std::string_view) { ++count; });
  return count;
}

std::size_t ByteOffset(std::string_view text, std::size_t position) {
  std::size_t at = 0;
  for (; position > 0 && at < text.size(); --position) at += NextUtf8(text.substr(at)).bytes;
  return at;
}

bool IsSpaceCharacter(std::uint32_t c) {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 ||
         c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
         c == 0x205F || c == 0x3000;
}

std::string_view StripSpace(std::string_view text, bool left, bool right) {
  return StripWhile(text, left, right, IsSpaceText);
}

std::string_view StripAny(std::string_view text, std::string_view characters, bool left,
                          bool right) {
  return StripWhile(text, left, right, [&](std::string_view character) {
    return characters.find(character) != std::string_view::npos;
  });
}

std::string ToUpper(std::string_view text) {
  std::string out;
  ForEachCharacter(text, [&](std::uint32_t c, std::string_view bytes) {
    AppendCased(c, bytes, Case::kUpper, &out);
  });
  return out;
}

std::string ToLower(std::string_view text) {
  std::string out;
  ForEachCharacter(text, [&](std::uint32_t c, std::string_view bytes) {
    AppendCased(c, bytes, Case::kLower, &out);
  });
  return out;
}

std::string ToTitle(std::string_view text) {
  std::string out;
  bool inside = false;
  ForEachCharacter(text, [&](std::uint32_t c, std::string_view bytes) {
    AppendCased(c, bytes, inside ? Case::kLower : Case::kTitle, &out);
    inside = IsCased(c);
  });
  return out;
}

std::string ToWordsTitle(std::string_view text) {
  std::string out;
  bool inside = false;
  ForEachCharacter(text, [&](std::uint32_t c, std::string_view bytes) {
    AppendCased(c, bytes, inside ? Case::kLower : Case::kUpper, &out);
    inside = !(IsSpaceCharacter(c) || c == '-' || c == '(' || c == '{' || c == '[' || c == '<');
  });
  return out;
}

std::string ToCapitalized(std::string_view text) {
  std::string out;
  ForEachCharacter(text, [&](std::uint32_t c, std::string_view bytes) {
    AppendCased(c, bytes, out.empty() ? Case::kTitle : Case::kLower, &out);
  });
  return out;
}

std::vector<std::string> SplitSpace(std::string_view text, std::int64_t splits_max) {
  std::vector<std::string> parts;
  text = StripSpace(text, true, false);
  while (!text.empty()) {
    if (splits_max >= 0 && static_cast<std::int64_t>(parts.size()) == splits_max) {
      parts.emplace_back(text);
      break;
    }
    std::size_t end = 0;
    while (end < text.size() && !IsSpaceText(text.substr(end))) {
      end += NextUtf8(text.substr(end)).bytes;
    }
    parts.emplace_back(text.substr(0, end));
    text = StripSpace(text.substr(end), true, false);
  }
  return parts;
}

std::vector<std::string> SplitOn(std::string_view text, std::string_view separator,
                                 std::int64_t splits_max) {
  std::vector<std::string> parts;
  while (splits_max < 0 || static_cast<std::int64_t>(parts.size()) < splits_max) {
    const std::size_t at = text.find(separator);
    if (at == std::string_view::npos) break;
    parts.emplace_back(text.substr(0, at));
    text.remove_prefix(at + separator.size());
  }
  parts.emplace_back(text);
  return parts;
}

std::vector<std::string> SplitOnFromRight(std::string_view text, std::string_view separator,
                                          std::int64_t splits_max) {
  std::vector<std::string> parts;
  while (splits_max < 0 || static_cast<std::int64_t>(parts.size()) < splits_max) {
    const std::size_t at = text.rfind(separator);
    if (at == std::string_view::npos) break;
    parts.emplace_back(text.substr(at + separator.size()));
    text = text.substr(0, at);
  }
  parts.emplace_back(text);
  std::reverse(parts.begin(), parts.end());
  return parts;
}

std::vector<std::string> SplitLines(std::string_view text, bool keep_ends) {
  std::vector<std::string> lines;
  while (!text.empty()) {
    std::size_t end = 0;
    std::size_t ending = 0;
    while (end < text.size() && ending == 0) {
      const Utf8Step step = NextUtf8(text.substr(end));
      const std::uint32_t c = step.valid ? step.code_point : 0;
      const bool breaks = (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 ||
                          c == 0x2028 || c == 0x2029;
      if (breaks) {
        ending = static_cast<std::size_t>(step.bytes);
        if (text.substr(end, 2) == "\r\n") ending = 2;
      } else {
        end += static_cast<std::size_t>(step.bytes);
      }
    }
    lines.emplace_back(text.substr(0, keep_ends ? end + ending : end));
    text.remove_prefix(end + ending);
  }
  return lines;
}

std::string ReplaceText(std::string_view text, std::string_view from, std::string_view to,
                        std::int64_t replacements_max) {
  std::string out;
  std::int64_t left = replacements_max;
  if (from.empty()) {
    ForEachCharacter(text, [&](std::uint32_t, std::string_view bytes) {
      if (left != 0) out.append(to);
      if (left > 0) --left;
      out.append(bytes);
    });
    if (left != 0) out.append(to);
    return out;
  }
  std::size_t at = 0;
  for (std::size_t next; left != 0 && (next = text.find(from, at)) != std::string_view::npos;) {
    out.append(text.substr(at, next - at)).append(to);
    at = next + from.size();
    if (left > 0) --left;
  }
  return std::move(out.append(text.substr(at)));
}

void AppendStringRepr(std::string_view text, std::string* out) {
  const bool doubles =
      text.find('\'') != std::string_view::npos && text.find('"') == std::string_view::npos;
  const char quote = doubles ? '"' : '\'';
  const char* hex = "0123456789abcdef";
  out->push_back(quote);
  ForEachCharacter(text, [&](std::uint32_t c, std::string_view bytes) {
    if (c == '\\' || c == static_cast<unsigned char>(quote)) {
      out->push_back('\\');
      out->append(bytes);
    } else if (c == '\n') {
      out->append("\\n");
    } else if (c == '\r') {
      out->append("\\r");
    } else if (c == '\t') {
      out->append("\\t");
    } else if (c != 0xFFFFFFFFu && !IsPrintable(c)) {
      const int digits = c < 0x100 ? 2 : c < 0x10000 ? 4 : 8;
      out->append(digits == 2 ? "\\x" : digits == 4 ? "\\u" : "\\U");
      for (int i = digits - 1; i >= 0; --i) out->push_back(hex[(c >> (4 * i)) & 15]);
    } else {
      out->append(bytes);
    }
  });
  out->push_back(quote);
}

}  // namespace penstock::model

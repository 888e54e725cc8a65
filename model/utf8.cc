// SPDX-License-Identifier: Apache-2.0
#include "model/utf8.h"

#include <cstring>

namespace penstock::model {
namespace {

// By first byte: how many bytes follow, and the range of the first of them (Unicode table 3-7).
struct Lead {
  std::int32_t follow = -1;  // -1: no character starts with this byte.
  unsigned char low = 0x80;
  unsigned char high = 0xBF;
};

Lead LeadOf(unsigned char b) {
  if (b < 0x80) return {0, 0x80, 0xBF};
  if (b < 0xC2) return {};
  if (b < 0xE0) return {1, 0x80, 0xBF};
  if (b == 0xE0) return {2, 0xA0, 0xBF};
  if (b == 0xED) return {2, 0x80, 0x9F};
  if (b < 0xF0) return {2, 0x80, 0xBF};
  if (b == 0xF0) return {3, 0x90, 0xBF};
  if (b < 0xF4) return {3, 0x80, 0xBF};
  if (b == 0xF4) return {3, 0x80, 0x8F};
  return {};
}

}  // namespace

Utf8Step NextUtf8(std::string_view text) {
  const auto first = static_cast<unsigned char>(text[0]);
  if (first < 0x80) return {.bytes = 1, .code_point = first, .valid = true};
  const Lead lead = LeadOf(first);
  if (lead.follow < 0) return {};
  std::uint32_t code_point = first & (0x3F >> lead.follow);
  for (std::int32_t i = 1; i <= lead.follow; ++i) {
    if (static_cast<std::size_t>(i) >= text.size()) return {.bytes = i, .unfinished = true};
    const auto b = static_cast<unsigned char>(text[i]);
    const bool fits = i == 1 ? (b >= lead.low && b <= lead.high) : (b >= 0x80 && b <= 0xBF);
    if (!fits) return {.bytes = i};
    code_point = (code_point << 6) | (b & 0x3F);
  }
  return {.bytes = lead.follow + 1, .code_point = code_point, .valid = true};
}

std::size_t ValidUtf8Prefix(std::string_view text) {
  std::size_t at = 0;
  while (at < text.size()) {
    if (text.size() - at >= 8) {
      std::uint64_t eight;
      std::memcpy(&eight, text.data() + at, sizeof(eight));
      if ((eight & 0x8080808080808080u) == 0) {
        at += 8;
        continue;
      }
    }
    const Utf8Step step = NextUtf8(text.substr(at));
    if (!step.valid) break;
    at += step.bytes;
  }
  return at;
}

void AppendUtf8(std::uint32_t code_point, std::string* out) {
  const std::uint32_t c = code_point;
  if (c < 0x80) {
    out->push_back(static_cast<char>(c));
  } else if (c < 0x800) {
    out->push_back(static_cast<char>(0xC0 | (c >> 6)));
    out->push_back(static_cast<char>(0x80 | (c & 0x3F)));
  } else if (c > 0x10FFFF || (c >= 0xD800 && c < 0xE000)) {
    out->append(kReplacementCharacter);
  } else if (c < 0x10000) {
    out->push_back(static_cast<char>(0xE0 | (c >> 12)));
    out->push_back(static_cast<char>(0x80 | ((c >> 6) & 0x3F)));
    out->push_back(static_cast<char>(0x80 | (c & 0x3F)));
  } else {
    out->push_back(static_cast<char>(0xF0 | (c >> 18)));
    out->push_back(static_cast<char>(0x80 | ((c >> 12) & 0x3F)));
    out->push_back(static_cast<char>(0x80 | ((c >> 6) & 0x3F)));
    out->push_back(static_cast<char>(0x80 | (c & 0x3F)));
  }
}

std::string ReplaceInvalidUtf8(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const std::size_t valid = ValidUtf8Prefix(text);
    out.append(text.substr(0, valid));
    text.remove_prefix(valid);
    if (text.empty()) break;
    out.append(kReplacementCharacter);
    text.remove_prefix(NextUtf8(text).bytes);
  }
  return out;
}

}  // namespace penstock::model

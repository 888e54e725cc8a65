// SPDX-License-Identifier: Apache-2.0
#include "gateway/json_text.h"

#include <array>
#include <charconv>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "model/utf8.h"

namespace penstock::gateway {

void AppendJsonString(std::string_view text, std::string* out) {
  std::string mended;
  if (model::ValidUtf8Prefix(text) != text.size()) {
    mended = model::ReplaceInvalidUtf8(text);
    text = mended;
  }
  constexpr std::string_view kHex = "0123456789abcdef";
  out->push_back('"');
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out->push_back('\\');
      out->push_back(c);
    } else if (c == '\n') {
      out->append("\\n");
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      const auto byte = static_cast<unsigned char>(c);
      out->append("\\u00");
      out->push_back(kHex[byte >> 4]);
      out->push_back(kHex[byte & 15]);
    } else {
      out->push_back(c);
    }
  }
  out->push_back('"');
}

void AppendJsonLogprob(double value, std::string* out) {
  if (!std::isfinite(value)) {
    out->append("-9999.0");
    return;
  }
  std::array<char, 40> buffer{};
  const auto [end, error] = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value);
  out->append(buffer.data(), end);
}

void AppendJsonBytes(std::string_view text, std::string* out) {
  out->push_back('[');
  for (std::size_t i = 0; i < text.size(); ++i) {
    absl::StrAppend(out, i == 0 ? "" : ",", static_cast<unsigned>(text[i]) & 0xff);
  }
  out->push_back(']');
}

}  // namespace penstock::gateway

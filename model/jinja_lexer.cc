// SPDX-License-Identifier: Apache-2.0
#include "model/jinja_lexer.h"

#include <algorithm>

#include "base/status.h"
#include "model/jinja_strings.h"
#include "model/utf8.h"

namespace penstock::model {
namespace {

using Kind = JinjaToken::Kind;

bool IsDigit(char c) { return c >= '0' && c <= '9'; }
bool IsNameStart(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || (c & 0x80) != 0;
}
bool IsNamePart(char c) { return IsNameStart(c) || IsDigit(c); }

int HexValue(char c) {
  if (IsDigit(c)) return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

// As Jinja reads its source: every newline is \n, and one at the end is dropped.
std::string NormalizeNewlines(std::string_view source) {
  std::string out;
  for (std::size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      out.push_back('\n');
      if (source.substr(i + 1, 1) == "\n") ++i;
    } else {
      out.push_back(source[i]);
    }
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

class Lexer {
 public:
  explicit Lexer(std::string source) : source_(std::move(source)) {}

  absl::StatusOr<std::vector<JinjaToken>> Run() {
    while (at_ < source_.size()) RETURN_IF_ERROR(LexData());
    Add(Kind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  std::string_view Rest(std::size_t from) const { return std::string_view(source_).substr(from); }
  std::string_view Rest() const { return Rest(at_); }

  absl::Status Error(std::string_view message) const {
    return absl::InvalidArgumentError(
        absl::StrCat("chat template, line ", line_, ": ", ToAbsl(message)));
  }

  void Add(Kind kind, std::string_view text) {
    tokens_.push_back({kind, std::string(text), line_});
  }

  void MoveTo(std::size_t at) {
    line_ += static_cast<int>(std::count(source_.begin() + static_cast<std::ptrdiff_t>(at_),
                                         source_.begin() + static_cast<std::ptrdiff_t>(at), '\n'));
    at_ = at;
  }

  // Data up to the next {{, {% or {#, then that.
  absl::Status LexData();
  absl::Status LexComment();
  // {% raw %}: true if it was one.
  absl::StatusOr<bool> LexRaw();
  absl::Status LexExpression(bool print);
  absl::Status LexOperator();
  absl::Status LexString();
  void LexNumber();

  // The text before a tag, less what its control character (0, '-' or '+') takes away.
  void AddData(std::string_view text, char control, bool print);
  // Behind %} or #}: the white space after -%}, or the newline after %} that trim_blocks takes.
  void SkipAfter(std::size_t end, bool strip, bool trim);

  const std::string source_;
  std::size_t at_ = 0;
  int line_ = 1;
  bool line_starting_ = true;  // What was read last ended a line.
  std::vector<JinjaToken> tokens_;
};

char ControlOf(std::string_view after) {
  return !after.empty() && (after[0] == '-' || after[0] == '+') ? after[0] : '\0';
}

void Lexer::AddData(std::string_view text, char control, bool print) {
  if (control == '-') {
    text = StripSpace(text, false, true);
  } else if (control != '+' && !print) {
    const std::size_t line = text.rfind('\n') + 1;  // npos + 1 is 0.
    if ((line > 0 || line_starting_) && StripSpace(text.substr(line), true, true).empty()) {
      text = text.substr(0, line);
    }
  }
  if (!text.empty()) Add(Kind::kData, text);
}

void Lexer::SkipAfter(std::size_t end, bool strip, bool trim) {
  if (strip) {
    end = source_.size() - StripSpace(Rest(end), true, false).size();
  } else if (trim && Rest(end).substr(0, 1) == "\n") {
    ++end;
  }
  MoveTo(end);
  line_starting_ = end > 0 && source_[end - 1] == '\n';
}

absl::Status Lexer::LexData() {
  std::size_t open = at_;
  while ((open = source_.find('{', open)) != std::string::npos) {
    const char next = open + 1 < source_.size() ? source_[open + 1] : '\0';
    if (next == '{' || next == '%' || next == '#') break;
    ++open;
  }
  if (open == std::string::npos) {
    Add(Kind::kData, Rest());
    MoveTo(source_.size());
    return absl::OkStatus();
  }
  const bool print = source_[open + 1] == '{';
  const char control = ControlOf(Rest(open + 2));
  AddData(Rest().substr(0, open - at_), control, print);
  MoveTo(open);
  if (source_[open + 1] == '#') return LexComment();
  if (!print) {
    ASSIGN_OR_RETURN(const bool raw, LexRaw());
    if (raw) return absl::OkStatus();
  }
  Add(print ? Kind::kPrintBegin : Kind::kBlockBegin, "");
  MoveTo(open + 2 + (control != '\0' ? 1 : 0));
  return LexExpression(print);
}

absl::Status Lexer::LexComment() {
  const std::size_t end = source_.find("#}", at_ + 2);
  if (end == std::string::npos) return Error("a comment {# is never closed");
  const char control = end > at_ + 2 ? ControlOf(Rest(end - 1)) : '\0';
  SkipAfter(end + 2, control == '-', control != '+');
  return absl::OkStatus();
}

// Reads `{%- word -%}` at `at`; its end, or npos. Gives the control characters.
std::size_t MatchTag(std::string_view source, std::size_t at, std::string_view word, char* open,
                     char* close) {
  std::size_t i = at + 2;
  *open = ControlOf(source.substr(i));
  if (*open != '\0') ++i;
  i = source.size() - StripSpace(source.substr(i), true, false).size();
  if (source.substr(i, word.size()) != word) return std::string_view::npos;
  i += word.size();
  i = source.size() - StripSpace(source.substr(i), true, false).size();
  *close = ControlOf(source.substr(i));
  if (*close != '\0') ++i;
  return source.substr(i, 2) == "%}" ? i + 2 : std::string_view::npos;
}

absl::StatusOr<bool> Lexer::LexRaw() {
  char open, close;
  const std::size_t begin = MatchTag(source_, at_, "raw", &open, &close);
  if (begin == std::string::npos || close == '+') return false;
  SkipAfter(begin, close == '-', false);
  for (std::size_t tag = at_; (tag = source_.find("{%", tag)) != std::string::npos; tag += 2) {
    const std::size_t end = MatchTag(source_, tag, "endraw", &open, &close);
    if (end == std::string::npos) continue;
    AddData(Rest().substr(0, tag - at_), open, false);
    SkipAfter(end, close == '-', close != '+');
    return true;
  }
  return Error("{% raw %} is never closed");
}

absl::Status Lexer::LexExpression(bool print) {
  const std::string_view close = print ? "}}" : "%}";
  std::string brackets;  // Open ones, as what closes them.
  while (at_ < source_.size()) {
    const std::string_view rest = Rest();
    const std::size_t space = rest.size() - StripSpace(rest, true, false).size();
    if (space > 0) {
      MoveTo(at_ + space);
      continue;
    }
    const char c = rest[0];
    if (brackets.empty()) {
      const bool control = c == '-' || (c == '+' && !print);
      if (rest.substr(control ? 1 : 0, 2) == close) {
        Add(print ? Kind::kPrintEnd : Kind::kBlockEnd, "");
        SkipAfter(at_ + (control ? 3 : 2), c == '-', !print && c != '+');
        return absl::OkStatus();
      }
    }
    if (c == '(' || c == '[' || c == '{') {
      brackets.push_back(c == '(' ? ')' : c == '[' ? ']' : '}');
    } else if (c == ')' || c == ']' || c == '}') {
      if (brackets.empty() || brackets.back() != c) {
        return Error(absl::StrCat("unexpected '", std::string(1, c), "'"));
      }
      brackets.pop_back();
    }
    if (c == '"' || c == '\'') {
      RETURN_IF_ERROR(LexString());
    } else if (IsDigit(c)) {
      LexNumber();
    } else if (IsNameStart(c)) {
      std::size_t end = 1;
      while (end < rest.size() && IsNamePart(rest[end])) ++end;
      Add(Kind::kName, rest.substr(0, end));
      MoveTo(at_ + end);
    } else {
      RETURN_IF_ERROR(LexOperator());
    }
  }
  return Error(absl::StrCat("a tag is never closed with ", ToAbsl(close)));
}

absl::Status Lexer::LexOperator() {
  for (const std::string_view two : {"//", "**", "==", "!=", ">=", "<="}) {
    if (Rest().substr(0, 2) == two) {
      Add(Kind::kOperator, two);
      MoveTo(at_ + 2);
      return absl::OkStatus();
    }
  }
  if (std::string_view("+-/*%~[](){}><=.:|,;").find(source_[at_]) == std::string_view::npos) {
    return Error(absl::StrCat("unexpected character '", std::string(1, source_[at_]), "'"));
  }
  Add(Kind::kOperator, Rest().substr(0, 1));
  MoveTo(at_ + 1);
  return absl::OkStatus();
}

void Lexer::LexNumber() {
  const std::string_view rest = Rest();
  const auto digits = [&](std::size_t i, auto is_digit) {
    while (i < rest.size() && (is_digit(rest[i]) ||
                               (rest[i] == '_' && i + 1 < rest.size() && is_digit(rest[i + 1])))) {
      ++i;
    }
    return i;
  };
  const char base = rest.size() > 1 ? static_cast<char>(rest[1] | 0x20) : '\0';
  std::size_t end;
  bool is_float = false;
  if (rest[0] == '0' && (base == 'x' || base == 'o' || base == 'b')) {
    end = digits(2, [](char c) { return HexValue(c) >= 0; });
  } else {
    end = digits(0, IsDigit);
    if (end + 1 < rest.size() && rest[end] == '.' && IsDigit(rest[end + 1])) {
      end = digits(end + 1, IsDigit);
      is_float = true;
    }
    std::size_t exponent = end;
    if (exponent < rest.size() && (rest[exponent] | 0x20) == 'e') {
      ++exponent;
      if (exponent < rest.size() && (rest[exponent] == '+' || rest[exponent] == '-')) ++exponent;
      if (exponent < rest.size() && IsDigit(rest[exponent])) {
        end = digits(exponent, IsDigit);
        is_float = true;
      }
    }
  }
  std::string text(rest.substr(0, end));
  std::erase(text, '_');
  Add(is_float ? Kind::kFloat : Kind::kInteger, text);
  MoveTo(at_ + end);
}

absl::Status Lexer::LexString() {
  const char quote = source_[at_];
  std::string text;
  std::size_t i = at_ + 1;
  const auto hex = [&](std::size_t count) -> absl::StatusOr<std::uint32_t> {
    std::uint32_t value = 0;
    for (std::size_t n = 0; n < count; ++n, ++i) {
      const int digit = i < source_.size() ? HexValue(source_[i]) : -1;
      if (digit < 0) return Error("a string has a broken escape");
      value = value * 16 + static_cast<std::uint32_t>(digit);
    }
    return value;
  };
  while (i < source_.size() && source_[i] != quote) {
    if (source_[i] != '\\') {
      text.push_back(source_[i++]);
      continue;
    }
    if (++i >= source_.size()) break;
    const char c = source_[i++];
    constexpr std::string_view kFrom = "\\'\"abfnrtv";
    constexpr std::string_view kTo = "\\'\"\a\b\f\n\r\t\v";
    if (const std::size_t known = kFrom.find(c); known != std::string_view::npos) {
      text.push_back(kTo[known]);
    } else if (c >= '0' && c <= '7') {
      std::uint32_t value = static_cast<std::uint32_t>(c - '0');
      for (int n = 0; n < 2 && i < source_.size() && source_[i] >= '0' && source_[i] <= '7'; ++n) {
        value = value * 8 + static_cast<std::uint32_t>(source_[i++] - '0');
      }
      AppendUtf8(value, &text);
    } else if (c == 'x' || c == 'u' || c == 'U') {
      ASSIGN_OR_RETURN(const std::uint32_t value, hex(c == 'x' ? 2 : c == 'u' ? 4 : 8));
      AppendUtf8(value, &text);
    } else if (c == 'N') {
      return Error("character names (\\N{...}) are not supported in strings");
    } else if (c != '\n') {
      text.push_back('\\');
      text.push_back(c);
    }
  }
  if (i >= source_.size()) return Error("a string is never closed");
  Add(Kind::kString, text);
  MoveTo(i + 1);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<JinjaToken>> LexJinja(std::string_view source) {
  if (source.size() > kTemplateBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat("the chat template has ", source.size(),
                                                   " bytes, at most ", kTemplateBytesMax));
  }
  return Lexer(NormalizeNewlines(source)).Run();
}

}  // namespace penstock::model

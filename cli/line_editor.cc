// SPDX-License-Identifier: Apache-2.0
#include "cli/line_editor.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "model/utf8.h"
#include "utf8proc.h"

namespace penstock::cli {
namespace {

constexpr char Control(char letter) { return static_cast<char>(letter & 0x1f); }
constexpr std::size_t kLineBytesKept =
    (std::size_t{1} << 20) + 1;  // LineReader refuses longer ones.

bool ContinuesCharacter(char byte) { return (static_cast<unsigned char>(byte) & 0xC0) == 0x80; }

// Columns that a character takes on a terminal.
std::size_t Width(const model::Utf8Step& step) {
  if (!step.valid) return 1;
  return static_cast<std::size_t>(
      std::max(::utf8proc_charwidth(static_cast<utf8proc_int32_t>(step.code_point)), 0));
}

// Columns that a text takes, but for escape sequences of the kind ESC [ ... letter.
std::size_t TextWidth(std::string_view text) {
  std::size_t width = 0;
  while (!text.empty()) {
    if (text.starts_with("\x1b[")) {
      const std::size_t end = text.find_first_of("ABCDHJKhlm");
      text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
      continue;
    }
    const model::Utf8Step step = model::NextUtf8(text);
    width += Width(step);
    text.remove_prefix(static_cast<std::size_t>(step.bytes));
  }
  return width;
}

}  // namespace

LineEditor::Event LineEditor::Take(char byte) {
  if (!escape_.empty()) return TakeEscape(byte);
  switch (byte) {
    case '\r':
    case '\n':
      cursor_ = line_.size();
      return Event::kDone;
    case Control('C'):
      return Event::kInterrupted;
    case Control('D'):
      if (line_.empty()) return Event::kEnd;
      if (cursor_ < line_.size()) {
        const std::size_t begin = cursor_;
        Right();
        Erase(begin, cursor_);
      }
      return Event::kMore;
    case '\x1b':
      escape_.push_back(byte);
      return Event::kMore;
    case '\x7f':
    case Control('H'): {
      const std::size_t end = cursor_;
      Left();
      Erase(cursor_, end);
      return Event::kMore;
    }
    case Control('A'):
      cursor_ = 0;
      return Event::kMore;
    case Control('E'):
      cursor_ = line_.size();
      return Event::kMore;
    case Control('B'):
      Left();
      return Event::kMore;
    case Control('F'):
      Right();
      return Event::kMore;
    case Control('K'):
      Erase(cursor_, line_.size());
      return Event::kMore;
    case Control('U'):
      Erase(0, cursor_);
      return Event::kMore;
    case Control('W'):
      DeleteWord();
      return Event::kMore;
    case Control('P'):
      if (history_at_ > 0) ShowHistory(history_at_ - 1);
      return Event::kMore;
    case Control('N'):
      if (history_at_ < history_.size()) ShowHistory(history_at_ + 1);
      return Event::kMore;
    default:
      Insert(byte);
      return Event::kMore;
  }
}

LineEditor::Event LineEditor::TakeEscape(char byte) {
  constexpr std::size_t kSequenceMax = 16;
  escape_.push_back(byte);
  if (escape_.size() == 2 && (byte == '[' || byte == 'O')) return Event::kMore;
  const bool parameter = escape_.size() > 2 && ((byte >= '0' && byte <= '9') || byte == ';');
  if (parameter && escape_.size() < kSequenceMax) return Event::kMore;
  const std::string sequence = std::move(escape_);
  escape_.clear();
  if (sequence.size() < 3) return Event::kMore;  // ESC and a letter: nothing of ours.
  const std::string_view parameters = std::string_view(sequence).substr(2, sequence.size() - 3);
  const auto tilde = [&](std::string_view number) { return byte == '~' && parameters == number; };
  if (byte == 'A') return Take(Control('P'));
  if (byte == 'B') return Take(Control('N'));
  if (byte == 'C') Right();
  if (byte == 'D') Left();
  if (byte == 'H' || tilde("1") || tilde("7")) cursor_ = 0;
  if (byte == 'F' || tilde("4") || tilde("8")) cursor_ = line_.size();
  if (tilde("3") && cursor_ < line_.size()) return Take(Control('D'));
  return Event::kMore;
}

void LineEditor::Insert(char byte) {
  const auto code = static_cast<unsigned char>(byte);
  if (code == '\t') byte = ' ';
  if (code < 0x20 && code != '\t') return;  // Other control keys.
  if (line_.size() >= kLineBytesKept) return;
  line_.insert(cursor_, 1, byte);
  ++cursor_;
}

void LineEditor::Left() {
  if (cursor_ > 0) --cursor_;
  while (cursor_ > 0 && ContinuesCharacter(line_[cursor_])) --cursor_;
}

void LineEditor::Right() {
  if (cursor_ < line_.size()) ++cursor_;
  while (cursor_ < line_.size() && ContinuesCharacter(line_[cursor_])) ++cursor_;
}

void LineEditor::Erase(std::size_t begin, std::size_t end) {
  line_.erase(begin, end - begin);
  cursor_ = begin;
}

void LineEditor::DeleteWord() {
  std::size_t begin = cursor_;
  while (begin > 0 && line_[begin - 1] == ' ') --begin;
  while (begin > 0 && line_[begin - 1] != ' ') --begin;
  Erase(begin, cursor_);
}

void LineEditor::ShowHistory(std::size_t at) {
  if (history_at_ == history_.size()) typed_ = line_;
  history_at_ = at;
  line_ = at == history_.size() ? typed_ : history_[at];
  cursor_ = line_.size();
}

std::string LineEditor::Draw(std::string_view prompt, std::size_t columns) const {
  const std::size_t prompt_width = TextWidth(prompt);
  const std::size_t room = columns > prompt_width + 1 ? columns - prompt_width - 1 : 1;
  // Moves the left edge of what is seen until the cursor fits.
  std::size_t begin = 0;
  std::size_t to_cursor = TextWidth(std::string_view(line_).substr(0, cursor_));
  while (to_cursor > room && begin < cursor_) {
    const model::Utf8Step step = model::NextUtf8(std::string_view(line_).substr(begin));
    to_cursor -= std::min(to_cursor, Width(step));
    begin += static_cast<std::size_t>(step.bytes);
  }
  std::size_t end = begin;
  for (std::size_t width = 0; end < line_.size();) {
    const model::Utf8Step step = model::NextUtf8(std::string_view(line_).substr(end));
    width += Width(step);
    if (width > room) break;
    end += static_cast<std::size_t>(step.bytes);
  }
  return absl::StrCat("\r", ToAbsl(prompt), line_.substr(begin, end - begin), "\x1b[K\r\x1b[",
                      prompt_width + to_cursor + 1, "G");
}

}  // namespace penstock::cli

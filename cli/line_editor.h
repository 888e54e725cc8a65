// SPDX-License-Identifier: Apache-2.0
// The state of one line being typed: bytes from the terminal in, escape sequences to draw it out.
// Knows nothing of terminals itself, so that tests can type.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace penstock::cli {

class LineEditor {
 public:
  enum class Event { kMore, kDone, kInterrupted, kEnd };

  // `history`, oldest first, must outlive the editor and not change meanwhile.
  explicit LineEditor(const std::vector<std::string>& history)
      : history_(history), history_at_(history.size()) {}

  // One byte from the keyboard.
  Event Take(char byte);

  const std::string& line() const { return line_; }
  std::size_t cursor() const { return cursor_; }  // In bytes.

  // What redraws prompt and line in place on a terminal of so many columns. A line too long for one
  // row shows the part around the cursor. Escape sequences in `prompt` take no room.
  std::string Draw(std::string_view prompt, std::size_t columns) const;

 private:
  Event TakeEscape(char byte);
  void Insert(char byte);
  void Left();
  void Right();
  void Erase(std::size_t begin, std::size_t end);
  void DeleteWord();
  void ShowHistory(std::size_t at);

  const std::vector<std::string>& history_;
  std::size_t history_at_;  // history_.size(): the line that is being typed.
  std::string typed_;       // Kept while an older line is shown.
  std::string line_;
  std::size_t cursor_ = 0;
  std::string escape_;  // An unfinished escape sequence, ESC included.
};

}  // namespace penstock::cli

// SPDX-License-Identifier: Apache-2.0
// Reads lines that somebody types, or that come through a pipe, and notices Ctrl-C meanwhile.
//
// On a terminal a line can be edited: arrows, Home and End, Ctrl-A/E/K/U/W/L, and Up and Down go
// through the lines before. Elsewhere bytes are taken as they come, and no prompt is shown.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "cli/line_editor.h"
#include "cli/terminal.h"

namespace penstock::cli {

class LineReader {
 public:
  enum class Result { kLine, kInterrupted, kEnd, kTooLong };

  static constexpr std::size_t kLineBytesMax = std::size_t{1} << 20;

  // `interrupts` must outlive this.
  explicit LineReader(InterruptWatch& interrupts);

  // Shows `prompt` and reads one line, without its end. kInterrupted: Ctrl-C. kEnd: end of input,
  // or Ctrl-D on an empty line. kTooLong: the line had more than kLineBytesMax bytes and was
  // dropped.
  Result Read(std::string_view prompt, std::string* line);

  bool interactive() const { return interactive_; }

 private:
  Result ReadPlain(std::string* line);
  Result ReadEdited(std::string_view prompt, std::string* line);
  // One more piece of input in `buffer_`; false at the end of it or on Ctrl-C (`interrupted_`).
  bool Fill();

  InterruptWatch& interrupts_;
  const bool interactive_;
  bool interrupted_ = false;
  std::string buffer_;  // Read, not used yet.
  std::vector<std::string> history_;
};

}  // namespace penstock::cli
